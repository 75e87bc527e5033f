"""One step, however it is spread over devices, is the step of one device on the full batch."""

import contextlib
import itertools
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

import programs
from cryjax.command.errors import Unavailable, UserError
from cryjax.training import parallel
from cryjax.training.watch import Watch

SCRIPT = pathlib.Path(__file__).with_name("devices.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("devices") / "out.npz"
    subprocess.run(
        [sys.executable, SCRIPT, out], check=True, timeout=400, env=programs.environment()
    )
    with np.load(out) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    out = tmp_path_factory.mktemp("processes") / "out.npz"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    both = [
        subprocess.Popen(
            [sys.executable, SCRIPT, out],
            env=programs.environment(
                CRYJAX_COORDINATOR=address, CRYJAX_PROCESSES="2", CRYJAX_PROCESS=str(place)
            ),
        )
        for place in range(2)
    ]
    try:
        assert [process.wait(timeout=300) for process in both] == [0, 0]
    finally:
        for process in both:
            process.kill()
    with np.load(out) as arrays:
        return dict(arrays)


def difference(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("form", ["jit/dense", "jit/blocks", "pmap/dense", "pmap/blocks"])
def test_gradient_of_the_loss(found, form):
    assert difference(found[f"gradient/{form}"], found["gradient/one"]) < 2e-6


@pytest.mark.parametrize(
    "fault",
    [
        "gather",
        "local negatives",
        "device count",
        "label offsets, dense",
        "label offsets, blocks",
    ],
)
def test_known_faults_would_be_seen(found, fault):
    assert difference(found[f"gradient/fault/{fault}"], found["gradient/one"]) > 0.05


def test_local_batch_statistics_would_be_seen(found):
    for key in ("step0/metrics/loss", "['stats']['encoder']['block1']['norm1']['var']"):
        right = found[f"sgd/jit1/{key}"] if "step0" in key else found[f"sgd/jit8/{key}"]
        assert difference(found[f"fault/local statistics/{key}"], right) > 2e-4, key


@pytest.mark.parametrize(
    ("optimizer", "spread"),
    [
        *itertools.product(["sgd", "supervised"], ["jit8", "pmap8"]),
        ("adamw", "jit8"),
        ("lars", "jit8"),
        ("sgd", "jit8 tiled"),
    ],
)
def test_whole_step(found, optimizer, spread):
    one = {k: v for k, v in found.items() if k.startswith(f"{optimizer}/jit1/")}
    assert len(one) > 25
    for key, value in one.items():
        other = found[key.replace("jit1", spread)]
        if value.dtype.kind in "iu":
            np.testing.assert_array_equal(other, value, err_msg=key)
            continue
        # Rounding differs with the order of sums, and grows over three steps through batch norm.
        scale = np.abs(value).max() + 1e-3
        np.testing.assert_allclose(other, value, atol=2e-3 * scale, err_msg=key)
        if "step0" in key:
            np.testing.assert_allclose(other, value, rtol=2e-3, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("kind", ["lars", "supervised", "sgd tiled"])
def test_two_processes_are_one_device(found, of_two_processes, kind):
    here = {k: v for k, v in of_two_processes.items() if k.startswith(f"{kind}/step0/")}
    assert len(here) > 25
    for key, value in here.items():
        one = found[key.replace(f"{kind}/", f"{kind.split()[0]}/jit1/", 1)]
        if value.dtype.kind in "iu":
            np.testing.assert_array_equal(value, one, err_msg=key)
        else:
            scale = np.abs(one).max() + 1e-3
            np.testing.assert_allclose(value, one, atol=2e-3 * scale, err_msg=key)


@pytest.mark.parametrize("spread", ["jit8", "pmap8"])
def test_loss_curve(found, spread):
    for n in range(3):
        loss = found[f"sgd/{spread}/step{n}/metrics/loss"]
        np.testing.assert_allclose(loss, found[f"sgd/jit1/step{n}/metrics/loss"], rtol=2e-5)


def test_values_of_all_devices_are_copied_to_one(found, of_two_processes):
    for values in (found, of_two_processes):
        np.testing.assert_array_equal(values["to one device"], np.arange(6))


@pytest.mark.parametrize(
    "where",
    [
        {},
        {"CRYJAX_PROCESSES": "2", "CRYJAX_PROCESS": "2"},
        {"CRYJAX_PROCESSES": "2", "CRYJAX_PROCESS": "1", "CRYJAX_COORDINATOR": "localhost"},
    ],
)
def test_a_process_that_is_not_told_which_it_is_is_refused(monkeypatch, where):
    for name in ("CRYJAX_PROCESSES", "CRYJAX_PROCESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"CRYJAX_COORDINATOR": "localhost:1", **where}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="needs CRYJAX_PROCESSES, how many there are"):
        parallel.join_processes()


def test_others_that_do_not_come_may_come_another_time(monkeypatch):
    def initialize(**_):
        raise RuntimeError("DEADLINE_EXCEEDED: 1 of 2 tasks")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setenv("CRYJAX_COORDINATOR", "auto")
    with pytest.raises(Unavailable, match=r"cannot find each other .* 1 of 2 tasks"):
        parallel.join_processes()


def test_a_process_that_hangs_before_training_is_not_waited_for_for_ever(monkeypatch):
    watched = []

    class Watching(Watch):
        @contextlib.contextmanager
        def over(self, what, *_, most_seconds):
            watched.append((what, most_seconds))
            yield
            watched.clear()

    def gather(values):
        assert watched == [("the other processes did not come", 6 * 3600)]
        return np.stack([values, values])

    monkeypatch.setattr(parallel, "Watch", Watching)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(parallel.multihost_utils, "process_allgather", gather)
    assert parallel.everyone(np.arange(3)).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert not watched


def test_only_known_ways_over_devices():
    with pytest.raises(ValueError, match="use one of"):
        parallel.Parallel("pjit")
