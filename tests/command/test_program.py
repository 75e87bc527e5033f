"""What programs share: where what was compiled is kept, and how they end."""

import errno
import pathlib
import subprocess
import sys

import jax
import pytest

import programs
from cryjax.command import program


@pytest.fixture
def cache_dir():
    """Gives the name of JAX's setting, which is as before afterwards."""
    name = "jax_compilation_cache_dir"
    before = getattr(jax.config, name)
    yield name
    jax.config.update(name, before)


def test_compiled_programs_are_kept_among_the_users_files(cache_dir, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update(cache_dir, None)
    program._keep_compiled()
    kept = pathlib.Path(jax.config.jax_compilation_cache_dir)
    assert kept.parent == tmp_path / "cryjax" and kept.name.startswith("compiled-")


def test_what_the_user_says_stays(cache_dir, tmp_path):
    jax.config.update(cache_dir, str(tmp_path))
    program._keep_compiled()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)


def test_a_full_disk_is_told_by_whatever_it_caused():
    full = OSError(errno.ENOSPC, "No space left on device", "a.npz")
    wrapped = RuntimeError("saving failed")
    wrapped.__cause__ = ValueError("a shard")
    wrapped.__cause__.__context__ = full
    assert program._no_space(full) == program._no_space(wrapped)
    assert program._no_space(full) == "No space left on device: a.npz"
    # Of libraries in C++ only the words are left.
    assert "quota" in program._no_space(RuntimeError("INTERNAL: write: Disk quota exceeded"))
    assert program._no_space(OSError(errno.EACCES, "Permission denied", "a.npz")) == ""
    circle = ValueError("of itself")
    circle.__cause__ = circle
    assert program._no_space(circle) == ""


def test_a_process_left_by_another_is_told_from_a_fault(monkeypatch):
    left = RuntimeError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:1")
    assert not program._left_alone(left)  # it is alone
    monkeypatch.setattr(program, "_one_of_several", lambda: True)
    assert program._left_alone(left)
    assert not program._left_alone(RuntimeError("INTERNAL: a fault of ours"))


def ended(
    body: str, *arguments: str, first: str = "", **environment: str
) -> subprocess.CompletedProcess:
    """The end of a program named 'some' whose `main` is an expression, after `first`."""
    script = f"""import os, signal, sys; from absl import flags; from cryjax.command import program
flags.DEFINE_list("some", [], "Some."); sys.argv[0] = "some.py"
def fail(error): raise error
{first}
program.run(lambda argv: {body}, positional=True)"""
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], text=True, capture_output=True,
        env=programs.environment(PYTHONPATH=str(programs.ROOT), **environment), check=False,
    )  # fmt: skip


def test_a_full_disk_promises_nothing_that_some_programs_do_not_keep():
    done = ended("fail(OSError(28, 'No space left on device', 'a.npz'))")
    said = "No space left on device: a.npz: make room, and run the same command again"
    assert (done.returncode, done.stderr) == (2, f"some: error: {said}\n")


def test_an_interrupted_program_says_only_that():
    done = ended("os.kill(os.getpid(), signal.SIGINT)")
    assert (done.returncode, done.stderr, done.stdout) == (130, "some: interrupted\n", "")
    assert "Traceback" in ended("fail(ValueError('a bug'))").stderr


@pytest.mark.parametrize("path", ["x" * 300, "/proc/1/mem"])
def test_a_path_that_the_system_refuses_is_told(path):
    reason = "File name too long" if "x" in path else "Permission denied"
    error = OSError(errno.ENAMETOOLONG if "x" in path else errno.EACCES, reason, path)
    done = ended(f"fail(OSError({error.errno}, {reason!r}, {path!r}))")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"({reason}); give another path" in done.stderr and path[:200] in done.stderr
    assert "Traceback" in ended("fail(FileNotFoundError(2, 'No such file', 'a bug'))").stderr


def test_float64_is_refused():
    done = ended("print('ran')", first="import jax", JAX_ENABLE_X64="1")
    assert done.returncode == 2 and done.stderr.startswith("some: error: JAX_ENABLE_X64 is set")
    assert not done.stdout


def test_home_is_found_in_every_value(tmp_path):
    given = ["--some=~/a,~/b,c~/d,~e", "~/f", "--", "--x"]
    done = ended("print(*flags.FLAGS.some, *argv[1:])", *given, HOME=str(tmp_path))
    assert done.stdout.split() == [
        f"{tmp_path}/a", f"{tmp_path}/b", "c~/d", "~e", "~/f", "--x"
    ]  # fmt: skip
    config = tmp_path / "config.py"
    config.write_text("import ml_collections\ndef get_config():\n"
                      "  return ml_collections.ConfigDict({'data': 'none'})\n")  # fmt: skip
    recipe = """from ml_collections import config_flags
config = config_flags.DEFINE_config_file("config", None, "A recipe.")
"""
    done = ended(
        "print(config.value.data)", "--config=~/config.py", "--config.data=~/a:train,~/b",
        first=recipe, HOME=str(tmp_path),
    )  # fmt: skip
    assert done.stdout.split() == [f"{tmp_path}/a:train,{tmp_path}/b"]
