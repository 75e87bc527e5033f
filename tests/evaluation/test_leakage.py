"""Whom an encoder has heard in training: told, and refused where labels were learnt."""

import pytest

import programs
from cryjax.command import config as config_lib
from cryjax.command.errors import UserError
from cryjax.data.records import open_prepared
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
