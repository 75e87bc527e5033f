"""Documentation: commands name things that exist, links lead somewhere, the example runs.

Commands are taken from fenced blocks and `backticks` of every Markdown file, and from the
docstrings of programs, recipes and benchmarks. Nothing long is run: a command is parsed as its
program would parse it, its config checked by the program's own rules.
"""

import ast
import csv
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from absl import flags
from ml_collections import config_flags

import programs
from cryjax import linear_probe, reproduce
from cryjax.command import config as config_lib
from cryjax.training import simclr, supervised

ROOT = programs.ROOT
PAGES = sorted(
    page
    for page in ROOT.rglob("*.md")
    if not any(part.startswith(".") for part in page.relative_to(ROOT).parts)
)
SOURCES = sorted(
    [
        *ROOT.glob("cryjax/*.py"),
        *ROOT.glob("configs/*.py"),
        *ROOT.glob("launch/*.py"),
        *ROOT.glob("tests/faults.py"),
        *ROOT.glob("tests/benchmarks/*.py"),
        ROOT / "cryjax" / "interop" / "hear.py",
    ]
)
PROGRAMS = {
    path.stem: path for path in ROOT.glob("cryjax/*.py") if "__main__" in path.read_text("utf-8")
}
RULES = {
    "pretrain": simclr.RULES,
    "plan": simclr.RULES | {"data": config_lib.text()},
    "finetune": supervised.RULES,
    "linear_probe": linear_probe.RULES,
    "reproduce": None,
}
# Other tools that the pages name, which have flags of their own.
OTHERS = ("pip", "pip-audit", "docker", "kubectl", "apt-get", "gcloud", "hear-validator", "git")


def name_of(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


# Reading


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, text) of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)


def fenced(page: pathlib.Path) -> list[tuple[str, str]]:
    return blocks(page.read_text("utf-8"))


def prose(page: pathlib.Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)


def in_backticks(page: pathlib.Path) -> list[str]:
    return [" ".join(said.split()) for said in re.findall(r"`([^`]+)`", prose(page))]


def in_docstring(source: pathlib.Path) -> str:
    """The lines that a docstring indents by four spaces."""
    said = ast.get_docstring(ast.parse(source.read_text("utf-8"))) or ""
    return "\n".join(line[4:] for line in said.splitlines() if line.startswith("    "))


def commands(text: str) -> list[list[str]]:
    """The simple commands of a shell text, as words."""
    text = re.sub(r"<<'?END'?\n.*?^END$", "", text, flags=re.M | re.S)
    text = re.sub(r"\\\n\s*", " ", text)
    # Optional arguments are in brackets, in docstrings over several lines.
    text = re.sub(r"\n\s+(?=[\[-])", " ", text)
    text = re.sub(r"\[(-[^\[\]]*)\]", r"\1", text)
    arrays = {}
    for name, words in re.findall(r"^(\w+)=\((.*?)\)$", text, flags=re.M | re.S):
        arrays[name] = words.replace("\n", " ")
    text = re.sub(r"^\w+=\(.*?\)$", "", text, flags=re.M | re.S)
    for name, words in arrays.items():
        text = text.replace(f'"${{{name}[@]}}"', words)
    found, pending = [], ""
    for line in text.splitlines():
        pending += line
        try:
            lexer = shlex.shlex(pending, posix=True, punctuation_chars="|&;><")
            lexer.whitespace_split, lexer.commenters = True, "#"
            words = list(lexer)
        except ValueError:  # a quotation that continues on the next line
            pending += "\n"
            continue
        pending, one = "", []
        for word in [*words, ";"]:
            if word and set(word) <= set("|&;"):
                found += [one] if one else []
                one = []
            else:
                one.append(word)
    assert not pending, f"a quotation without an end: {pending}"
    return found


def of_program(words: list[str]) -> tuple[str, list[str]] | None:
    """(program, arguments) if a command runs one of ours, directly or by a launcher."""
    for place, word in enumerate(words):
        rest = words[place + 1 :]
        if word.startswith("cryjax.") and words[place - 1] == "-m":
            return word.removeprefix("cryjax."), rest
        launcher = {"local.sh": 2, "slurm.sbatch": 0}.get(pathlib.PurePath(word).name)
        if launcher is not None and len(rest) > launcher:
            return rest[launcher], rest[launcher + 1 :]
        if word.endswith("tpu_pod.sh") and rest[:1] == ["run"]:
            return rest[1], rest[2:]
    return None


def all_commands() -> list[tuple[str, list[str]]]:
    found = []
    for page in PAGES:
        printed = [text for language, text in fenced(page) if language in ("", "bash", "sh")]
        found += [(name_of(page), words) for text in printed for words in commands(text)]
        starts = ("python -m ", "python tests", "bash launch", "CRYJAX_", "DRY_RUN", "STEPS")
        said = [said for said in in_backticks(page) if said.startswith(starts)]
        found += [(name_of(page), words) for text in said for words in commands(text)]
    for source in SOURCES:
        found += [(name_of(source), words) for words in commands(in_docstring(source))]
    return found


