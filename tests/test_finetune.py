"""The fine-tuning program: splits by subject, keeps the best, resumes, rejects mistakes."""

import csv
import json
import pathlib
import runpy
import signal
import time
import types

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from matplotlib import image

import programs
from cryjax import finetune
from cryjax.command import config as config_lib
from cryjax.command.errors import UserError
from cryjax.data.records import Index
from cryjax.evaluation import tasks
from cryjax.evaluation.embeddings import Embeddings
from cryjax.training import best

TINY = (
    *programs.TINY_FINETUNE,
    "--config.total=12 steps",
    "--config.optimizer.warmup=2 steps",
    "--config.log_every=1 step",
    "--config.evaluate_every=4 steps",
    "--config.checkpoint_every=4 steps",
    "--config.resamples=100",
)


@pytest.fixture(scope="module")
def pretrained(prepared, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "pretrained"
    programs.succeed(
        "pretrain", *programs.TINY, f"--workdir={run}", f"--config.data={prepared}",
        "--config.total=4 steps",
    )  # fmt: skip
    return run


@pytest.fixture(scope="module")
def tuned(pretrained, prepared, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "tuned"
    done = programs.succeed(
        "finetune", *TINY, f"--workdir={run}", f"--config.init={pretrained}",
        f"--config.data={prepared}", "--config.average_decay=0.5",
        "--config.evaluate_every=12 steps",
    )  # fmt: skip
    return run, done


def arrays(run: pathlib.Path, folder: str, item: str) -> dict[str, np.ndarray]:
    steps = [path for path in (run / folder).iterdir() if path.name.isdigit()]
    newest = max(steps, key=lambda path: int(path.name))
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore((newest / item).absolute())
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}


def result(run: pathlib.Path) -> dict:
    return json.loads((run / "result.json").read_text())


def test_leaves_what_it_promises(tuned, pretrained):
    run, done = tuned
    found = result(run)
    assert found["labels"] == ["discomfort", "hunger", "pain"] and found["scored"] == "test"
    assert found["n_recordings"] == 20 and found["n_subjects"] == 2
    assert found["n_train"] + found["n_validation"] == 40
    for name in ("accuracy", "macro_auc", "balanced_accuracy"):
        low, high = found["intervals"][name]
        assert 0 <= low <= found[name] <= high <= 1
    assert found["majority_accuracy"] >= 1 / 3 and sum(map(sum, found["confusion"])) == 20
    assert found["synthetic"] is True and "synthetic data" in done.stdout
    assert f"starting from the encoder of {pretrained}" in done.stderr
    for name in ("training", "confusion"):
        assert image.imread(run / "figures" / f"{name}.png").std() > 0.05
    with (run / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    scores = np.array([[float(row[f"p({name})"]) for name in found["labels"]] for row in rows])
    np.testing.assert_allclose(scores.sum(axis=1), 1.0, atol=1e-4)
    said = [found["labels"][place] for place in scores.argmax(axis=1)]
    right = [row["label"] == name for row, name in zip(rows, said, strict=True)]
    assert np.mean(right) == pytest.approx(found["accuracy"])


def test_what_is_kept_is_the_moving_average(tuned):
    run, _ = tuned
    assert result(run)["best_step"] == 12
    best, last = (arrays(run, folder, "encoder") for folder in ("best", "checkpoints"))
    average = arrays(run, "checkpoints", "optimizer")
    assert best.keys() == last.keys()
    for name, value in best.items():
        kind, leaf = name.split("]", 1)
        of_average = average[f"['average']{kind}]['encoder']{leaf}"]
        np.testing.assert_array_equal(value, of_average, err_msg=name)
    kernel = "['params']['dense']['kernel']"
    assert not np.array_equal(best[kernel], last[kernel])


def test_goes_on_where_the_run_that_it_began_from_is_gone(tuned, pretrained, prepared):
    run, _ = tuned
    before = result(run)
    kept = pretrained.rename(pretrained.with_name("elsewhere"))
    try:
        done = programs.succeed(
            "finetune", *TINY, f"--workdir={run}", f"--config.init={pretrained}",
            f"--config.data={prepared}", "--config.average_decay=0.5",
            "--config.evaluate_every=12 steps", "--config.resamples=300",
        )  # fmt: skip
    finally:
        kept.rename(pretrained)
    assert "resuming from step 12" in done.stderr
    found = result(run)
    assert [found.pop("warnings"), before.pop("warnings")][0][0].endswith("is gone")
    # Scored anew, by the same model: only the intervals are drawn more often.
    assert found.pop("resamples") == 300 and before.pop("resamples") < 300
    del found["intervals"], before["intervals"]
    assert found == before


def probe_of(run, data, folder):
    """The command that probes a run."""
    return (
        "linear_probe", "--config=configs/linear_probe.py", "--config.resamples=50",
        f"--workdir={folder}", f"--config.init={run}", f"--config.data={data}",
        "--config.floor=0", "--config.folds=2",
    )  # fmt: skip


def test_a_probe_of_those_whose_labels_it_learnt_is_refused(tuned, prepared, tmp_path):
    said = programs.refuse(*probe_of(tuned[0], prepared, tmp_path))
    assert "whose labels" in said and "so they are not held out" in said


@pytest.mark.slow
def test_probe_reads_the_best(tuned, tmp_path):
    run, others = tuned[0], tmp_path / "others"
    programs.succeed(
        "prepare", "--synthetic=cries", "--examples=40", "--synthetic_seed=1",
        "--sample_rate=8000", f"--out={others}",
    )  # fmt: skip
    done = programs.succeed(*probe_of(run, others, tmp_path / "probe"))
    assert f"encoder leaves of step {result(run)['best_step']}" in done.stderr


@pytest.mark.slow  # pre-training tests the loop
def test_killed_run_goes_on_bit_for_bit(pretrained, prepared, tmp_path):
    runs = [tmp_path / "whole", tmp_path / "killed"]
    commands = [
        ("finetune", *TINY, f"--workdir={run}", f"--config.init={pretrained}",
         f"--config.data={prepared}", "--config.freeze.blocks=1",
         "--config.freeze.thaw_every=6 steps")
        for run in runs
    ]  # fmt: skip
    programs.succeed(*commands[0])
    process = programs.start(*commands[1])
    deadline = time.monotonic() + 240
    while not (runs[1] / "checkpoints" / "4").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    programs.finish(process)
    assert not (runs[1] / "result.json").exists()
    again = programs.succeed(*commands[1])
    assert "resuming from step" in again.stderr
    for folder, item in (
        ("checkpoints", "encoder"),
        ("checkpoints", "optimizer"),
        ("best", "head"),
    ):
        whole, killed = (arrays(run, folder, item) for run in runs)
        assert whole.keys() == killed.keys()
        for name, value in whole.items():
            np.testing.assert_array_equal(killed[name], value, err_msg=f"{item} {name}")
    assert result(runs[0]) == result(runs[1])
    lines = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    name = "validation_macro_auc"
    scored = {line["step"]: line[name] for line in lines if name in line}
    assert set(scored) == {4, 8, 12}
    assert scored[result(runs[0])["best_step"]] == max(scored.values())


def test_a_frozen_encoder_stays_and_only_the_head_learns(pretrained, prepared, tmp_path):
    programs.succeed(
        "finetune", *TINY, f"--workdir={tmp_path}", f"--config.init={pretrained}",
        f"--config.data={prepared}", "--config.freeze.blocks=5", "--config.total=4 steps",
        "--config.optimizer.learning_rate=0.1", "--config.log_every=1 step",
    )  # fmt: skip
    before, after = (
        arrays(pretrained, "checkpoints", "encoder"),
        arrays(tmp_path, "best", "encoder"),
    )
    assert before.keys() == after.keys() and any("mean" in name for name in before)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 4 and losses[0] != losses[-1]


def test_a_recipe_of_whole_numbers_takes_what_the_encoder_was_trained_with():
    recipe = pathlib.Path(__file__).parents[1] / "configs" / "finetune.py"
    config = runpy.run_path(str(recipe))["get_config"]()
    with config.ignore_type():
        config.update({"init": "RUN", "encoder_rate": 1, "encoder": {"width": 1}})
        config.crop.seconds = config.clip_seconds = 1
        config.front_end = "panns_16k"
    encoder = {"name": "cnn6", "width": 0.25, "dtype": "bfloat16"}
    meta = {"config": {"encoder": encoder, "front_end": "small_8k", "crop": {"seconds": 0.8}}}
    found = finetune.as_trained(config, meta)
    assert (found.encoder.width, found.crop.seconds) == (0.25, 0.8)
    assert found.encoder.dtype == "float32"  # how to compute is the recipe's choice
    assert found.clip_seconds == 1 and found.front_end == "small_8k"
    meta["config"]["crop"]["seconds"] = 4.0  # of which a view at the highest speed takes more
    assert finetune.as_trained(config, meta).clip_seconds == pytest.approx(4.2)
    config.init, config.encoder_rate, config.layer_decay = "", 0.1, 0.5
    found = finetune.as_trained(config, None)
    assert found.encoder_rate == found.layer_decay == 1.0


def labelled(**fields):
    """Stands for a prepared dataset: 48 subjects of a recording each, one in four unlabelled."""
    place = np.arange(48)
    labels = np.array(["ill", "well", "", "well"])[place % 4]
    splits = np.array(["train", "validation", "test"])[place // 4 % 3]
    whole = Index(splits, place, place, labels, np.char.mod("s%d", place))
    return types.SimpleNamespace(
        label_names=("ill", "well"), directory="DATA", synthetic=False, cautions=(),
        require_rate=lambda *_: None, index=lambda: whole, at=lambda index: index,
    )  # fmt: skip


def test_who_is_scored_is_looked_for_in_what_it_began_from(monkeypatch):
    """And audio that was synthesised for that is in this, too."""
    monkeypatch.setattr(finetune, "open_prepared", lambda path: labelled())
    asked = []
    monkeypatch.setattr(
        finetune.leakage, "check", lambda *what: asked.append((what[0], {*what[2]})) or ["heard"]
    )
    config = config_lib.load(programs.ROOT / "configs" / "finetune.py")
    config.update({"data": "DATA", "init": "RUN"})
    for synthetic in (True, False):
        data = finetune.open_data(config, {"synthetic": synthetic})
        assert data.synthetic is synthetic and data.warnings == ["heard"]
    whole = labelled().index()
    scored = {*whole.subjects[(whole.splits == "test") & (whole.labels != "")]}
    assert asked == [("RUN", scored)] * 2 and len(data.division.train) == 12
    config.init = ""
    assert finetune.open_data(config, None).warnings == [] and len(asked) == 2
    # A step cannot be chosen, and patience cannot end, where nobody is held out.
    config.update({"patience": 2, "validation": 0.0, "folds": 3})
    with pytest.raises(UserError, match=r"config\.patience=2 needs validation scores"):
        finetune.open_data(config, None)


def test_sampling_draws_each_class_that_there_is_equally_often():
    train = labelled().index()
    classes = ("hurt", "ill", "well")
    sources = finetune.training_sources(labelled(), train, classes, "sampling")
    assert [weight for _, weight in sources] == [1.0, 1.0]
    assert [len(source) for source, _ in sources] == [12, 24]
    for (source, _), name in zip(sources, classes[1:], strict=True):
        assert set(source._source.labels) == {name}
    for balance in ("weights", "none"):
        ((source, _),) = finetune.training_sources(labelled(), train, classes, balance)
        assert len(source) == len(train)


def test_a_result_counts_people_and_a_class_that_was_not_learnt_has_no_score(monkeypatch, tmp_path):
    person = np.repeat(np.arange(6), 2)
    labels = np.array(["ill", "well"])[person % 2]
    whole = Index(labels, np.arange(12), np.arange(12), labels, person.astype(str))
    task = tasks.Task(types.SimpleNamespace(), ("hurt", "ill", "well"), False)
    data = finetune.Data(task, tasks.Division(whole, whole[:0], whole), False, [])
    features = np.column_stack([np.zeros(12), labels == "ill", labels == "well"]).astype(float)
    found = Embeddings(features, whole.recordings, labels, whole.subjects)
    config = types.SimpleNamespace(resamples=20, seed=0, init="")
    result_ = finetune.result_of(config, data, found, 4)
    assert (result_["n_train"], result_["n_train_subjects"]) == (12, 6)
    assert result_["learnt"] == ["ill", "well"] and result_["scored"] == "test"
    for module, name in ((finetune, "training_figure"), (finetune.classifier, "draw")):
        monkeypatch.setattr(module, name, lambda *_, **__: None)
    workdir = types.SimpleNamespace(
        path=tmp_path, result=lambda result: None, figure=lambda name: None, metrics=list
    )
    finetune.report(workdir, result_, found, task)
    rows = (tmp_path / "predictions.csv").read_text().splitlines()
    assert rows[1].endswith("ill,nan,1,0") and len(rows) == 13


def test_the_best_step_is_the_first_best_and_patience_ends():
    history = [
        {"step": step, "loss": 1.0, "score": score}
        for step, score in ((1, 0.5), (2, 0.7), (3, float("nan")), (4, 0.7), (5, 0.6))
    ]
    assert best.best_step([], "score", 1) == (0, False)
    assert best.best_step(history[:1], "score", 1) == (1, False)
    assert best.best_step(history, "score", 0) == (2, False)
    assert best.best_step(history, "score", 2) == (2, True)
    assert best.best_step(history, "score", 3) == (2, False)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("--config.fold=3", "config.fold=3"),
        ("--config.folds=0 --config.validation=0", "nothing to score"),
        ("--config.evaluate_every=0", "never looks at them"),
        ("--config.positive=joy", "config.positive='joy'"),
        ("--config.positive=pain", "has 3 classes"),
        ("--config.freeze.blocks=2", "would freeze random weights"),
        ("--config.patience=2 --config.validation=0", "config.patience=2"),
        ("--config.init=/nowhere", "/nowhere: holds no checkpoints"),
        ("--config.front_end=panns_16k", "prepare it again with --sample_rate=16000"),
        ("--config.encoder_rate=0", "config.encoder_rate=0"),
        ("--config.label_fraction=0", "config.label_fraction=0"),
        ("--config.batch_size=18 --config.mixup=0.5", "mixup needs a multiple of 4"),
    ],
)
def test_mistakes_get_one_line(prepared, tmp_path, change, says):
    said = programs.refuse(
        "finetune", *TINY, f"--workdir={tmp_path}/run", f"--config.data={prepared}", *change.split()
    )
    assert says in said


def test_multi_label(tmp_path):
    """General sounds labelled by kind of event, as in supervised pre-training."""
    data, run = tmp_path / "sounds", tmp_path / "run"
    programs.succeed(
        "prepare", "--synthetic=sounds", "--examples=60", "--sample_rate=8000", f"--out={data}"
    )
    programs.succeed(
        "finetune", *TINY, f"--workdir={run}", f"--config.data={data}", "--config.folds=0",
        "--config.mixup=0.3", "--config.total=4 steps", "--config.balance=weights",
    )  # fmt: skip
    found = result(run)
    assert found["multi_label"] is True and found["scored"] == "validation"
    assert {"accuracy", "macro_auc", "average_precision", "majority_accuracy"} <= found.keys()
    assert any("optimistic" in warning for warning in found["warnings"])


def test_the_processes_of_a_job_end_together(monkeypatch, capsys):
    counts = dict.fromkeys(("n_recordings", "n_subjects"), 1)
    result = {"warnings": [], "synthetic": False, "scored": "test", **counts}
    waited = []
    monkeypatch.setattr(finetune, "run", lambda *_: result)
    monkeypatch.setattr(finetune.bootstrap, "table", lambda *_: "the table")
    monkeypatch.setattr(
        finetune.parallel, "everyone", lambda _: waited.append(capsys.readouterr().out)
    )
    finetune.main(types.SimpleNamespace(init=""), "RUN")
    assert len(waited) == 1 and "the table" in waited[0]
