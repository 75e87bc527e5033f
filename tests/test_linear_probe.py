"""The probe program: honest numbers, an encoder that it does not touch, clear refusals."""

import hashlib
import json
import pathlib

import pytest
from matplotlib import image

import programs

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
    """From a checkpoint of two devices, on one and on four."""
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


@pytest.fixture(scope="module")
def bad_datasets(tmp_path_factory):
    """Prepared from manifests with one class, without labels, and at another rate."""
    import csv

    import numpy as np
    import soundfile

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
        ("--config.data={bad}/one", "has labels of 1 class(es)"),
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
