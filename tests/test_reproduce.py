"""The experiment: resumes after any stop to the same table, trains on no test subject."""

import csv
import json
import shutil
import signal
import time

import pytest
from matplotlib import image

import programs
from cryjax import pretrain
from cryjax.command import config as config_lib
from cryjax.data import loader
from cryjax.data.records import open_prepared
from cryjax.evaluation import folds

TINY = ("--config=tests/tiny_experiment.py",)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment") / "whole"
    done = programs.succeed("reproduce", *TINY, f"--workdir={folder}")
    return folder, done


def wait_for(path, process):
    deadline = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_leaves_what_it_promises(whole):
    folder, done = whole
    for name in ("table.md", "table.csv", "label_efficiency.png", "report.html"):
        assert (folder / name).stat().st_size > 500
    assert "SYNTHETIC" in done.stdout.upper()
    with (folder / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(r["row"], r["method"], float(r["fraction"])) for r in rows} == {
        (row, method, fraction)
        for row in ("scratch", "simclr+adapted")
        for method, fraction in (("probe", 0.5), ("probe", 1.0), ("finetune", 1.0))
    }
    # Each seed has an untrained encoder of its own, with all labels too.
    found = {path.stem for path in (folder / "embeddings").iterdir()}
    assert found == {"scratch-injury-0", "scratch-injury-1", "simclr+adapted-injury"}
    seeds = {(r["row"], r["method"]): r["seeds"] for r in rows if float(r["fraction"]) == 1}
    assert seeds["scratch", "probe"] == "2" and seeds["simclr+adapted", "probe"] == "1"
    for row in rows:
        if row["metric"] == "accuracy":
            assert 0 <= float(row["low"]) <= float(row["value"]) <= float(row["high"]) <= 1
        if row["metric"] == "macro_auc":  # without an interval: only one subject is positive
            assert 0 <= float(row["value"]) <= 1 and not row["low"] + row["high"]


