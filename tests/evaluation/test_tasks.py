"""How a labelled dataset becomes a task: by subject, nested, with its classes in order."""

import types

import numpy as np
import pytest

import programs
from cryjax.command import config as config_lib
from cryjax.command.errors import TooFewLabels, UserError
from cryjax.data.records import Index
from cryjax.evaluation import tasks
from cryjax.training import supervised


def index(splits, people=40, each=5, segments=2):
    """`each` recordings of `segments` segments a subject; one subject in four is ill."""
    subjects = np.repeat([f"s{n:02d}" for n in range(people)], each * segments)
    recordings = np.repeat(np.arange(people * each), segments)
    labels = np.where(np.repeat(np.arange(people) % 4 == 0, each * segments), "ill", "well")
    of = np.array([splits[n % len(splits)] for n in range(people)])
    return Index(
        np.repeat(of, each * segments), np.arange(len(subjects)), recordings, labels, subjects
    )


def recipe(**fields):
    config = config_lib.load(programs.ROOT / "configs" / "finetune.py")
    config.update(fields)
    return config


@pytest.mark.parametrize("splits", [("train", "test"), ("train", "validation", "test")])
def test_parts_share_no_subject_and_divide_no_recording(splits):
    whole = index(splits)
    found = tasks.divide(whole, recipe())
    parts = [set(part.subjects) for part in (found.train, found.validation, found.test)]
    assert all(parts) and sum(map(len, parts)) == len(set.union(*parts)) == 40
    assert len(found.train) + len(found.validation) + len(found.test) == len(whole)
    assert set(found.test.splits) == {"test"}


def test_folds_are_tested_once_each():
    whole = index(("train",))
    tested = [tasks.divide(whole, recipe(folds=4, fold=fold)).test for fold in range(4)]
    assert sorted(np.concatenate([part.recordings for part in tested])) == sorted(whole.recordings)
    own = index(("fold1", "fold2", "fold3"))
    assert [set(tasks.divide(own, recipe(fold=n)).test.splits) for n in range(3)] == [
        {"fold1"}, {"fold2"}, {"fold3"},
    ]  # fmt: skip


def test_folds_that_are_not_there_are_refused_with_a_remedy():
    with pytest.raises(TooFewLabels, match=r"fold=7: .* allow 4 folds; use one from 0 to 3"):
        tasks.divide(index(("train",)), recipe(folds=4, fold=7))
    each = np.arange(2)
    few = Index(np.full(2, "train"), each, each, np.array(["ill", "well"]), np.array(["a", "b"]))
    with pytest.raises(TooFewLabels, match=r"folds=2: 2 recordings of 2 .* no folds.*folds=0 and"):
        tasks.divide(few, recipe(folds=2))


def test_fewer_labels_are_some_of_more_to_train_on_and_to_choose_by():
    whole = index(("train", "test"))
    before = tasks.divide(whole, recipe(label_fraction=0.1))
    for fraction in (0.3, 0.6, 1.0):
        found = tasks.divide(whole, recipe(label_fraction=fraction))
        for small, large in ((before.train, found.train), (before.validation, found.validation)):
            assert set(small.recordings) <= set(large.recordings)
        assert set(found.train.labels) == set(found.validation.labels) == {"ill", "well"}
        np.testing.assert_array_equal(found.test.recordings, before.test.recordings)
        assert len(before.train) < len(found.train)
        before = found


def test_a_subject_in_two_splits_is_refused():
    whole = index(("train", "test"))
    whole.splits[:4] = ["train", "train", "test", "test"]
    with pytest.raises(UserError, match="as 's00'"):
        tasks.divide(whole, recipe())


def test_class_weights_make_classes_count_the_same():
    targets = np.eye(3)[[0, 0, 0, 0, 1, 1]]
    weights = supervised.class_weights(targets, multi_label=False)
    np.testing.assert_allclose(weights, [0.75, 1.5, 0.0])
    assert (targets @ weights).mean() == pytest.approx(1.0)
    several = np.array([[1, 1], [1, 0], [0, 0], [1, 0]])
    np.testing.assert_allclose(supervised.class_weights(several, multi_label=True), [1 / 3, 3.0])


def labelled(*names):
    """Stands for a prepared dataset that has these labels."""
    return types.SimpleNamespace(label_names=names, directory="DATA", cautions=("mixed rates",))


