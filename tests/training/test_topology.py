"""The real step compiled for slices of every generation: memory, donation, collectives, growth."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from cryjax.command.errors import UserError
from cryjax.training import topology

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason='compiling for a TPU needs libtpu: pip install "cryjax[test]" on Linux',
)
GROWING = ("v5e:2x4", "v5e:4x8")
OTHERS = ("v4:2x2x4", "v5p:2x2x4", "v6e:4x4")
SLICES = (*GROWING, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS))
CHUNKED = "v5e:2x2"
PER_CHIP, FEATURES, BLOCKS = 16, 8, 4  # of slices.py


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What slices.py finds, by slice. libtpu wants a process of its own; two share the work."""
    return run(tmp_path_factory, {"one.json": ("1", *GROWING), "chunks.json": ("2", CHUNKED)})


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """The same of the other generations."""
    return run(tmp_path_factory, {"two.json": ("1", *OTHERS)})


@pytest.fixture
def plan_of(request):
    """The plan of a slice, whichever process found it."""
    return lambda name: request.getfixturevalue("found" if name in GROWING else "others")[name]


def run(tmp_path_factory, work):
    out = tmp_path_factory.mktemp("slices")
    script = pathlib.Path(__file__).with_name("slices.py")
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    running = [
        subprocess.Popen([sys.executable, script, out / name, *arguments], env=environment)
        for name, arguments in work.items()
    ]
    try:
        assert [process.wait(timeout=900) for process in running] == [0] * len(running)
    finally:
        for process in running:
            process.kill()
    return {k: v for name in work for k, v in json.loads((out / name).read_text()).items()}


def sums(plan, kind, *, backward=False, place="norm"):
    """The collectives of batch norm, forward or backward."""
    return [
        c
        for c in plan["collectives"]
        if c["kind"] == kind and place in c["origin"] and ("backward" in c["origin"]) == backward
    ]


@pytest.mark.parametrize("name", SLICES)
def test_fits_and_donates_the_state(plan_of, name):
    plan = plan_of(name)
    assert plan["fits"] and plan["memory"]["needed"] < 2**28
    # What the old state took, the new one takes, all of it; only the metrics come beside. (Small
    # arrays are padded to tiles, so that they take more than they hold.)
    assert plan["memory"]["in_place"] >= plan["bytes"]["state"]
    assert plan["memory"]["results"] - plan["memory"]["in_place"] < 8192
    # Of the arguments, only batch and key are not given up: 1600 samples of int16 each.
    assert plan["memory"]["arguments"] - plan["memory"]["in_place"] < PER_CHIP * 1600 * 2 + 4096


@pytest.mark.parametrize("name", SLICES)
def test_every_collective_has_its_reason(plan_of, name):
    plan = plan_of(name)
    # Each batch norm reduces mean and square on the way in, and their gradients on the way back;
    # the first has none to pass on, for nothing before it is trained.
    assert len(sums(plan, "all-reduce")) == BLOCKS + 1
    assert len(sums(plan, "all-reduce", backward=True)) == BLOCKS
    # The projections of either view, for the negatives. The metrics use the same.
    gathers = [c for c in plan["collectives"] if c["kind"] == "all-gather"]
    assert [c["bytes"] for c in gathers] == [PER_CHIP * FEATURES * 4] * 2
    # All gradients and the loss in one.
    gradients = [c for c in plan["collectives"] if c["arrays"] > 10]
    assert [c["arrays"] for c in gradients] == [plan["arrays"]["params"] + 1]
    # XLA leaves out some conversions: the dense layer's bias, say, is still in bfloat16 there.
    (sent,) = (c["bytes"] for c in gradients)
    assert 0.99 * plan["bytes"]["params"] < sent <= plan["bytes"]["params"] + 4
    # Gradients that flow back through the gathers, to the devices that the projections are of.
    back = [c for c in plan["collectives"] if not c["origin"]]
    assert [c["bytes"] for c in back] == [2 * plan["chips"] * PER_CHIP * FEATURES * 4]
    assert len(plan["collectives"]) == (BLOCKS + 1) + BLOCKS + 2 + 1 + 1
    assert all(c["group"] == plan["chips"] and c["times"] == 1 for c in plan["collectives"])