@pytest.mark.parametrize(
    ("sign", "number"),
    [
        ("data/general", signal.SIGINT),
        ("runs/simclr/checkpoints", signal.SIGTERM),
        pytest.param("data/general", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("runs/simclr/checkpoints", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_told_to_stop_it_says_that_it_goes_on(whole, tmp_path, number, sign):
    """Between runs as well as in one."""
    folder = tmp_path / "stopped"
    process = programs.start("reproduce", *TINY, f"--workdir={folder}")
    wait_for(folder / sign, process)
    process.send_signal(number)
    done = programs.finish(process)
    assert done.returncode == 75 and "Traceback" not in done.stderr, done.stderr[-3000:]
    assert "stopping: " in done.stderr and "the same command resumes" in done.stderr


@pytest.mark.slow
def test_stopped_at_any_point_it_ends_with_the_same_table(whole, tmp_path):
    folder = tmp_path / "stopped"
    shutil.copytree(whole[0] / "data", folder / "data")
    command = ("reproduce", *TINY, f"--workdir={folder}")
    # In adaptation; among the probes; after a fine-tuning's last step, before its result.
    last = "tuned/injury/scratch/1-0-0/checkpoints/4"
    for sign in ("runs/simclr+adapted", "cells/injury", last):
        process = programs.start(*command)
        wait_for(folder / sign, process)
        process.send_signal(signal.SIGKILL)
        programs.finish(process)
        assert not (folder / "table.csv").exists()
    assert not (folder / last).parents[1].joinpath("result.json").exists()
    made = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/result.json")}
    programs.succeed(*command)
    assert made == {path: path.stat().st_mtime_ns for path in made}
    for name in ("table.csv", "table.md"):
        assert (folder / name).read_text() == (whole[0] / name).read_text()


def test_another_config_is_refused_and_more_cells_are_not(whole):
    folder, _ = whole
    said = programs.refuse(
        "reproduce", *TINY, f"--workdir={folder}", "--config.pretrain.temperature=0.3"
    )
    assert "pretrain.temperature: 0.2 -> 0.3" in said
    before = {path: path.stat().st_mtime_ns for path in folder.glob("cells/*/*.npz")}
    programs.succeed(
        "reproduce", *TINY, f"--workdir={folder}", "--config.probe.fractions=(0.5, 0.8, 1.0)"
    )
    after = {path: path.stat().st_mtime_ns for path in folder.glob("cells/*/*.npz")}
    assert before.items() < after.items() and len(after) == len(before) + 4
    with (folder / "table.csv").open(newline="") as file:
        assert "0.8" in {row["fraction"] for row in csv.DictReader(file)}


@pytest.mark.parametrize(
    ("without", "left", "name"),
    [("finetune", "probe", "linear probe"), ("probe", "finetune", "fine-tuning")],
)
def test_a_method_without_shares_is_left_out(whole, without, left, name):
    """From the cells already there, so that nothing is trained."""
    folder, _ = whole
    programs.succeed("reproduce", *TINY, f"--workdir={folder}", f"--config.{without}.fractions=()")
    with (folder / "table.csv").open(newline="") as file:
        assert {row["method"] for row in csv.DictReader(file)} == {left}
    for file in ("table.md", "report.html"):
        text = (folder / file).read_text(encoding="utf-8").partition('<h2 id="again"')[0]
        assert [said for said in ("linear probe", "fine-tuning") if said in text] == [name]
    assert image.imread(folder / "label_efficiency.png").shape[1] < 1000  # one panel


def test_adaptation_sees_no_test_subject(whole):
    """What the experiment excludes from `pretrain` is in none of its batches."""
    folder, _ = whole
    recipe = config_lib.load(programs.ROOT / "configs" / "pretrain_small.py")
    written = json.loads((folder / "runs" / "simclr+adapted" / "config.json").read_text())
    assert written["exclude_subjects"]
    recipe.data, recipe.exclude_subjects = written["data"], written["exclude_subjects"]
    tested = set(open_prepared(folder / "data" / "injury").index("test").subjects)
    assert tested == folds.subjects_of(written["exclude_subjects"])
    unlabelled = open_prepared(written["data"])
    held = unlabelled.source("train")
    of_tested = {
        held[place]["audio"].tobytes()
        for place in range(len(held))
        if held[place]["subject"] in tested
    }
    assert of_tested, "no test subject is among the unlabelled: this would show nothing"
    samples = max(len(held[place]["audio"]) for place in range(len(held)))
    sources = pretrain.sources_of(recipe, pretrain.open_datasets(recipe, unlabelled.sample_rate))
    sources = [(source, weight) for _, source, weight in sources]
    clips = loader.Clips(sources, samples=samples, seed=0)
    batches = loader.Batches(clips, 16).since(0)
    seen = set()
    for _ in range(2 * len(held) // 16):
        batch = next(batches)
        for audio, length in zip(batch["audio"], batch["length"], strict=True):
            seen.add(audio[:length].tobytes())
    assert len(seen) == len(sources[0][0]) == len(held) - len(of_tested)
    assert not seen & of_tested


def test_mistakes_get_one_line(tmp_path):
    """All in one folder, whose data are prepared once."""
    run = f"--workdir={tmp_path / 'run'}"
    for change, says in (
        ("--config.tune.front_end=panns_16k", "config.pretrain.front_end and config.tune"),
        (
            "--config.adapt.exclude_subjects=Ann",
            "an experiment sets it, to all test subjects",
        ),
        ("--config.tune.dropout=2", "config.tune.dropout=2"),
        ("--config.rows=('best',)", "config.rows"),
        ("--config.finetune.seeds=()", "config.finetune.seeds=()"),
        ("--config.general=--manifest=/none.csv", "preparing 'general' failed"),
        ("--config.general=none.csv", "as a flag of prepare, --manifest=none.csv"),
        (
            "--config.general=--manifest=our clinic.csv",
            "unexpected argument 'clinic.csv'; write flags",
        ),
        ("--config.general=--manifest=O'Neill.csv", "must itself be quoted, as in --manifest="),
        ("--config.adapt.batch_size=64", "config.adapt.batch_size=64 is more than the"),
        ("--config.adapt.optimizer.warmup=9 steps", "config.adapt.optimizer.warmup='9 steps'"),
        ("--config.tune.optimizer.warmup=9 steps", "config.tune.optimizer.warmup='9 steps'"),
        ("--config.tasks.injury.positive=joy", "config.positive='joy'"),
    ):
        said = programs.refuse("reproduce", *TINY, run, change)
        assert says in said
    neither = (f"--config.{method}.fractions=()" for method in ("probe", "finetune"))
    said = programs.refuse("reproduce", *TINY, run, *neither)
    assert "both empty" in said
