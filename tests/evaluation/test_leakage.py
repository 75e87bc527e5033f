"""Whom an encoder has heard in training: told, and refused where labels were learnt."""

import types

import numpy as np
import pytest

import programs
from cryjax.command import config as config_lib
from cryjax.command.errors import UserError
from cryjax.data.records import Index, open_prepared
from cryjax.evaluation import leakage, tasks
from cryjax.training import start


@pytest.fixture
def runs(prepared, monkeypatch):
    """Stands for runs: 'tuned' was fine-tuned from 'adapted', and that began from 'general'."""
    small = config_lib.load(programs.ROOT / "configs" / "pretrain_small.py")
    small.update({"data": str(prepared), "init": "general"})
    small.exclude_subjects = str(open_prepared(prepared).index().subjects[0])
    gone = small.copy_and_resolve_references()
    gone.update({"data": "/gone:2", "init": ""})
    tuned = config_lib.load(programs.ROOT / "configs" / "finetune.py")
    tuned.update({"data": str(prepared), "init": "adapted", "folds": 3, "fold": 1})
    metas = {
        name: {"program": program, "config": config_lib.to_dict(config)}
        for name, program, config in (
            ("general", "pretrain", gone),
            ("adapted", "pretrain", small),
            ("tuned", "finetune", tuned),
        )
    }
    monkeypatch.setattr(leakage, "read_meta", metas.__getitem__)
    return tuned


def test_whose_labels_were_learnt_may_not_be_scored(prepared, runs):
    data = open_prepared(prepared)
    division = tasks.divide(data.index(), runs)
    found = leakage.heard("tuned", data.subject_key)
    assert found.labelled == {*division.train.subjects, *division.validation.subjects}
    assert not found.labelled & set(division.test.subjects)
    with pytest.raises(UserError, match="are among those whose labels tuned used in training"):
        leakage.check("tuned", data, data.index().subjects)
    said = leakage.check("tuned", data, division.test.subjects)
    assert not any("whose labels" in line for line in said)


def test_who_was_heard_without_labels_is_told_and_so_is_what_is_gone(prepared, runs):
    data = open_prepared(prepared)
    subjects = data.index().subjects
    people = set(subjects)
    heard, gone = leakage.check("adapted", data, subjects)
    assert f"{len(people) - 1} of the {len(people)} scored subjects were used" in heard
    assert "was trained on scored subjects: /gone is not a prepared dataset" in gone
    (gone,) = leakage.check("adapted", data, subjects[:1])  # who was left out
    assert "cannot tell whether" in gone


@pytest.mark.parametrize("name", ["adapted", "tuned"])
def test_a_dataset_that_was_prepared_again_is_told_and_not_believed(prepared, runs, name):
    data = open_prepared(prepared)
    excluded = {str(data.index().subjects[0])} if name == "adapted" else set()
    trained = leakage.content([data], excluded)
    meta = leakage.read_meta(name)
    meta["inputs"] = {"data": start.digest(trained)}
    found = leakage.heard(name, data.subject_key)
    assert found.labelled or name != "tuned"
    assert not any("no longer" in line for line in found.unknown)
    meta["inputs"] = {"data": start.digest(trained + "another")}
    found = leakage.heard(name, data.subject_key)
    assert not found.labelled
    assert f"{prepared} is no longer what it was trained on" in found.unknown


def test_a_run_whose_folder_its_origin_has_now_is_told_and_not_followed_for_ever(
    prepared, runs, monkeypatch
):
    # pretrain --workdir=new --config.init=old, then old deleted, new renamed to it, and so on.
    config = config_lib.load(programs.ROOT / "configs" / "pretrain_small.py")
    config.update({"data": str(prepared), "init": "old"})
    meta = {"program": "pretrain", "config": config_lib.to_dict(config)}
    monkeypatch.setattr(leakage, "read_meta", lambda run: meta)
    data = open_prepared(prepared)
    found = leakage.heard("new", data.subject_key)
    assert found.unlabelled == set(data.index("train").subjects)
    assert found.unknown == ["old started from a run whose folder it has now"]


def test_of_weights_from_elsewhere_nobody_can_tell(prepared, monkeypatch):
    monkeypatch.setattr(
        leakage, "read_meta", lambda run: {"program": "import_weights", "config": {}}
    )
    assert leakage.heard("PANNS", "key").unknown == ["PANNS has imported weights"]


def test_names_by_another_key_cannot_be_compared(prepared, runs):
    found = leakage.heard("tuned", "another")
    assert not found.labelled | found.unlabelled
    assert sum("with another key" in why for why in found.unknown) == 2


def dataset(name, subjects, splits, labels=""):
    """Stands for a prepared dataset of one recording a subject."""
    place = np.arange(len(subjects))
    whole = Index(
        np.broadcast_to(splits, place.shape), place, place,
        np.broadcast_to(labels, place.shape), np.array(subjects),
    )  # fmt: skip
    return types.SimpleNamespace(
        directory=name, subject_key="key", fingerprint=name,
        index=lambda split="": whole[whole.splits == split] if split else whole,
    )  # fmt: skip


def test_who_is_heard_is_who_is_in_the_splits_of_all_datasets_of_all_runs(monkeypatch):
    data = {
        "A": dataset("A", ["ann", "bob"], ["extra", "test"]),
        "B": dataset("B", ["cid"], "extra"),
        "C": dataset("C", ["dan"], "train"),
    }
    config = config_lib.load(programs.ROOT / "configs" / "pretrain_small.py")
    config.update({"data": "A,B:2", "split": "extra", "init": "before"})
    before = config_lib.load(programs.ROOT / "configs" / "pretrain_small.py")
    before.update({"data": "C", "init": "gone"})
    metas = {
        name: {"program": "pretrain", "config": config_lib.to_dict(one)}
        for name, one in (("run", config), ("before", before))
    }

    def read_meta(run):
        if run not in metas:
            raise UserError(f"{run}: holds no checkpoints")
        return metas[run]

    monkeypatch.setattr(leakage, "read_meta", read_meta)
    monkeypatch.setattr(leakage, "open_prepared", data.__getitem__)
    found = leakage.heard("run", "key")
    assert found.unlabelled == {"ann", "cid", "dan"} and found.unknown == ["gone is gone"]


def test_who_has_no_label_does_not_move_the_folds_of_those_who_have(monkeypatch):
    """As in fine-tuning, which leaves them out before it divides."""
    people = [f"s{n}" for n in range(40)]
    labels = np.array(["ill", "well", "", ""])[np.arange(40) % 4]
    data = dataset("A", people, "train", labels)
    config = config_lib.load(programs.ROOT / "configs" / "finetune.py")
    config.update({"data": "A", "folds": 4})
    meta = {"program": "finetune", "config": config_lib.to_dict(config)}
    monkeypatch.setattr(leakage, "read_meta", lambda run: meta)
    monkeypatch.setattr(leakage, "open_prepared", lambda entry: data)
    division = tasks.divide(data.index()[labels != ""], config)
    found = leakage.heard("run", "key").labelled
    assert found == {*division.train.subjects, *division.validation.subjects}
