"""The planning program: what it reports, its exit status, and its errors."""

import importlib.util
import re
import types

import numpy as np
import pytest

import programs
from cryjax import plan
from cryjax.command import config as config_lib
from cryjax.data.records import open_prepared

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason='compiling for a TPU needs libtpu: pip install "cryjax[test]" on Linux',
)
NARROW = (
    "--config=configs/pretrain.py",
    "--config.encoder.name=cnn6",
    "--config.encoder.width=0.0625",
    "--config.head.hidden=16",
    "--config.head.features=8",
    "--config.front_end=small_8k",
    "--config.clip_seconds=0.2",
    "--config.crop.seconds=0.05",
    "--config.transforms=('mix','gain')",
)


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found, (pattern, text)
    return float(found[1])


def test_reports_one_slice(prepared):
    done = programs.succeed(
        "plan", *NARROW, "--topology=v5e:2x2", f"--config.data={prepared}",
        "--config.batch_size=16", "--config.total=30 epochs",
    )  # fmt: skip
    said = done.stdout
    assert said.startswith(
        "v5e:2x2: 4 chips, 1 host(s); cnn6 of width 0.0625, bfloat16; 16 examples"
    )
    assert "of 15.75 GiB per chip: fits, 15.7" in said
    collectives = re.findall(r"^  (all-\w+) ", said, re.MULTILINE)
    assert number(r"collectives  (\d+)", said) == len(collectives) == 13
    milliseconds = number(r"no step under ([\d.e-]+) ms", said)
    # 60 examples in the dataset, 16 per step, 30 epochs.
    assert number(r"30 epochs, (\d+) steps", said) == 112
    # 0.2 s at 8 kHz is 1600 samples of 2 bytes; one host reads the whole batch.
    clips = number(r"at that pace ([\d.]+) clips", said)
    assert clips == pytest.approx(16 / (milliseconds / 1e3), rel=0.01)
    assert number(r"and ([\d.]+) MB/s of int16", said) == pytest.approx(clips * 3200 / 1e6, abs=1)


def test_counts_the_examples_that_the_run_would_train_on(prepared):
    config = config_lib.load(programs.ROOT / "configs" / "pretrain_small.py")
    config.update({"data": str(prepared), "front_end": "small_8k"})
    assert plan.count_examples(config) == 60
    subjects = open_prepared(prepared).index().subjects
    config.exclude_subjects = str(subjects[0])
    assert plan.count_examples(config) == 60 - np.sum(subjects == subjects[0])


@pytest.mark.slow
def test_compares_slices_and_tells_by_its_status_that_one_does_not_fit():
    # Eight clips of 41 hours per chip are 18 GiB, their two views twice as much.
    done = programs.run(
        "plan", *NARROW, "--compare=v5e:2x2,v5p:2x2x1", "--per_chip=8",
        "--config.clip_seconds=150000", "--config.total=3 steps", "--config.optimizer.warmup=0",
    )  # fmt: skip
    assert done.returncode == 3, done.stderr[-3000:]
    lines = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| v5")]
    assert [line[:4] for line in lines] == [
        ["| v5e:2x2", "4", "1", "32"],
        ["| v5p:2x2x1", "4", "1", "32"],
    ]
    assert [line[5] for line in lines] == ["no", "yes"]
    # The memory in XLA's error is the sum that is reported where it fits.
    needed = [float(line[4].partition(" of ")[0]) for line in lines]
    assert needed[0] == pytest.approx(needed[1], rel=0.01) and needed[0] > 3 * 17.8
    assert lines[0][6] == "-" and lines[1][9] == "13"


def test_advised_chunks_divide_the_examples_of_a_chip():
    config = config_lib.load(programs.ROOT / "configs" / "pretrain.py")
    config.update({"batch_size": 60})
    config.memory.update({"chunks": 4})
    where = types.SimpleNamespace(devices=range(4))  # 15 each
    said = plan.remedies(plan.Job(where, config, None), types.SimpleNamespace(fitting_share=0.5))
    assert "--config.memory.chunks=15 or more" in said
    config.memory.update({"chunks": 15})
    said = plan.remedies(plan.Job(where, config, None), types.SimpleNamespace(fitting_share=0.5))
    assert "chunks" not in said


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--topology=v5e16"], "v5e:4x4 or v6e:16x16"),
        (["--topology=v5e:3x5"], "does not know this shape"),
        (["--topology=v5e:2x4", "--config.batch_size=36"], "config.batch_size=36 is not divisible"),
        (["--topology=v5e:2x2", "--config.parallel=pmap"], "config.parallel='pmap'"),
        (["--topology=v5e:2x2", "--config.data=/nowhere"], "/nowhere is not a prepared dataset"),
        ([], "--topology is missing"),
    ],
)
def test_mistakes_get_one_line(change, named):
    assert named in programs.refuse("plan", *NARROW, *change)