@pytest.mark.parametrize(
    ("names", "labels", "fields", "said"),
    [
        ((), [], {}, "DATA has no labels"),
        (("ill",), ["ill"], {}, "DATA has 1 class"),
        (("ill", "well"), ["ill;well"], {"task": "single"}, "config.task='single'"),
        (("ill", "well"), ["ill"], {"positive": "sick"}, "not a label of DATA"),
        (("a", "b", "c"), ["a"], {"positive": "a"}, "DATA has 3 classes"),
    ],
)
def test_a_dataset_that_is_no_such_task_is_refused(names, labels, fields, said):
    held = types.SimpleNamespace(labels=np.array(labels, str))
    with pytest.raises(UserError, match=said):
        tasks.open_task(recipe(**fields), held, labelled(*names))


def test_classes_that_a_part_lacks_are_told():
    whole = index(("train", "validation", "test"))
    task = tasks.Task(labelled("hurt", "ill", "well"), ("hurt", "ill", "well"), False)
    found = tasks.divide(whole, recipe())
    said = tasks.missing(task, found)
    assert len(said) == 3 and said[0] == "mixed rates"
    assert "no training recording has class hurt" in said[1]
    assert "no scored recording has class hurt" in said[2]
    ill = {
        name: part[part.labels == "ill"]
        for name, part in (("train", found.train), ("validation", found.validation))
    }
    one = tasks.Division(found.train, ill["validation"], found.test)
    assert any("have only one class" in line for line in tasks.missing(task, one))
    with pytest.raises(TooFewLabels, match="1 of the 3 classes"):
        tasks.missing(task, tasks.Division(ill["train"], found.validation, found.test))


def test_several_labels_are_all_targets_and_a_task_may_be_said_to_have_several():
    held = types.SimpleNamespace(labels=np.array(["ill;well", "", "well"]))
    several = tasks.open_task(recipe(), held, labelled("ill", "well"))
    assert several.true(held.labels).tolist() == [[True, True], [False, False], [False, True]]
    one = types.SimpleNamespace(labels=np.array(["ill", "well"]))
    found = {
        kind: tasks.open_task(recipe(task=kind), one, labelled("ill", "well")).multi_label
        for kind in ("auto", "single", "multi")
    }
    assert found == {"auto": False, "single": False, "multi": True}


def test_what_is_scored_is_the_test_part_if_there_is_one():
    found = tasks.divide(index(("train", "validation", "test")), recipe())
    assert found.scored is found.test
    # Without one, who is held out is scored in the end: no evaluation before that is needed.
    found = tasks.divide(index(("train",)), recipe(evaluate_every="0"))
    assert not len(found.test) and len(found.validation) and found.scored is found.validation
    fewer = tasks.divide(index(("train",)), recipe(evaluate_every="0", label_fraction=0.5))
    assert len(fewer.train) < len(found.train) and len(fewer.validation) < len(found.validation)


@pytest.mark.parametrize(
    "pair", [("train", "test"), ("validation", "test"), ("train", "validation")]
)
def test_a_subject_in_two_of_three_splits_is_refused(pair):
    whole = index(("train", "validation", "test"))
    whole.splits[:10] = np.repeat(pair, (4, 6))
    with pytest.raises(UserError, match="such as 's00', are in more than one split"):
        tasks.divide(whole, recipe())


@pytest.mark.parametrize(("fraction", "held"), [(0.5, 0.0), (1.0, 0.2)])
def test_other_labels_to_learn_from_are_scored_on_the_same_subjects(fraction, held):
    """Also where the dataset's own folds are not wanted."""
    whole = index(("fold1", "fold2", "fold3"))
    fields = {"folds": 4, "label_fraction": fraction, "validation": held}
    one, other = (tasks.divide(whole, recipe(label_seed=n, **fields)) for n in (0, 1))
    np.testing.assert_array_equal(one.test.recordings, other.test.recordings)
    assert len(set(one.test.splits)) > 1
    assert set(one.train.subjects) != set(other.train.subjects)
    # And other folds hold out others.
    moved = tasks.divide(whole, recipe(fold_seed=1, **fields))
    assert set(moved.test.subjects) != set(one.test.subjects)
