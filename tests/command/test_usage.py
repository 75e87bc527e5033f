"""`--help` lists every field of every recipe, with its default and its comment."""

import itertools
import pathlib
import signal
import subprocess
import sys

import pytest

import programs
from cryjax.command import config as config_lib
from cryjax.command import usage
from cryjax.command.errors import UserError

FOLDER = pathlib.Path(__file__).parents[2] / "configs"
RECIPES = sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_field_is_listed_with_a_comment_and_its_default(recipe):
    listed = {field.name: field for field in usage.fields(recipe)}
    assert all(len(field.comment) > 10 for field in listed.values())
    real = config_lib._flatten(config_lib.load(recipe))
    for name, value in real.items():
        if name in listed:
            assert listed[name].default == repr(value)
        else:  # of another recipe that this one holds
            held = listed[name.partition(".")[0]]
            assert "(" in held.default and "config" in held.default
    leaves = {name for name in listed if "(_HERE" not in listed[name].default}
    assert {name for name in leaves if not listed[name].default.startswith("_of_")} <= (
        real.keys() | {name for name in leaves if name.endswith((".encoder", ".crop"))}
    )


def test_help_prints_purpose_flags_and_fields_and_succeeds():
    done = programs.succeed("pretrain", "--config=configs/pretrain_small.py", "--help")
    said = done.stdout
    assert said.startswith("SimCLR pre-training") and "--workdir=WORKDIR" in said
    assert '--config.total="40 epochs"' in said and "Temperature of NT-Xent." in said
    assert max(map(len, said.splitlines())) <= 120
    assert not done.stderr


@pytest.mark.parametrize(
    "program",
    ["prepare", "pretrain", "finetune", "linear_probe", "predict", "export", "import_weights",
     "plan", "reproduce"],
)  # fmt: skip
def test_help_of_every_program(program):
    said = programs.succeed(program, "--help").stdout
    assert f"python -m cryjax.{program}" in said and "\nFlags:\n" in said
    # Each flag is explained, and none is of a library.
    lines = said.partition("\nFlags:\n")[2].splitlines()
    for line, below in itertools.pairwise(lines):
        assert not line.startswith("  --") or below.startswith("      ")
    assert "--logtostderr" not in said and "--jax" not in said


def test_help_ends_quietly_where_nobody_reads_on():
    command = [sys.executable, "-m", "cryjax.predict", "--help"]
    with subprocess.Popen(
        command, cwd=programs.ROOT, env=programs.environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == -signal.SIGPIPE


def test_what_is_no_recipe_is_told_in_a_line(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config(:")
    with pytest.raises(UserError, match="cannot be read"):
        usage.fields(broken)
    broken.write_text("x = 1")
    with pytest.raises(UserError, match="no get_config"):
        usage.fields(broken)
    said = programs.refuse("pretrain", "--help", "--config=nowhere.py")
    assert "nowhere.py" in said and "No such file" in said
