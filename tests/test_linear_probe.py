"""The probe program: honest numbers, an encoder left untouched, clear errors."""

import csv
import dataclasses
import hashlib
import json
import pathlib
import types

import numpy as np
import pytest
import soundfile
from matplotlib import image
from sklearn.metrics import roc_auc_score

import programs
from cryjax import linear_probe
from cryjax.command import config as config_lib
from cryjax.data.records import Index
from cryjax.evaluation.embeddings import Embeddings

PROBE = ("--config=configs/linear_probe.py", "--config.resamples=200")


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "run"
    programs.succeed(
        "pretrain", *programs.TINY, f"--workdir={run}", f"--config.data={prepared}",
        "--config.total=4 steps", devices=2,
    )  # fmt: skip
    return run


def digest(folder: pathlib.Path) -> str:
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()


@pytest.mark.parametrize("devices", [1, 4])
def test_result_and_untouched_encoder(run, prepared, tmp_path, devices):
    """A checkpoint of two devices, probed on one and on four."""
    before = digest(run)
    done = programs.succeed(
        "linear_probe", *PROBE, f"--workdir={tmp_path}", f"--config.init={run}",
        f"--config.data={prepared}", devices=devices,
    )  # fmt: skip
    assert digest(run) == before
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["encoder_sha256"]["before"] == result["encoder_sha256"]["after"]
    assert result["labels"] == ["discomfort", "hunger", "pain"]
    assert result["n_recordings"] == 60 and result["n_subjects"] == 6
    assert sum(map(sum, result["confusion"])) == 60
    assert result["majority_accuracy"] == pytest.approx(1 / 3)
    for name in ("accuracy", "macro_auc"):
        low, high = result["intervals"][name]
        assert 0 <= low <= result[name] <= high <= 1
        assert {name} <= result["floor"].keys() & result["floor"]["difference"].keys()
    assert result["synthetic"] is True and "synthetic data" in done.stdout
    assert "only 6 scored subject(s)" in done.stderr
    assert "loaded params/block1/conv1/kernel" in done.stderr
    assert image.imread(tmp_path / "figures" / "confusion.png").std() > 0.05


def test_random_encoder_and_logistic(run, prepared, tmp_path):
    results = []
    for extra in ((f"--config.like={run}",), ("--config.encoder.width=0.0625",)):
        workdir = tmp_path / str(len(results))
        programs.succeed(
            "linear_probe", *PROBE, f"--workdir={workdir}", "--config.init=random",
            f"--config.data={prepared}", "--config.classifier=logistic", *extra,
            "--config.window_seconds=0.3",
        )  # fmt: skip
        results.append(json.loads((workdir / "result.json").read_text()))
    assert "floor" not in results[0]
    # The same encoder, front end and window, whether named by a run or by the config.
    assert results[0]["encoder_sha256"] == results[1]["encoder_sha256"]
    assert results[0]["accuracy"] == results[1]["accuracy"]


def of_recordings(splits=("train",), people=30, each=4):
    """Recordings of three segments each, shuffled; one subject in three is ill."""
    recordings = np.random.default_rng(0).permutation(np.repeat(np.arange(people * each), 3))
    group = recordings % people
    labels = np.where(group % 3 == 0, "ill", "well")
    index = Index(
        np.array(splits)[group % len(splits)], np.arange(len(group)), recordings, labels,
        np.char.mod("s%d", group),
    )  # fmt: skip
    return types.SimpleNamespace(
        sample_rate=8000, label_names=("ill", "well"), directory="DATA", synthetic=False,
        cautions=("mixed rates",), require_rate=lambda rate, of: None,
        index=lambda: index, at=lambda index: index,
    )  # fmt: skip


def encoder(name, strength):
    """Stands in for one whose embeddings depend this strongly on the label."""
    return types.SimpleNamespace(
        settings=types.SimpleNamespace(sample_rate=8000), window_samples=8000, encoder=name,
        variables={"weight": np.full(2, strength)}, synthetic=False,
    )  # fmt: skip


def embedder(*arguments, **options):
    """Stands in for `Embedder`: a row per recording, in order of their numbers."""

    def embed(variables, index, *, shown):
        numbers, first = np.unique(index.recordings, return_index=True)
        features = np.random.default_rng(0).normal(size=(len(numbers), 6))
        features[:, 0] += variables["weight"][0] * (index.labels[first] == "ill")
        return Embeddings(features, numbers, index.labels[first], index.subjects[first])

    return embed