COMMANDS = all_commands()


def flags_of(program: str) -> set[str]:
    """The flags that a program's source defines."""
    names = {"help", "config", "workdir"} if program in RULES else {"help"}
    for node in ast.walk(ast.parse(PROGRAMS[program].read_text("utf-8"))):
        defines = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if defines and node.func.attr.startswith("DEFINE_") and node.args:
            names.add(node.args[0].value)
    return names


def fields_of(recipe: pathlib.Path) -> set[str]:
    """All fields of a recipe, groups too."""
    flat = config_lib._flatten(config_lib.load(recipe))
    return {
        ".".join(field.split(".")[:depth])
        for field in flat
        for depth in range(1, field.count(".") + 2)
    }


FIELDS = {recipe.name: fields_of(recipe) for recipe in ROOT.glob("configs/*.py")}


def flag_name(word: str) -> str:
    """'name' of '--name=value'; the 'no' of a boolean stays."""
    return word.partition("=")[0].removeprefix("--")


# Checks


def test_there_is_something_to_check():
    named = {of_program(words)[0] for _, words in COMMANDS if of_program(words)}
    assert named == set(PROGRAMS)
    assert len(COMMANDS) > 80 and len(PAGES) >= 9


@pytest.mark.parametrize(
    ("where", "words"),
    [pair for pair in COMMANDS if of_program(pair[1])],
    ids=lambda value: value if isinstance(value, str) else " ".join(value)[:60],
)
def test_a_command_is_one_of_its_program(where, words, monkeypatch):
    program, arguments = of_program(words)
    assert program in PROGRAMS, f"{where}: no cryjax/{program}.py"
    known = flags_of(program)
    given = [word for word in arguments if word.startswith("--")]
    overrides = [word for word in given if word.startswith("--config.")]
    for word in given:
        name = flag_name(word)
        assert word in overrides or name in known or name.removeprefix("no") in known, (
            f"{where}: {program} has no --{name}"
        )
    recipe = next((flag.partition("=")[2] for flag in given if flag.startswith("--config=")), "")
    if not recipe:
        anywhere = set().union(*FIELDS.values())
        unknown = {flag_name(word).removeprefix("config.") for word in overrides} - anywhere
        assert not unknown, f"{where}: no recipe has {unknown}"
        return
    assert (ROOT / recipe).is_file(), f"{where}: there is no {recipe}"
    # As the program reads it; placeholders for what a user has to give.
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    monkeypatch.setattr(flags, "FLAGS", values)
    monkeypatch.chdir(ROOT)
    argv = [program, f"--config={recipe}", *overrides]
    monkeypatch.setattr(sys, "argv", argv)  # from which the fields to override are taken
    values(argv)
    config = values.config
    with config.ignore_type():
        for part in (config, *config.get("tasks", {}).values()):
            for field in ("data", "init", "general", "unlabelled"):
                if field in part and not part[field]:
                    part[field] = "FOLDER"
    if program == "reproduce":
        reproduce.check(config)
    else:
        config_lib.validate(config, RULES[program])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_flags_in_the_text_are_flags(page):
    """Of one of our programs or benchmarks; fields are of some recipe."""
    options = "".join(path.read_text("utf-8") for path in ROOT.glob("tests/**/*.py"))
    known = set().union(*map(flags_of, PROGRAMS)) | set(
        re.findall(r'add_argument\("--(\w+)"', options)
    )
    fields = set().union(*FIELDS.values())
    for said in in_backticks(page):
        if (
            said.startswith((*OTHERS, "scancel", "sbatch", "CRYJAX_EXTRAS=cuda sbatch", "ruff"))
            or " pip" in said
        ):
            continue
        for word in re.findall(r"(?<![\w-])--([A-Za-z][\w.-]*)", said):
            if word.startswith("config."):
                field = word.removeprefix("config.").rstrip(".")
                assert field in fields | {"field", "FIELD"}, f"{page}: no recipe has {field}"
            else:
                outside = ("dry-run", "strict", "check", "signal", "show-signature")
                assert word in known or word in outside, f"{page}: no program has --{word}"


@pytest.mark.parametrize(
    ("where", "words"),
    [pair for pair in COMMANDS if not of_program(pair[1])],
    ids=lambda value: value if isinstance(value, str) else " ".join(value)[:60],
)
def test_a_script_is_there_and_has_its_options(where, words):
    files = [
        word for word in words if re.fullmatch(r"(cryjax|configs|launch|tests)/[\w./*]+", word)
    ]
    for file in files:
        assert any(True for _ in ROOT.glob(file)), f"{where}: there is no {file}"
    script = next((file for file in files if file.endswith(".py")), None)
    if script and "pytest" not in words:
        told = (ROOT / script).read_text("utf-8")
        for word in words[words.index(script) :]:
            if word.startswith("--"):
                option = f'"--{flag_name(word)}"'
                assert option in told, f"{where}: {script} has no {option}"


