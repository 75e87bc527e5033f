"""What is said of classified recordings: nothing of probabilities that are none."""

import dataclasses
import types

import numpy as np
import pytest

from cryjax.command.errors import UserError
from cryjax.evaluation import judge, tasks
from cryjax.evaluation.embeddings import Embeddings

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
