"""The datasets of an experiment: what it makes of fewer subjects, and what it tells of them."""

import json
import types

import numpy as np
import pytest

import programs
from cryjax.audio import frontend
from cryjax.command import config as config_lib
from cryjax.command.errors import TooFewLabels, UserError
from cryjax.data.records import Index
from cryjax.evaluation import datasets, tasks


def test_a_task_has_as_many_folds_as_its_subjects_make():
    labels = np.array(["ill", "ill", "well", "well"] * 3)
    subjects = np.array(["a", "b", "c", "d"] * 3)
    numbers = np.arange(12)
    index = Index(np.full(12, "train"), numbers, numbers, labels, subjects)
    config = config_lib.load(programs.ROOT / "configs" / "reproduce_smoke.py")
    config.folds = 5
    data = datasets.Datasets(config, programs.ROOT)
    prepared = types.SimpleNamespace(index=lambda: index, directory="DATA")
    data.__dict__["tasks"] = {"injury": types.SimpleNamespace(prepared=prepared)}
    assert data.folds("injury") == 4
    tune = config_lib.load(programs.ROOT / "configs" / "finetune.py")
    tune.update({"folds": 5, "fold_seed": config.fold_seed, "validation": 0.0})
    tested = []
    for tune.fold in range(4):
        tested += list(tasks.divide(index, tune).test.subjects)
    assert sorted(tested) == sorted(subjects)
    tune.fold = 4
    with pytest.raises(TooFewLabels, match="allow 4 folds"):
        tasks.divide(index, tune)


def test_what_is_known_of_a_dataset_that_was_prepared_before_is_told(tmp_path):
    info = {
        "inputs": {"corpus": "donateacry"},
        "skipped": 3,
        "contradicting": 2,
        "alone": 4,
        "synthetic": False,
        "splits": {"train": {"labels": {"hungry": 9, "hungri": 1}}},
    }
    (tmp_path / "prepared.json").write_text(json.dumps(info))
    prepared = types.SimpleNamespace(directory=tmp_path)
    said = "\n".join(datasets._remarks(prepared))
    known = "licence: ", "caveat: ", "skipped 3", "2 are the same", "'subject': 4;", "hungri"
    for words in known:
        assert words in said


def test_supervised_pre_training_may_have_no_label_of_a_test_subject(monkeypatch, tmp_path):
    config = config_lib.load(programs.ROOT / "configs" / "reproduce_smoke.py")
    config.rows = ("scratch", "supervised")
    rate = frontend.resolve(config.pretrain.front_end).sample_rate

    def holding(name, split="train", *more):
        """Six subjects of two classes to train on, and others in a split."""
        subjects = np.array([*map(str, range(6)), *more])
        splits = np.array(["train"] * 6 + [split] * len(more))
        numbers = np.arange(len(subjects))
        index = Index(splits, numbers, numbers, np.where(numbers % 2, "a", "b"), subjects)
        return types.SimpleNamespace(
            directory=tmp_path / name, sample_rate=rate, label_names=("a", "b"), subject_key=None,
            index=lambda: index, fingerprint=name, require_rate=lambda *_: None,
        )  # fmt: skip

    monkeypatch.setattr(datasets, "_remarks", lambda prepared: [])
    for split, subject, refused in (
        ("train", "anna", True),
        ("validation", "anna", True),  # whose labels choose the step
        ("test", "anna", False),
        ("train", "dora", False),
    ):
        data = datasets.Datasets(config, tmp_path)
        data.__dict__ |= {
            "tasks": {"injury": types.SimpleNamespace(prepared=holding("cries"))},
            "tested": {"cries": {"anna", "ben"}},
            "labelled": holding("labelled", split, subject),
        }
        if refused:
            with pytest.raises(UserError, match=r"1 test subject.* 'anna', are in the labelled"):
                data.open()
        else:
            data.open()
            assert data.used.keys() == {"injury", "labelled"}


def test_other_recordings_in_a_dataset_are_noticed_and_the_same_made_anew_are_not(tmp_path):
    config = config_lib.load(programs.ROOT / "configs" / "reproduce_smoke.py")
    data = datasets.Datasets(config, tmp_path)
    for content in ("these", "these"):
        data._recognise({"general": types.SimpleNamespace(directory="D", fingerprint=content)})
    with pytest.raises(UserError, match="'general', D, holds different recordings"):
        data._recognise({"general": types.SimpleNamespace(directory="D", fingerprint="others")})
