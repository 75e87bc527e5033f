"""Weighted metrics against scikit-learn, and the bootstrap against what it promises."""

import numpy as np
import pytest
from sklearn import metrics as sk

from cryjax.evaluation import metrics


def example(seed=0, recordings=60, classes=3, subjects=12):
    rng = np.random.default_rng(seed)
    true = rng.integers(classes, size=recordings)
    scores = rng.normal(size=(recordings, classes)).round(1)  # rounded: ties occur
    scores[np.arange(recordings), true] += 0.8
    return true, scores, rng.integers(subjects, size=recordings), rng


@pytest.mark.parametrize("seed", range(5))
def test_equal_scikit_learn_under_weights(seed):
    true, scores, _, rng = example(seed)
    weights = rng.integers(0, 4, size=(7, len(true))).astype(float)
    said = scores.argmax(axis=1)
    found = {name: metric(true, scores, weights) for name, metric in metrics.HEADLINES.items()}
    for row, weight in enumerate(weights):
        options = {"sample_weight": weight}
        assert found["accuracy"][row] == pytest.approx(sk.accuracy_score(true, said, **options))
        assert found["balanced_accuracy"][row] == pytest.approx(
            sk.recall_score(true, said, average="macro", **options)
        )
        one_vs_rest = [sk.roc_auc_score(true == c, scores[:, c], **options) for c in range(3)]
        assert found["macro_auc"][row] == pytest.approx(np.mean(one_vs_rest))


@pytest.mark.parametrize("seed", range(5))
def test_sensitivity_equals_a_walk_along_the_roc_curve(seed):
    true, scores, _, _ = example(seed, classes=2)
    score = scores[:, 1] - scores[:, 0]
    best = max(
        np.mean(score[true == 1] >= t)
        for t in [*score, np.inf]
        if np.mean(score[true == 0] < t) >= metrics.SPECIFICITY - 1e-12
    )
    found = metrics.sensitivity(true, scores, np.ones((1, len(true))))[0]
    assert found == pytest.approx(best)


def test_a_class_that_a_resample_lacks_is_left_out_of_its_mean():
    true = np.array([0, 0, 1, 1, 2])
    scores = np.eye(3)[[0, 1, 1, 1, 0]] + 0.0
    without_two = np.array([[1.0, 1.0, 1.0, 1.0, 0.0]])
    assert metrics.balanced_accuracy(true, scores, without_two)[0] == pytest.approx(0.75)
    kept = slice(0, 4)
    aucs = [sk.roc_auc_score(true[kept] == c, scores[kept, c]) for c in (0, 1)]
    assert metrics.macro_auc(true, scores, without_two)[0] == pytest.approx(np.mean(aucs))
    one_class = np.array([[1.0, 1.0, 0.0, 0.0, 0.0]])
    assert np.isnan(metrics.macro_auc(true, scores, one_class)[0])


def test_weights_draw_whole_subjects():
    subjects = np.array(["a", "b", "a", "c", "c", "c"])
    weights = metrics.subject_weights(subjects, 500, seed=0)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, 3], weights[:, 5])
    # As many subjects as there are, each as often as the others.
    np.testing.assert_array_equal(weights[:, [0, 1, 3]].sum(axis=1), 3)
    np.testing.assert_allclose(weights[:, [0, 1, 3]].mean(axis=0), 1.0, atol=0.15)


def test_interval_covers_the_truth_where_one_over_recordings_would_not():
    """Subjects differ in how often they are classified rightly; the mean over all is known."""
    rng = np.random.default_rng(0)
    subjects, each, truth = 40, 25, 0.6
    by_subject = by_recording = 0
    for trial in range(100):
        rates = rng.choice([truth - 0.3, truth + 0.3], size=subjects)
        right = rng.random((subjects, each)) < rates[:, None]
        scores = np.stack([right.ravel(), ~right.ravel()], axis=1).astype(float)
        true = np.zeros(subjects * each, int)
        groups = np.repeat(np.arange(subjects), each)
        for grouping in (groups, np.arange(len(true))):
            weights = metrics.subject_weights(grouping, 200, seed=trial)
            low, high = metrics._interval(metrics.accuracy(true, scores, weights))
            if grouping is groups:
                by_subject += low <= truth <= high
            else:
                by_recording += low <= truth <= high
    assert by_subject >= 88  # 95 expected, a little less with a percentile interval
    assert by_recording <= 70


def test_summary():
    true, scores, subjects, _ = example(classes=2)
    labels = ["no", "yes"]
    summary = metrics.summarise(true, scores, labels, subjects, resamples=300, seed=0)
    for name in ("accuracy", "balanced_accuracy", "macro_auc", metrics.SENSITIVITY):
        low, high = summary["intervals"][name]
        assert 0 <= low < summary[name] < high <= 1
    assert summary["majority_accuracy"] == pytest.approx(max(true.mean(), 1 - true.mean()))
    confusion = np.array(summary["confusion"])
    assert confusion.sum() == summary["n_recordings"] == 60
    assert np.trace(confusion) / 60 == pytest.approx(summary["accuracy"])
    np.testing.assert_array_equal(confusion.sum(axis=1), np.bincount(true))
    assert summary["n_subjects"] == len(set(subjects)) and summary["labels"] == labels


def test_differences_are_paired():
    true, scores, subjects, rng = example(recordings=300, subjects=30)
    nearly = scores + 1e-6 * rng.normal(size=scores.shape)
    same = metrics.differences(true, scores, scores, subjects, resamples=200, seed=0)
    assert same["accuracy"] == {"value": 0.0, "interval": [0.0, 0.0]}
    close = metrics.differences(true, scores, nearly, subjects, resamples=200, seed=0)
    alone = metrics.summarise(true, scores, ["a", "b", "c"], subjects, resamples=200, seed=0)
    width = np.diff(close["macro_auc"]["interval"]) / np.diff(alone["intervals"]["macro_auc"])
    assert width < 0.3  # what the two share cancels
    worse = metrics.differences(
        true, scores, rng.normal(size=scores.shape), subjects, resamples=200, seed=0
    )
    assert worse["macro_auc"]["interval"][0] > 0.1
