"""What is said of classified recordings: nothing of probabilities that are none."""

import types

import numpy as np
import pytest

from cryjax.command.errors import UserError
from cryjax.evaluation import judge, tasks
from cryjax.evaluation.embeddings import Embeddings

CONFIG = types.SimpleNamespace(resamples=20, seed=0)
TASK = tasks.Task(types.SimpleNamespace(), ("ill", "well"), False)


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
        judge.summarise(found, TASK, CONFIG)


def test_few_subjects_are_told():
    result = judge.summarise(classified(), TASK, CONFIG)
    assert any("only 12 scored" in said for said in result["warnings"])
