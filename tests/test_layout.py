"""The layout of the source: imports point one way, and no file is too long."""

import ast
import subprocess
import sys

import pytest

import programs

HOME = programs.ROOT / "cryjax"
FILES = sorted(HOME.rglob("*.py"))
# Each may import those on its left; programs, the files of cryjax itself, may import all.
ORDER = ("command", "audio", "models", "data", "training", "evaluation", "interop")
# Pure computation: no files, clocks or configs, and no imports of ours that have them.
PURE = ("audio", "models", "training/steps.py", "training/losses.py")
IMPURE = {"os", "pathlib", "time", "random", "absl", "ml_collections", "orbax"}


def imported(file):
    """The modules that a file imports anywhere."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def folders(file):
    """The parts of cryjax that a file imports, '' for a program."""
    for name in imported(file):
        top, *below = name.split(".")
        if top == "cryjax" and not below[0].startswith("_"):
            yield below[0] if (HOME / below[0]).is_dir() else ""


@pytest.mark.parametrize("part", ORDER)
def test_imports_point_one_way(part):
    allowed = {*ORDER[: ORDER.index(part) + 1]}
    for file in (HOME / part).rglob("*.py"):
        assert set(folders(file)) <= allowed, file


def test_mathematics_is_pure():
    pure = [file for file in FILES if str(file.relative_to(HOME)).startswith(PURE)]
    assert len(pure) > 6
    for file in pure:
        assert not {name.split(".")[0] for name in imported(file)} & IMPURE, file
        assert set(folders(file)) <= {"audio", "models", "training"}, file


def test_every_folder_has_its_place():
    assert {path.name for path in HOME.iterdir() if (path / "__init__.py").exists()} == {*ORDER}


def test_no_file_is_longer_than_one_can_read():
    long = [file for file in FILES if len(file.read_text(encoding="utf-8").splitlines()) > 400]
    assert not long


def test_an_editable_install_is_a_plain_path():
    """Else, beside a clone named cryjax, Python would take that folder for the package."""
    pytest.importorskip("setuptools")
    script = """import setuptools, distutils.core
print(distutils.core.run_setup("setup.py", stop_after="init").package_dir)"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=programs.ROOT, check=True, text=True,
        capture_output=True,
    )  # fmt: skip
    assert done.stdout == "{'': '.'}\n"