def test_splits_are_those_of_the_recordings(monkeypatch):
    monkeypatch.setattr(linear_probe.Embedder, "of", embedder)
    found, splits = linear_probe.embed(encoder("trained", 3.0), of_recordings(("train", "test")), 8)
    expected = np.where(found.recordings % 30 % 2 == 0, "train", "test")
    np.testing.assert_array_equal(splits, expected)


def test_who_is_scored_is_who_must_not_have_been_learnt_from():
    def scored(splits, folds):
        config = types.SimpleNamespace(folds=folds)
        return set(linear_probe.scored_subjects(of_recordings(splits), config))

    everybody = {f"s{n}" for n in range(30)}
    assert scored(("train", "test"), 0) == {f"s{n}" for n in range(1, 30, 2)}
    assert scored(("train", "test"), 5) == scored(("fold1", "fold2"), 0) == everybody


def test_an_untrained_encoder_like_another_is_drawn_by_the_seed(monkeypatch):
    monkeypatch.setattr(linear_probe, "untrained_like", lambda *how: how)
    config = types.SimpleNamespace(init="random", like="RUN", seed=5)
    assert linear_probe.load_encoder(config) == ("RUN", 5)


def test_a_digest_is_of_the_values():
    ours, theirs = {"a": np.arange(3.0)}, {"a": np.array([0.0, 1.0, 2.5])}
    assert linear_probe.digest(ours) == linear_probe.digest({"a": np.arange(3.0)})
    assert linear_probe.digest(ours) != linear_probe.digest(theirs)


def test_recordings_without_a_label_are_not_used():
    data = of_recordings()
    data.index().labels[data.index().recordings < 50] = ""
    found = linear_probe.labelled(data)
    assert set(found.recordings) == set(range(50, 120)) and "" not in found.labels


def test_result_holds_what_it_was_made_by(monkeypatch, tmp_path, capsys):
    """The positive class is as named; the floor is of untrained encoders."""
    monkeypatch.setattr(linear_probe.Embedder, "of", embedder)
    monkeypatch.setattr(linear_probe, "open_prepared", lambda path: of_recordings())
    monkeypatch.setattr(linear_probe.leakage, "check", lambda *_: ["heard"])
    monkeypatch.setattr(linear_probe, "load_encoder", lambda config: encoder("trained", 3.0))

    def untrained_like(init, seed):
        seeds.append(seed)
        return encoder("floor", 0.0)

    seeds = []
    monkeypatch.setattr(linear_probe, "untrained_like", untrained_like)
    config = config_lib.load(programs.ROOT / "configs" / "linear_probe.py")
    config.update({"init": "RUN", "data": "DATA", "positive": "ill", "label_seed": 3})
    config.update({"resamples": 50, "label_fraction": 0.5})
    linear_probe.main(config, str(tmp_path))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["labels"] == ["well", "ill"] and result["positive"] == "ill"
    assert result["macro_auc"] > 0.95 and abs(result["floor"]["macro_auc"] - 0.5) < 0.15
    assert result["floor"]["encoders"] == config.floor == len(seeds) == len(set(seeds))
    gap = result["floor"]["difference"]["macro_auc"]["value"]
    assert gap == pytest.approx(result["macro_auc"] - result["floor"]["macro_auc"])
    assert result["by_subject"]["n_recordings"] == 30 and result["n_recordings"] == 120
    assert (result["n_train"], result["n_train_subjects"]) == (48, 12)
    assert [result[name] for name in ("label_fraction", "seed", "label_seed")] == [0.5, 0, 3]
    assert result["subjects_per_class"] == {"well": 20, "ill": 10}
    assert result["versions"]["numpy"] == np.__version__ and result["warnings"] == [
        "mixed rates",
        "heard",
    ]
    # Its scores give the same metrics.
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    true = np.array([row["label"] == "ill" for row in rows])
    scores = np.array([float(row["score(ill)"]) - float(row["score(well)"]) for row in rows])
    assert np.mean((scores > 0) == true) == pytest.approx(result["accuracy"])
    assert roc_auc_score(true, scores) == pytest.approx(result["macro_auc"])
    assert [int(row["recording"]) for row in rows] == list(range(120))
    assert all(row["subject"] == f"s{int(row['recording']) % 30}" for row in rows)
    said = capsys.readouterr().out
    assert "average_precision (chance: 0.333) and sensitivity are for 'ill'" in said
    grouped = result["by_subject"]
    assert f"one mean score per subject: accuracy {grouped['accuracy']:.3f} [" in said


