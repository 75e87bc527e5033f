"""Runs cryjax's programs as a user does, on data and models small enough for a test."""

import functools
import json
import os
import pathlib
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from tensorboardX.proto import event_pb2

# Compiled once for all runs of a test session, including the other test process's.
_OWN = tempfile.TemporaryDirectory(prefix="cryjax-test-cache-")  # removed with this process
_CACHE = os.environ.get("CRYJAX_TEST_CACHE", _OWN.name)

TINY = (
    "--config=configs/pretrain_small.py",
    "--config.encoder.width=0.0625",
    "--config.head.hidden=16",
    "--config.head.features=8",
    "--config.crop.seconds=0.3",
    "--config.clip_seconds=1.0",
    "--config.batch_size=32",
    "--config.total=30 steps",
    "--config.optimizer.warmup=3 steps",
    "--config.log_every=1 step",
    "--config.checkpoint_every=5 steps",
)

# The same for supervised training.
TINY_FINETUNE = (
    "--config=configs/finetune.py",
    "--config.encoder.width=0.0625",
    "--config.crop.seconds=0.3",
    "--config.clip_seconds=1.0",
    "--config.batch_size=16",
    "--config.optimizer.warmup=1 step",
    "--config.folds=3",
)

ROOT = pathlib.Path(__file__).parents[1]
# Not optimised by LLVM: most of a test's time is compilation.
XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def environment(**more: str) -> dict[str, str]:
    """The environment of every run, and `more`."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "CRYJAX_SUBJECT_KEY": os.environ.get("CRYJAX_SUBJECT_KEY", f"{_OWN.name}/subject-key"),
        "XLA_FLAGS": XLA_FLAGS,
        "JAX_COMPILATION_CACHE_DIR": _CACHE,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none",
        **more,
    }


def _fake(devices: int) -> str:
    return f"--xla_force_host_platform_device_count={devices}"


def start(program: str, *arguments: object, devices: int = 1) -> subprocess.Popen:
    """Starts `python -m cryjax.PROGRAM` with this many (fake) CPU devices."""
    return subprocess.Popen(
        [sys.executable, "-m", f"cryjax.{program}", *map(str, arguments)],
        cwd=ROOT,
        env=environment(XLA_FLAGS=f"{_fake(devices)} {XLA_FLAGS}"),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen) -> subprocess.CompletedProcess:
    """Waits for a process and returns its output."""
    try:
        out, err = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"a program hangs: {process.communicate()[1][-2000:]}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@functools.cache
def _zygote() -> subprocess.Popen:
    """The process that `run` forks programs from; it ends when its standard input closes."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.zygote"],
        cwd=ROOT,
        env=environment(),
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def run(program: str, *arguments: object, devices: int = 1) -> subprocess.CompletedProcess:
    """Runs a program to its end, like `start` but without the time for imports."""
    zygote = _zygote()
    wanted = {
        "program": program,
        "arguments": [str(argument) for argument in arguments],
        "environment": environment(XLA_FLAGS=f"{_fake(devices)} {XLA_FLAGS}"),
    }
    zygote.stdin.write(json.dumps(wanted) + "\n")
    zygote.stdin.flush()
    answered, _, _ = select.select([zygote.stdout], [], [], 300)
    if not answered:
        zygote.kill()
        _zygote.cache_clear()
        raise AssertionError(f"a program hangs: {program} {' '.join(wanted['arguments'])}")
    return subprocess.CompletedProcess(wanted["arguments"], *json.loads(zygote.stdout.readline()))


def succeed(program: str, *arguments: object, devices: int = 1) -> subprocess.CompletedProcess:
    """Runs a program that must succeed."""
    done = run(program, *arguments, devices=devices)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def refuse(program: str, *arguments: object, devices: int = 1) -> str:
    """Runs a program that must exit with status 2 and one line that says why; returns it."""
    done = run(program, *arguments, devices=devices)
    assert done.returncode == 2, (done.returncode, done.stderr[-3000:])
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    said = [line for line in done.stderr.splitlines() if f"{program}: error:" in line]
    assert len(said) == 1, done.stderr
    return said[0]


def events(folder: pathlib.Path) -> Iterator[event_pb2.Event]:
    """TensorBoard's events of a run."""
    for file in sorted(folder.glob("events.out.tfevents.*")):
        data, place = file.read_bytes(), 0
        while place < len(data):  # length, its checksum, the event, its checksum
            length = int.from_bytes(data[place : place + 8], "little")
            yield event_pb2.Event.FromString(data[place + 12 : place + 12 + length])
            place += 16 + length