def test_nothing_grows_with_the_slice_that_should_not(found):
    plans = [found[name] for name in GROWING]
    chips = [plan["chips"] for plan in plans]
    assert chips == [8, 32]
    for plan in plans[1:]:
        more = (plan["chips"] - chips[0]) * PER_CHIP
        # Two views, gathered, whole and normalised, and similarities with them: forward, backward.
        gathered = 2 * more * (128 + 2 * PER_CHIP) * 4  # a row of features is padded to 128
        assert plan["memory"]["temporaries"] - plans[0]["memory"]["temporaries"] < 8 * gathered
        assert plan["memory"]["in_place"] == plans[0]["memory"]["in_place"]
        assert abs(plan["memory"]["arguments"] - plans[0]["memory"]["arguments"]) < 4096
        # Three products with the similarities of 2 x 16 rows; two of all views among the metrics.
        products = 3 * 2 * (2 * PER_CHIP) * (2 * more) * FEATURES
        everyone = 2 * plan["chips"] * PER_CHIP
        metrics = 2 * everyone * everyone * FEATURES + 2 * everyone * FEATURES * FEATURES
        assert 0 <= plan["operations"] - plans[0]["operations"] <= products + metrics
        same = [[c["bytes"] for c in p["collectives"] if c["origin"]] for p in (plan, plans[0])]
        assert same[0] == same[1]


def test_chunks_repeat_their_collectives(found):
    plan = found[CHUNKED]
    assert plan["fits"]
    norms = sums(plan, "all-reduce")
    # Encoded once for the loss and once more to pull its gradient back, twice each.
    assert len(norms) == 2 * (BLOCKS + 1) and {c["times"] for c in norms} == {2}
    assert {c["times"] for c in sums(plan, "all-reduce", backward=True)} == {2}
    gradients = [c for c in plan["collectives"] if c["arrays"] > 10]
    assert [c["times"] for c in gradients] == [1]


def convolutions(frames: int, mels: int, width: float = 1 / 16) -> list[int]:
    """Operations of each convolution of a CNN6 on one view, padding left out."""
    before, counts = 1, []
    for channels in (64, 128, 256, 512):
        after = int(channels * width)

        def taps(size):
            return sum(min(i + 2, size - 1) - max(i - 2, 0) + 1 for i in range(size))

        counts.append(2 * taps(frames) * taps(mels) * before * after)
        before, frames, mels = after, max(frames // 2, 1), max(mels // 2, 1)
    return counts


@pytest.mark.parametrize("name", SLICES)
def test_operations_are_those_of_the_network(plan_of, name):
    plan = plan_of(name)
    views = 2 * PER_CHIP
    each = convolutions(frames=6, mels=40)
    # Forward, to the kernels, to the inputs (of the first convolution for batch norm's scale).
    network = 3 * views * sum(each)
    dense = 3 * views * 2 * (32 * 32 + 32 * 16 + 16 * FEATURES)
    front_end = views * 2 * (6 * 256 * 258 + 6 * 129 * 40)
    everyone = 2 * plan["chips"] * PER_CHIP
    loss = 3 * 2 * views * everyone * FEATURES
    metrics = 2 * everyone * everyone * FEATURES + 2 * everyone * FEATURES * FEATURES
    expected = network + dense + front_end + loss + metrics
    assert plan["operations"] == pytest.approx(expected, rel=0.01)


def test_bounds_are_of_the_chip(found):
    for name in GROWING:
        plan, chip = found[name], topology.CHIPS[name.partition(":")[0]]
        assert plan["seconds"]["compute"] == plan["operations"] / chip.flops
        assert plan["seconds"]["memory"] == plan["traffic"] / chip.memory_rate
        assert 0 < plan["seconds"]["links"] < 1e-3


def test_hosts(found):
    assert [found[name]["hosts"] for name in GROWING] == [2, 8]
    assert found["hosts of v5e:16x16"] == 64


def test_refuses_what_is_no_slice(found):
    for name, said in found["refused"].items():
        assert f"--topology={name!r}" in said and "v5e:4x4" in said and "\n" not in said


def test_names_the_extra_that_brings_the_compiler(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "cryjax\[tpu\]"'):
        topology.find_slice("v5e:2x2")


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 24.35G of 15.75G hbm.",
            24.35,
        ),
        (
            "RESOURCE_EXHAUSTED: ... for HLO temporaries (260.00G) exceeds available HBM (15.75G).",
            260,
        ),
    ],
)
def test_reads_how_much_a_refused_step_needs(message, needed):
    assert topology.needed_memory(message) == pytest.approx(needed * 2**30)
    assert topology.needed_memory("INTERNAL: Used 3G of 4G hbm") is None