@pytest.fixture
def probed(monkeypatch, tmp_path):
    """Probes a stand-in for a dataset: its result, its predictions, and who was asked about."""

    def probe(data, trained, **fields):
        asked = []
        monkeypatch.setattr(linear_probe.Embedder, "of", embedder)
        monkeypatch.setattr(linear_probe, "open_prepared", lambda path: data)
        monkeypatch.setattr(
            linear_probe.leakage, "check", lambda run, of, scored: asked.extend(set(scored)) or []
        )
        monkeypatch.setattr(linear_probe, "load_encoder", lambda config: trained)
        monkeypatch.setattr(linear_probe.classifier, "draw", lambda *_: None)
        config = config_lib.load(programs.ROOT / "configs" / "linear_probe.py")
        config.update({"init": "RUN", "data": "DATA", "resamples": 10, "floor": 0, **fields})
        folder = tmp_path / str(len([*tmp_path.iterdir()]))
        linear_probe.main(config, str(folder))
        with (folder / "predictions.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        return json.loads((folder / "result.json").read_text()), rows, set(asked)

    return probe


def test_own_splits_are_scored_by_their_test_part_alone(probed):
    result, rows, asked = probed(of_recordings(("train", "test")), encoder("RUN", 3.0), folds=0)
    tested = {f"s{n}" for n in range(1, 30, 2)}
    assert asked == {row["subject"] for row in rows} == tested and len(rows) == 60
    assert all(row["subject"] == f"s{int(row['recording']) % 30}" for row in rows)
    assert result["n_recordings"] == 60 and result["n_train_subjects"] == 15
    assert result["synthetic"] is False


def test_every_choice_of_a_probe_makes_other_scores(probed):
    half = {"label_fraction": 0.5, "folds": 2}
    ways = ({}, {"seed": 1}, {"label_seed": 1}, {"classifier": "logistic"})
    made = [
        probed(of_recordings(people=12, each=2), encoder("RUN", 1.0), **(half | way))[1]
        for way in ways
    ]
    assert len({json.dumps(rows) for rows in made}) == len(ways)


def test_what_the_encoder_was_made_of_and_what_became_of_it_is_in_the_result(probed, monkeypatch):
    trained = encoder("RUN", 3.0)
    trained.synthetic = True
    result, _, _ = probed(of_recordings(people=12, each=2), trained, folds=2)
    digests = result["encoder_sha256"]
    assert result["synthetic"] is True and digests["before"] == digests["after"]
    plain = linear_probe.probes.probe

    def probe(*given, **how):
        trained.variables["weight"] += 1.0
        return dataclasses.replace(plain(*given, **how), warnings=["few"])

    monkeypatch.setattr(linear_probe.probes, "probe", probe)
    result, _, _ = probed(of_recordings(people=12, each=2), trained, folds=2)
    digests = result["encoder_sha256"]
    assert digests["before"] != digests["after"] and "few" in result["warnings"]


@pytest.fixture(scope="module")
def bad_datasets(tmp_path_factory):
    """Prepared from manifests with one class, without labels, and at another rate."""
    folder = tmp_path_factory.mktemp("bad")
    rng = np.random.default_rng(0)
    for i in range(4):
        soundfile.write(folder / f"{i}.wav", 0.1 * rng.normal(size=16000), 16000)
    for name, label in (("one", "cry"), ("none", ""), ("other_rate", "cry")):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            rows = [[f"{i}.wav", label, f"s{i}"] for i in range(4)]
            csv.writer(file).writerows([["path", "label", "subject"], *rows])
        rate = 16000 if name == "other_rate" else 8000
        programs.succeed(
            "prepare", f"--manifest={folder / name}.csv", f"--out={folder / name}",
            f"--sample_rate={rate}",
        )  # fmt: skip
    return folder


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("--config.data={bad}/one", "has labels of only 1 class"),
        ("--config.data={bad}/none", "has no labels"),
        ("--config.data={bad}/other_rate", "--sample_rate=8000"),
        ("--config.init={bad}", "holds no checkpoints"),
        ("--config.init=", "config.init=''"),
        ("--config.folds=0", "config.folds=0"),
        ("--config.classifier=svm", "ridge, logistic"),
    ],
)
def test_mistakes_get_one_line(run, prepared, bad_datasets, tmp_path, change, named):
    said = programs.refuse(
        "linear_probe", *PROBE, f"--workdir={tmp_path}", f"--config.init={run}",
        f"--config.data={prepared}", change.format(bad=bad_datasets),
    )  # fmt: skip
    assert named in said
    assert not (tmp_path / "result.json").exists()
