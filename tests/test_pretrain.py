"""The pre-training program: resumes bit for bit, spreads over devices, rejects mistakes."""

import dataclasses
import json
import pathlib
import signal
import time
import types

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from matplotlib import image

import programs
from cryjax import pretrain
from cryjax.command.errors import UserError
from cryjax.data.records import open_prepared
from cryjax.training import parallel, simclr

STEPS = 30


@pytest.fixture(scope="module")
def undisturbed(prepared, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "undisturbed"
    done = programs.succeed(
        "pretrain", *programs.TINY, f"--workdir={run}", f"--config.data={prepared}",
        "--config.pictures_every=30 steps",
    )  # fmt: skip
    run.with_name("said").write_text(done.stderr)
    return run


def history(run: pathlib.Path) -> list[dict[str, float]]:
    """metrics.jsonl, without timings."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    timed = ("clips_per_second", "waiting_for_data")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def arrays(run: pathlib.Path, step: int = STEPS) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, by item and path."""
    found = {}
    for item in ("encoder", "head", "optimizer"):
        with ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.restore((run / "checkpoints" / str(step) / item).absolute())
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            found[f"{item}{path}"] = np.asarray(leaf)
    return found


def test_leaves_what_it_promises(undisturbed):
    said = undisturbed.with_name("said").read_text()
    lines = history(undisturbed)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    expected = {"loss", "contrastive_accuracy", "alignment", "uniformity", "effective_rank"}
    assert expected | {"gradient_norm", "learning_rate"} <= lines[0].keys()
    assert np.mean([x["loss"] for x in lines[-5:]]) < np.mean([x["loss"] for x in lines[:5]])
    result = json.loads((undisturbed / "result.json").read_text())
    assert result["steps"] == STEPS and result["synthetic"] is True
    assert json.loads((undisturbed / "config.json").read_text())["batch_size"] == 32
    steps = {p.name for p in (undisturbed / "checkpoints").iterdir() if p.name.isdigit()}
    assert steps == {"25", "30"}
    images = [
        (value.tag, event.step)
        for event in programs.events(undisturbed)
        for value in event.summary.value
        if value.image.encoded_image_string
    ]
    pictured = [("views", 0), ("embeddings", 0), ("views", STEPS), ("embeddings", STEPS)]
    assert sorted(images) == sorted(pictured)
    assert "what is trained" in said and "block4" in said and said.count("starting fresh") == 1
    for name in ("views", "training"):
        assert image.imread(undisturbed / "figures" / f"{name}.png").std() > 0.05


def wait_for(condition, process):
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("how", "status"), [(signal.SIGTERM, 75), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_stopped_run_goes_on_bit_for_bit(undisturbed, prepared, tmp_path, how, status):
    run = tmp_path / "stopped"
    command = ("pretrain", *programs.TINY, f"--workdir={run}", f"--config.data={prepared}")
    process = programs.start(*command)
    wait_for(lambda: (run / "checkpoints" / "5").exists(), process)
    process.send_signal(how)
    stopped = programs.finish(process)
    assert stopped.returncode == status, stopped.stderr[-3000:]
    assert ("is saved; the same command resumes" in stopped.stderr) == (status == 75)
    assert not (run / "result.json").exists()
    again = programs.succeed(*command)
    assert "resuming from step" in again.stderr and "not bit for bit" not in again.stderr
    assert history(run) == history(undisturbed)
    ours, theirs = arrays(run), arrays(undisturbed)
    assert ours.keys() == theirs.keys() and len(ours) > 50
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


@pytest.mark.slow
def test_eight_devices_follow_the_same_course(undisturbed, prepared, tmp_path):
    run = tmp_path / "eight"
    done = programs.succeed(
        "pretrain", *programs.TINY, f"--workdir={run}", f"--config.data={prepared}",
        devices=8,
    )  # fmt: skip
    assert "jit of shard_map over 8" in done.stderr
    ours, theirs = (np.array([line["loss"] for line in history(r)]) for r in (run, undisturbed))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    # Rounding grows from step to step.
    np.testing.assert_allclose(ours, theirs, rtol=2e-2)
    np.testing.assert_allclose(ours[:8], theirs[:8], rtol=1e-3)


@pytest.mark.slow
def test_pmap_over_eight_devices_starts_alike(undisturbed, prepared, tmp_path):
    done = programs.succeed(
        "pretrain", *programs.TINY, f"--workdir={tmp_path}", f"--config.data={prepared}",
        "--config.parallel=pmap", "--config.total=2 steps", "--config.optimizer.warmup=1 step",
        devices=8,
    )  # fmt: skip
    assert "pmap over 8" in done.stderr
    ours, theirs = (history(run)[0]["loss"] for run in (tmp_path, undisturbed))
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_the_processes_of_a_job_end_together(monkeypatch):
    done = []
    monkeypatch.setattr(pretrain, "run", lambda *_, **__: done.append("run"))
    monkeypatch.setattr(parallel, "everyone", lambda _: done.append("waited for"))
    pretrain.main(None, "RUN", views=False)
    assert done == ["run", "waited for"]


def test_a_batch_may_not_hold_examples_twice(prepared):
    data = open_prepared(prepared)
    source = data.source("train")
    few = data.at(data.index()[:10])
    with pytest.raises(UserError, match=r"of a batch of 16, 14 would come from .* has 10 examples"):
        pretrain.check_shares(16, pretrain.Data([], [(data, source, 1.0), (data, few, 50.0)]))
    pretrain.check_shares(16, pretrain.Data([], [(data, source, 1.0), (data, few, 1.0)]))


def test_who_is_excluded_may_be_in_a_split_that_is_not_trained_on(monkeypatch):
    """That is fine; a subject found nowhere is misspelt, or of another key."""
    held = {"train": np.array(["ann", "bob"]), "test": np.array(["cid"])}

    def index(*splits):
        return types.SimpleNamespace(
            subjects=np.concatenate([held[split] for split in splits or held])
        )

    prepared = types.SimpleNamespace(
        directory="D", subject_key="", index=index, source=held.__getitem__
    )
    monkeypatch.setattr(pretrain, "subjects_of", lambda entry: {entry})
    monkeypatch.setattr(pretrain, "without", lambda prepared, split, excluded: (held[split], 0))
    config = types.SimpleNamespace(split="train", exclude_subjects="cid")
    ((_, source, _),) = pretrain.sources_of(config, [(prepared, 1.0)])
    assert len(source) == 2
    config.exclude_subjects = "cid, dan"
    with pytest.raises(UserError, match=r"no subject of 'dan' is in config\.data"):
        pretrain.sources_of(config, [(prepared, 1.0)])


def test_a_run_does_not_go_on_if_others_are_excluded_by_the_same_manifest(prepared, tmp_path):
    subjects = sorted(set(open_prepared(prepared).index().subjects))
    manifest = tmp_path / "test.csv"
    command = (
        "pretrain", *programs.TINY, f"--workdir={tmp_path / 'run'}", f"--config.data={prepared}",
        f"--config.exclude_subjects={manifest}", "--config.total=1 step",
        "--config.optimizer.warmup=0", "--config.pictures_every=0",
    )  # fmt: skip
    manifest.write_text(f"path,subject\na.wav,{subjects[0]}\n")
    programs.succeed(*command)
    programs.succeed(*command)
    manifest.write_text(f"path,subject\na.wav,{subjects[1]}\n")
    assert "different recordings than when this run began" in programs.refuse(*command)


def test_adaptation_starts_from_another_runs_encoder(undisturbed, prepared, tmp_path):
    run = tmp_path / "adapted"
    done = programs.succeed(
        "pretrain", *programs.TINY, f"--workdir={run}", f"--config.data={prepared}",
        f"--config.init={undisturbed}", "--config.total=1 step",
        "--config.optimizer.warmup=0", "--config.optimizer.learning_rate=1e-12",
    )  # fmt: skip
    assert f"starting from the encoder of {undisturbed}" in done.stderr
    ours, theirs = arrays(run, 1), arrays(undisturbed)
    kernels = [name for name in theirs if name.startswith("encoder") and "kernel" in name]
    assert kernels
    for name in kernels:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-6, err_msg=name)
    fresh = [name for name in theirs if name.startswith("head") and "kernel" in name]
    assert any(not np.allclose(ours[name], theirs[name], atol=1e-3) for name in fresh)


def test_neighbours_and_views_alone(prepared, tmp_path):
    run = tmp_path / "run"
    command = ("pretrain", *programs.TINY, f"--workdir={run}", f"--config.data={prepared}")
    programs.succeed(*command, "--views")
    assert (run / "figures" / "views.png").exists() and not (run / "metrics.jsonl").exists()
    programs.succeed(*command, "--config.total=6 steps", "--config.neighbours.every=3 steps")
    found = [line["neighbour_accuracy"] for line in history(run) if "neighbour_accuracy" in line]
    assert len(found) == 2 and all(0 < x < 1 for x in found)


def test_no_picture_of_a_recording_unless_wanted(prepared, tmp_path):
    programs.succeed(
        "pretrain", *programs.TINY, f"--workdir={tmp_path}", f"--config.data={prepared}",
        "--config.total=4 steps", "--config.pictures_every=0",
    )  # fmt: skip
    assert not (tmp_path / "figures" / "views.png").exists()
    assert not (tmp_path / "projector_config.pbtxt").exists()
    values = [value for event in programs.events(tmp_path) for value in event.summary.value]
    assert values and not any(value.image.encoded_image_string for value in values)


@pytest.mark.parametrize(
    ("change", "devices", "named"),
    [
        (["--config.batch_size=36"], 8, "config.batch_size=36 is not divisible by 8"),
        (["--config.batch_size=64"], 1, "config.batch_size=64 is more than the 60 examples"),
        (["--config.batch_size=-1"], 1, "config.batch_size=-1 is not a whole number"),
        (["--config.optimiser.name=sgd"], 1, "the config has no field 'optimiser'. Did you mean"),
        (["--config.bach_size=8"], 1, "the config has no field 'bach_size'. Did you mean"),
        (["--config.batch_size=many"], 1, "batch_size"),
        (["--config.total=5 weeks"], 1, "config.total='5 weeks' is not a length"),
        (["--config.optimizer.warmup=90 steps"], 1, "config.optimizer.warmup='90 steps'"),
        (["--config.front_end=panns_16k"], 1, "--sample_rate=16000"),
        (["--config.split=test"], 1, "no split 'test'"),
        (["--config.neighbours.every=2 steps", "--config.neighbours.split=x"], 1, "no split 'x'"),
        (["--config.data=/nowhere"], 1, "/nowhere is not a prepared dataset"),
        (["--config.init=/nowhere"], 1, "/nowhere: holds no checkpoints"),
        (["--config.encoder.name=cnn15"], 1, "cnn14"),
        (["--config.transforms=('reverb',)"], 1, "config.transforms"),
        (["--confg=x"], 1, "confg"),
        (["--workdir=gs://bucket/run"], 1, "--workdir=gs://bucket/run is an address"),
        (["more.csv"], 1, "unexpected argument 'more.csv'"),
        (["--config.crop.seconds=2.0"], 1, "config.crop.seconds=2.0 at speeds of up to 1.33"),
        (["--config.crop.seconds=0.9"], 1, "use a clip of 1.197 seconds"),  # for the fastest
        (["--config.total=0"], 1, "config.total='0'"),
    ],
)
def test_mistakes_get_one_line(prepared, tmp_path, change, devices, named):
    workdir = tmp_path / "run"
    said = programs.refuse(
        "pretrain", *programs.TINY, f"--workdir={workdir}", f"--config.data={prepared}", *change,
        devices=devices,
    )  # fmt: skip
    assert named in said
    assert not (workdir / "metrics.jsonl").exists()


def test_a_dataset_named_twice_is_refused(prepared, tmp_path):
    (tmp_path / "link").symlink_to(prepared)
    config = types.SimpleNamespace(front_end="small_8k", data=f"{prepared}/:2,{tmp_path / 'link'}")
    with pytest.raises(UserError, match=r"config\.data names .* twice"):
        pretrain.open_datasets(config, 8000)


@pytest.mark.parametrize(("labels", "subjects"), [({}, 9), ({"a": 3}, 9), ({"a": 3, "b": 3}, 1)])
def test_neighbours_that_could_not_be_scored_are_refused(prepared, labels, subjects):
    neighbours = types.SimpleNamespace(split="train")
    config = types.SimpleNamespace(neighbours=neighbours)
    data = open_prepared(prepared)
    simclr.check_neighbours(config, data)
    few = dataclasses.replace(data, counts={"train": {"labels": labels, "subjects": subjects}})
    with pytest.raises(UserError, match=f"has {len(labels)} and {subjects}; put a labelled"):
        simclr.check_neighbours(config, few)


def test_another_front_end_is_refused_in_an_adaptation(undisturbed, tmp_path):
    data = tmp_path / "data"
    programs.succeed(
        "prepare", "--synthetic=cries", "--examples=60", "--sample_rate=16000", f"--out={data}"
    )
    said = programs.refuse(
        "pretrain", *programs.TINY, f"--workdir={tmp_path / 'run'}", f"--config.data={data}",
        f"--config.init={undisturbed}", "--config.front_end=panns_16k",
    )  # fmt: skip
    assert "trained with another front end" in said and "sample_rate=8000" in said


def test_another_config_is_refused_in_a_run_that_began(undisturbed, prepared):
    said = programs.refuse(
        "pretrain", *programs.TINY, f"--workdir={undisturbed}", f"--config.data={prepared}",
        "--config.temperature=0.3",
    )  # fmt: skip
    assert "temperature: 0.2 -> 0.3" in said