def anchors(page: pathlib.Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    heads = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        to = (page.parent / file).resolve() if file else page
        assert to.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(to), f"{page}: {target}"


# Made by a run, or by the user, not part of the repository.
MADE = ("example.py", "tests/test_PROGRAM.py")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_are_there(page):
    homes = (
        ROOT,
        page.parent,
        *(ROOT / home for home in ("cryjax", "configs", "tests/benchmarks")),
    )
    for said in in_backticks(page):
        for word in re.findall(r"(?<![\w/.*-])[\w./*-]+\.(?:py|sh|sbatch|yaml|toml)\b", said):
            there = any(True for home in homes for _ in home.glob(word.lstrip("/")))
            assert there or word in MADE, f"{page}: there is no {word}"


def imports() -> set[tuple[str, str]]:
    """(folder, folder that it imports from), without `command`, which nearly all use."""
    found = set()
    for path in ROOT.glob("cryjax/*/*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cryjax"):
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                whole = [alias.name for alias in node.names]
            else:
                continue
            for name in whole:
                part = f"{name}.".split(".")[1] if name.startswith("cryjax.") else ""
                if (ROOT / "cryjax" / part).is_dir() and part not in ("", path.parent.name):
                    found.add((path.parent.name, part))
    return {pair for pair in found if "command" not in pair}


def reachable(arrows: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Pairs whose second is reachable from the first by any number of arrows."""
    found = set(arrows)
    while more := {(a, d) for a, b in found for c, d in found if b == c} - found:
        found |= more
    return found


def test_the_picture_of_the_architecture_is_true():
    """Its arrows reach what imports do, without cycles; programs reach all but `command`."""
    (picture,) = [text for kind, text in fenced(ROOT / "cryjax/README.md") if kind == "mermaid"]
    arrows = set(re.findall(r"^\s*(\w+) --> (\w+)$", picture, re.M))
    between = reachable({pair for pair in arrows if pair[0] != "programs"})
    assert between == reachable(imports())
    assert all(a != b for a, b in between)
    folders = {path.parent.name for path in ROOT.glob("cryjax/*/__init__.py")}
    assert {b for a, b in reachable(arrows) if a == "programs"} == folders - {"command"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_is_python(page):
    for language, text in fenced(page):
        if language == "python":
            ast.parse(text)


# Running: README's own example, on tones instead of recordings, and with tiny models.

SMALL = {
    "pretrain": programs.TINY[1:],
    "finetune": programs.TINY_FINETUNE[1:-1],
    "linear_probe": ("--config.resamples=20",),
}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a manifest of the columns that README shows, six subjects and two labels."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "recordings" / "spoken-digits").mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for subject in ("jackson", "george", "lucas", "nicolas", "theo", "yweweler"):
        for place in range(12):
            label, take = place % 2, place // 2
            file = f"spoken-digits/{7 if label else 3}_{subject}_{take}.flac"
            time = np.arange(8000) / 8000
            tone = 0.3 * np.sin(2 * np.pi * (300 + 500 * label) * time)
            noisy = tone + 0.05 * rng.normal(size=time.shape)
            soundfile.write(folder / "recordings" / file, noisy, 8000)
            rows.append([file, label, subject])
    with (folder / "recordings" / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "subject"], *rows])
    return folder


@pytest.mark.slow
def test_the_example_of_the_readme_runs_as_printed(here):
    """Each of its commands in turn, with lengths and widths for a test."""
    text = (ROOT / "README.md").read_text("utf-8")
    example = text[text.index("## Your recordings") : text.index("## Measured")]
    printed = [text for language, text in blocks(example) if not language]
    ran = []
    for words in [words for text in printed for words in commands(text)]:
        program, arguments = of_program(words)
        # Placeholders for the user's folders and files point into the folder made here.
        mine = re.compile(
            r"(?<![\w./-])(DATA|RUN|PROBE|TUNED|recordings/|model\.onnx|predictions\.)"
        )
        arguments = [mine.sub(lambda found: f"{here}/{found[0]}", word) for word in arguments]
        total = ("--config.total=4 steps",) if program in ("pretrain", "finetune") else ()
        programs.succeed(program, *arguments, *SMALL.get(program, ()), *total)
        ran.append(program)
    assert ran == ["prepare", "pretrain", "linear_probe", "finetune", "export", "predict"]
    table = (here / "predictions.csv").read_text("utf-8").splitlines()
    assert len(table) >= 2 and "p(" in table[0]


@pytest.mark.slow
def test_the_model_is_used_from_python_as_printed(here):
    """Runs after the example, on what it made."""
    texts = [text for page in PAGES for kind, text in fenced(page) if kind == "python"]
    (text,) = [text for text in texts if "cryjax.load" in text]
    text = text.replace('"TUNED"', repr(str(here / "model.onnx")))
    seen = {"waveform": np.zeros(8000, np.float32), "sample_rate": 8000}
    exec(compile(text, "README", "exec"), seen)
    assert seen["model"].labels


def test_the_lower_bounds_are_printed():
    (words,) = {tuple(w) for _, w in COMMANDS if w[:2] == ["python", "launch/lowest.py"]}
    done = subprocess.run(
        [sys.executable, words[1]], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "jax==" in done.stdout
