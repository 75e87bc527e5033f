"""What is said of classified recordings: nothing of probabilities that are none."""

import dataclasses
import types

import numpy as np
import pytest

from cryjax.command.errors import UserError
from cryjax.evaluation import judge, tasks
from cryjax.evaluation.embeddings import Embeddings
from cryjax.training.steps import TrainState

CONFIG = types.SimpleNamespace(resamples=20, seed=0)
TASK = tasks.Task(types.SimpleNamespace(), ("ill", "well"), False)
LEARNT = np.array([True, True])


def classified(subjects=12, each=3):
    """Of subjects of one label each, every other one ill."""
    group = np.repeat(np.arange(subjects), each)
    ill = np.random.default_rng(0).random(len(group))
    labels = np.array(["ill", "well"])[group % 2]
    return Embeddings(
        np.stack([ill, 1 - ill], axis=1), 100 + np.arange(len(group)), labels, group.astype(str)
    )


def test_probabilities_that_are_not_finite_are_refused():
    found = classified()
    found.features[7] = np.nan
    with pytest.raises(UserError, match=r"1 of 36 recordings .* recordings 107:"):
        judge.summarise(found, TASK, CONFIG, LEARNT)


def test_few_subjects_are_told():
    result = judge.summarise(classified(8), TASK, CONFIG, LEARNT)
    assert any("only 8 scored" in said for said in result["warnings"])


def test_subjects_of_one_label_are_counted_too():
    """Each once, by the mean of its recordings: as where those are all that there is."""
    found = classified()
    result = judge.summarise(found, TASK, CONFIG, LEARNT)
    mean = np.stack([found.features[n : n + 3].mean(axis=0) for n in range(0, 36, 3)])
    rest = (part[::3] for part in (found.recordings, found.labels, found.subjects))
    alone = Embeddings(mean, *rest)
    assert result["by_subject"]["n_recordings"] == 12
    expected = judge.summarise(alone, TASK, CONFIG, LEARNT)
    for name in (*result["intervals"], "intervals"):
        assert result["by_subject"][name] == expected[name], name
    # A class that was not learnt is low for everybody, and tells nothing.
    third = tasks.Task(TASK.prepared, ("ill", "well", "hurt"), False)
    low = np.random.default_rng(1).uniform(0, 1e-3, (36, 1))
    wider = dataclasses.replace(found, features=np.append(found.features, low, axis=1))
    with_third = judge.summarise(wider, third, CONFIG, np.array([True, True, False]))
    assert with_third["macro_auc"] == result["macro_auc"]
    assert with_third["calibration_error"] == result["calibration_error"]
    found.labels[0] = "well"
    assert "by_subject" not in judge.summarise(found, TASK, CONFIG, LEARNT)


def judged(monkeypatch, task, live, average=None, learnt=LEARNT):
    """Validation metrics of a state whose head's parameters are its probabilities."""
    made = []

    def embedder(function, samples, devices):
        made.append((function.keywords["multi_label"], samples))
        return lambda variables, found, shown: dataclasses.replace(
            found, features=variables["head"]["params"]
        )

    monkeypatch.setattr(judge, "Embedder", embedder)
    task = dataclasses.replace(task, prepared=types.SimpleNamespace(at=lambda found: found))
    plan = types.SimpleNamespace(settings=types.SimpleNamespace(sample_rate=8000))
    parts = types.SimpleNamespace(encoder=None, head=None, plan=plan)
    config = types.SimpleNamespace(crop=types.SimpleNamespace(seconds=0.5))
    one = judge.Judge(task, parts, config, None, learnt)
    assert made == [(task.multi_label, 4000)]
    states = [
        {"params": {"encoder": {}, "head": scores}, "batch_stats": {"encoder": {}}}
        for scores in (live, average)
    ]
    state = TrainState(
        0, **states[0], opt_state=(), average=average if average is None else states[1]
    )
    return one.metrics(state, classified())


def test_validation_scores_are_those_of_the_average_which_is_what_is_kept(monkeypatch):
    right = np.eye(2)[np.repeat(np.arange(12), 3) % 2]
    found = judged(monkeypatch, TASK, right)
    assert found["validation_macro_auc"] == found["validation_accuracy"] == 1.0
    assert found["validation_calibration_error"] == 0.0
    assert judged(monkeypatch, TASK, right, 1 - right)["validation_macro_auc"] == 0.0


def test_validation_leaves_out_a_class_that_was_not_learnt(monkeypatch):
    true = np.repeat(np.arange(12), 3) % 2
    third = tasks.Task(TASK.prepared, ("ill", "well", "hurt"), False)
    scores = np.column_stack([np.eye(2)[true], np.full(36, 2.0)])
    learnt = np.array([True, True, False])
    found = judged(monkeypatch, third, scores, learnt=learnt)
    assert found["validation_accuracy"] == 1.0
    alike = dataclasses.replace(classified(), features=scores)
    assert judge.summarise(alike, third, CONFIG, learnt)["accuracy"] == 1.0


def test_one_of_several_labels_is_judged_by_itself(monkeypatch):
    several = tasks.Task(TASK.prepared, TASK.classes, True)
    right = np.eye(2)[np.repeat(np.arange(12), 3) % 2]
    assert judged(monkeypatch, several, right)["validation_macro_auc"] == 1.0


def test_intervals_are_drawn_as_often_and_by_the_seed_as_the_config_says():
    ways = [types.SimpleNamespace(resamples=n, seed=s) for n, s in ((20, 0), (200, 0), (20, 1))]
    found = [judge.summarise(classified(), TASK, way, LEARNT) for way in ways]
    assert len({tuple(one["intervals"]["macro_auc"]) for one in found}) == 3


def test_an_interval_without_width_is_no_certainty():
    """Where the true accuracy was 0.97, 28 % of 10 subjects had all recordings right."""
    found = classified()
    assert not judge.unvarying(judge.summarise(found, TASK, CONFIG, LEARNT))
    right = (np.array(TASK.classes) == found.labels[:, None]).astype(float)
    sure = judge.summarise(dataclasses.replace(found, features=right), TASK, CONFIG, LEARNT)
    assert sure["intervals"]["accuracy"] == [1, 1]
    assert sum("accuracy" in said and "not certainty" in said for said in sure["warnings"]) == 1
