"""The program that interrupts runs does interrupt them."""

import subprocess
import sys

import pytest

import programs


@pytest.mark.slow
def test_a_killed_run_ends_as_the_undisturbed_one():
    done = subprocess.run(
        [sys.executable, "tests/faults.py", "kills", "--count=1"],
        cwd=programs.ROOT, env=programs.environment(STEPS="200"), capture_output=True, text=True,
        timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.startswith("1 x SIGKILL, 1 process(es)"), done.stdout
