"""Intervals and differences against what a bootstrap over subjects promises."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from cryjax.evaluation import bootstrap, metrics
from scored import example, example_of_many, softmax

OF_MANY = ("accuracy", "macro_auc", "average_precision")
BOOTSTRAP = {"resamples": 200, "seed": 0}


def test_weights_draw_whole_subjects():
    subjects = np.array(["a", "b", "a", "c", "c", "c"])
    weights = bootstrap.subject_weights(subjects, 500, seed=0)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, 3], weights[:, 5])
    # As many subjects as there are, each as often as the others.
    np.testing.assert_array_equal(weights[:, [0, 1, 3]].sum(axis=1), 3)
    np.testing.assert_allclose(weights[:, [0, 1, 3]].mean(axis=0), 1.0, atol=0.15)


def test_interval_covers_the_truth_where_one_over_recordings_would_not():
    """Subjects differ in how often they are classified rightly; the mean over all is known."""
    rng = np.random.default_rng(0)
    subjects, each, truth, apart = 40, 25, 0.6, 0.3
    covered, widths = {"subject": 0, "recording": 0}, {"subject": 0.0, "recording": 0.0}
    for trial in range(100):
        rates = rng.choice([truth - apart, truth + apart], size=subjects)
        right = rng.random((subjects, each)) < rates[:, None]
        scores = np.stack([right.ravel(), ~right.ravel()], axis=1).astype(float)
        true = np.zeros(subjects * each, int)
        recordings = np.arange(len(true))
        for unit, group in (("subject", recordings // each), ("recording", recordings)):
            weights = bootstrap.subject_weights(group, 200, seed=trial)
            accuracy = metrics.accuracy(true, scores, weights)
            low, high = bootstrap.interval(accuracy, len(set(group)))
            covered[unit] += low <= truth <= high
            widths[unit] += high - low
    assert covered["subject"] >= 88  # 95 expected, a little less with a percentile interval
    assert covered["recording"] <= 70
    # The variance of a subject's mean is that of its rate, and what is left of p (1 - p).
    one = truth * (1 - truth)
    of_subject = apart**2 + (one - apart**2) / each
    ratio = np.sqrt(of_subject / (one / each))
    assert widths["subject"] / widths["recording"] == pytest.approx(ratio, rel=0.1)
    assert ratio > 3


def test_of_few_subjects_intervals_are_those_of_student():
    """Of the mean of normal numbers, to which resampled means come close; and at no other level."""
    rng = np.random.default_rng(0)
    for people in (4, 8, 40):
        # Resampled means vary as those of a sample of variance n - 1 over n: one too few.
        drawn = np.sqrt((people - 1) / people) * rng.normal(size=200_000)
        low, high = bootstrap.interval(drawn, people)
        expected = stats.t.ppf(0.975, people - 1)
        assert [-low, high] == pytest.approx([expected] * 2, rel=0.05)
    assert np.isnan(bootstrap.interval(np.zeros(9), 1)).all()


def test_of_few_positives_intervals_are_those_of_welch():
    rng = np.random.default_rng(0)
    for counts in ((3, 60), (8, 8), (40, 5)):
        n = np.array(counts)
        true = np.repeat([0, 1], n)
        drawn = np.sqrt(np.sum((n - 1) / n**2)) * rng.normal(size=200_000)
        low, high = bootstrap.interval(drawn, *bootstrap.reach(true, np.arange(len(true)), 2))
        freedom = np.sum(1 / n) ** 2 / np.sum(1 / n**2 / (n - 1))
        expected = stats.t.ppf(0.975, freedom) * np.sqrt(np.sum(1 / n))
        assert -low == pytest.approx(high, rel=0.15) and high == pytest.approx(expected, rel=0.1)


def test_a_metric_per_class_rests_on_the_class_with_the_fewest_subjects():
    """Of one positive subject there is nothing to resample: its interval held the AUC in 15 %."""
    rng = np.random.default_rng(0)
    people = np.repeat(np.arange(30), 3)
    scores = rng.normal(size=(90, 2))
    for positive, known in ((1, False), (2, True)):
        true = (people < positive).astype(int)
        ends = bootstrap.summarise(true, scores, "ab", people, **BOOTSTRAP)["intervals"]
        of_classes = [metrics.SENSITIVITY, *metrics.OVER_CLASSES]
        assert np.isfinite([ends[name] for name in of_classes]).all() == known
        assert np.isfinite(ends["accuracy"]).all()
    # Of subjects with all classes, or a class that nearly everybody has.
    assert bootstrap.reach(np.tile(np.arange(10), 2), np.repeat([0, 1], 10), 10) == (2, 1)
    several = np.stack([people < 27, people < 15], axis=1)
    assert bootstrap.reach(several, people, 2)[0] < 6


def test_few_subjects_and_rare_classes_are_told():
    subjects = np.repeat(np.arange(25), 2)
    labels = ["well", "ill", "cold"]
    true = np.where(subjects < 3, 1, np.where(subjects < 13, 2, 0))
    held = {"well": 12, "ill": 3, "cold": 10}
    assert bootstrap.subjects_per_class(true, subjects, labels) == held
    (said,) = bootstrap.cautions(true, subjects, labels)
    assert "fewer than 10 scored subjects (ill 3):" in said
    (said,) = bootstrap.cautions(true[:38], subjects[:38], labels)
    assert "ill 3, well 6" in said
    (said,) = bootstrap.cautions(true[:18], subjects[:18], labels)
    assert "only 9 scored subject(s)" in said
    many = np.stack([true == 1, true >= 0, true >= 0], axis=1)
    counts = bootstrap.subjects_per_class(many, subjects, labels)
    assert counts == {"well": 3, "ill": 25, "cold": 25}
    assert len(bootstrap.cautions(many, subjects, labels)) == 1
    assert not bootstrap.cautions(np.repeat([0, 1], 50), np.arange(100), labels[:2])
    found = bootstrap.summarise(true, np.eye(3)[true], labels, subjects, **BOOTSTRAP)
    assert found["subjects_per_class"] == held


def test_summary():
    true, scores, subjects, _ = example(classes=2)
    labels = ["no", "yes"]
    summary = bootstrap.summarise(true, scores, labels, subjects, resamples=300, seed=0)
    assert set(summary["intervals"]) == {*metrics.HEADLINES, metrics.SENSITIVITY}
    for name, (low, high) in summary["intervals"].items():
        assert 0 <= low < summary[name] < high <= 1
    assert summary["majority_accuracy"] == pytest.approx(max(true.mean(), 1 - true.mean()))
    confusion = np.array(summary["confusion"])
    assert confusion.sum() == summary["n_recordings"] == 60
    assert np.trace(confusion) / 60 == pytest.approx(summary["accuracy"])
    np.testing.assert_array_equal(confusion.sum(axis=1), np.bincount(true))
    assert summary["n_subjects"] == len(set(subjects)) and summary["labels"] == labels


def test_the_second_of_two_classes_is_positive():
    true, scores, subjects, _ = example(classes=2)
    summary = bootstrap.summarise(true, scores, ["well", "ill"], subjects, **BOOTSTRAP)
    assert summary["positive"] == "ill"
    turned = bootstrap.summarise(1 - true, scores[:, ::-1], ["ill", "well"], subjects, **BOOTSTRAP)
    assert turned["macro_auc"] == pytest.approx(summary["macro_auc"])
    for name in (metrics.SENSITIVITY, "average_precision"):
        assert turned[name] != pytest.approx(summary[name])


def test_calibration_is_told_of_probabilities_only():
    true, scores, subjects, _ = example()
    probabilities = softmax(scores)
    without = bootstrap.summarise(true, probabilities, "abc", subjects, **BOOTSTRAP)
    options = BOOTSTRAP | {"probabilities": True}
    summary = bootstrap.summarise(true, probabilities, "abc", subjects, **options)
    assert summary.keys() - without.keys() == {"calibration_error"}
    low, high = summary["intervals"]["calibration_error"]
    assert 0 < low < high < 1
    sharper = softmax(5 * scores)
    gap = bootstrap.differences(true, sharper, probabilities, subjects, **options)
    assert gap["calibration_error"]["value"] > 0.1


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("classes", [1, 2, 4])
def test_summary_of_several_labels(classes, probabilities):
    true, scores, subjects, _ = example_of_many(classes=classes)
    labels = ["cry", "cough", "sneeze", "laugh"][:classes]
    options = BOOTSTRAP | {"probabilities": probabilities}
    summary = bootstrap.summarise(true, scores, labels, subjects, **options)
    assert set(summary["intervals"]) == {*OF_MANY} | ({"f1"} if probabilities else set())
    for name, (low, high) in summary["intervals"].items():
        assert 0 <= low < summary[name] < high <= 1
    assert summary["average_precision"] == pytest.approx(sk.average_precision_score(true, scores))
    assert summary["macro_auc"] == pytest.approx(sk.roc_auc_score(true, scores))
    assert summary["majority_accuracy"] == true.sum(axis=0).max() / 120
    assert summary["labels"] == labels and summary["n_recordings"] == 120
    assert summary["n_subjects"] == len(set(subjects)) and "positive" not in summary
    if not probabilities:
        assert summary["confusion"] is None
        return
    if classes > 1:
        expected = sk.multilabel_confusion_matrix(true, scores >= 0.5)
        np.testing.assert_array_equal(summary["confusion"], expected)
    assert len(summary["confusion"]) == classes
    for label, ((tn, fp), (fn, tp)) in enumerate(summary["confusion"]):
        said = scores[:, label] >= 0.5
        assert tp + fn == true[:, label].sum() and tp + fp == said.sum()
        assert tp == (true[:, label] & said).sum() and tn + fp + fn + tp == 120


def test_every_resample_is_a_mean_over_the_same_classes():
    """The rare third is never found: a mean without it would be of the other two, and higher."""
    subjects = np.arange(40)
    true = np.where(subjects < 2, 2, subjects % 2)
    scores = np.eye(3)[np.where(true == 2, 0, true)]
    summary = bootstrap.summarise(true, scores, "abc", subjects, **BOOTSTRAP)
    for name in ("balanced_accuracy", "f1"):
        assert summary["intervals"][name][1] < 0.7  # 2/3 and not 1
    assert summary["intervals"]["accuracy"][1] == 1.0  # all resamples count
    # Where hardly any resample has all classes, those that each has are better than nothing.
    alone = np.arange(12)
    summary = bootstrap.summarise(alone, np.eye(12), list("abcdefghijkl"), alone, **BOOTSTRAP)
    assert summary["intervals"]["balanced_accuracy"] == [1.0, 1.0]


def test_summary_is_the_same_in_blocks(monkeypatch):
    true, scores, subjects, _ = example(classes=2)
    whole = bootstrap.summarise(true, scores, "ab", subjects, **BOOTSTRAP)
    for block in (1, 60 * 7):  # one resample at a time; 7, which do not divide 201
        monkeypatch.setattr(bootstrap, "BLOCK", block)
        parts = bootstrap.summarise(true, scores, "ab", subjects, **BOOTSTRAP)
        np.testing.assert_allclose([*parts["intervals"].values()], [*whole["intervals"].values()])


def test_memory_does_not_grow_with_the_resamples():
    true, scores, subjects, _ = example(recordings=20000, classes=2, subjects=500)
    resamples = 300
    weights = resamples * len(true) * 8  # bytes
    tracemalloc.start()
    bootstrap.summarise(true, scores, "ab", subjects, resamples=resamples, seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The weights, and a copy while they are drawn; a metric of all at once takes three more.
    assert weights < peak < 2.5 * weights


def test_differences_are_paired():
    true, scores, subjects, rng = example(recordings=300, subjects=30)
    nearly = scores + 1e-6 * rng.normal(size=scores.shape)
    same = bootstrap.differences(true, scores, scores, subjects, **BOOTSTRAP)
    assert same["accuracy"] == {"value": 0.0, "interval": [0.0, 0.0]}
    close = bootstrap.differences(true, scores, nearly, subjects, **BOOTSTRAP)
    alone = bootstrap.summarise(true, scores, ["a", "b", "c"], subjects, **BOOTSTRAP)
    width = np.diff(close["macro_auc"]["interval"]) / np.diff(alone["intervals"]["macro_auc"])
    assert width < 0.3  # what the two share cancels
    worse = bootstrap.differences(
        true, scores, rng.normal(size=scores.shape), subjects, **BOOTSTRAP
    )
    assert worse["macro_auc"]["interval"][0] > 0.1


def of_seeds(seeds, many=False):
    true, scores, subjects, rng = example_of_many() if many else example(recordings=200)
    noise = rng.normal(size=(seeds, *scores.shape)) * np.arange(1, seeds + 1)[:, None, None]
    return true, scores + 0.3 * noise, subjects, rng


@pytest.mark.parametrize("many", [False, True])
def test_mean_over_seeds(many):
    true, scores, subjects, _ = of_seeds(3, many)
    found = bootstrap.summarise_seeds(true, scores, subjects, **BOOTSTRAP)
    labels = [str(label) for label in range(scores.shape[-1])]
    alone = [bootstrap.summarise(true, one, labels, subjects, **BOOTSTRAP) for one in scores]
    for name, of in found.items():
        values = [one[name] for one in alone]
        assert of["value"] == pytest.approx(np.mean(values))
        assert of["spread"] == pytest.approx(np.sqrt(np.var(values) * 3 / 2)) and of["spread"] > 0
        assert of["interval"][0] < of["value"] < of["interval"][1]
    assert found.keys() == alone[0]["intervals"].keys()


def test_the_same_subjects_are_drawn_for_every_seed():
    """Equal seeds tell what one tells; subjects of their own would make the interval narrower."""
    true, scores, subjects, _ = example()
    alone = bootstrap.summarise(true, scores, "abc", subjects, **BOOTSTRAP)
    for seeds in (1, 4):
        again = np.repeat(scores[None], seeds, axis=0)
        for name, of in bootstrap.summarise_seeds(true, again, subjects, **BOOTSTRAP).items():
            assert of["value"] == pytest.approx(alone[name])
            assert of["interval"] == pytest.approx(alone["intervals"][name])
            assert of["spread"] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("many", [False, True])
def test_differences_of_seeds(many):
    true, scores, subjects, rng = of_seeds(3, many)
    others = rng.normal(size=(2, *scores.shape[1:]))
    found = bootstrap.differences(true, scores, others, subjects, **BOOTSTRAP)
    one = bootstrap.summarise_seeds(true, scores, subjects, **BOOTSTRAP)
    other = bootstrap.summarise_seeds(true, others, subjects, **BOOTSTRAP)
    assert found.keys() == one.keys()
    for name, of in found.items():
        assert of["value"] == pytest.approx(one[name]["value"] - other[name]["value"])
        assert of["interval"][0] < of["value"] < of["interval"][1]
    # Seeds of one side, a single run on the other; and pairing, whatever the number of seeds.
    twice = np.repeat(scores[:1], 2, axis=0)
    for of in bootstrap.differences(true, twice, scores[0], subjects, **BOOTSTRAP).values():
        assert [of["value"], *of["interval"]] == pytest.approx([0.0, 0.0, 0.0], abs=1e-12)
