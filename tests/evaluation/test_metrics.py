"""Weighted metrics against scikit-learn, and against what their definitions say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as sk

from cryjax.evaluation import metrics
from scored import example, example_of_many, softmax

ALL = metrics.HEADLINES | {"calibration_error": metrics.calibration_error}
OF_MANY = {name: metrics.HEADLINES[name] for name in ("accuracy", "macro_auc", "average_precision")}


@st.composite
def cases(draw, many, classes=None, levels=4):
    """Few recordings with many ties; classes and their rest may be missing, in all or in part."""
    recordings, classes = draw(st.integers(1, 12)), classes or draw(st.integers(2, 4))
    shape = (recordings, classes)
    one = hnp.arrays(int, recordings, elements=st.integers(0, classes - 1))
    true = draw(hnp.arrays(bool, shape) if many else one)
    scores = draw(hnp.arrays(int, shape, elements=st.integers(0, levels))) / levels
    weights = draw(hnp.arrays(int, (3, recordings), elements=st.integers(0, 2)))
    weights[:, draw(st.integers(0, recordings - 1))] += 1  # a resample is never empty
    return true, scores, weights.astype(float)


def of_present(true, scores, weight, oracle, rest=False):
    """The mean of scikit-learn's metric over the classes that have recordings (and a rest)."""
    members = true if true.ndim == 2 else true[:, None] == np.arange(scores.shape[1])
    kept = weight > 0
    present = [
        c
        for c in range(scores.shape[1])
        if members[kept, c].any() and not (rest and members[kept, c].all())
    ]
    found = [oracle(members[kept, c], scores[kept, c], sample_weight=weight[kept]) for c in present]
    return np.mean(found) if found else np.nan


@settings(deadline=None)
@given(cases(many=False))
def test_equal_scikit_learn_under_weights(case):
    true, scores, weights = case
    said = scores.argmax(axis=1)
    found = {name: metric(true, scores, weights) for name, metric in metrics.HEADLINES.items()}
    for row, weight in enumerate(weights):
        options = {"labels": np.unique(true[weight > 0]), "average": "macro"}
        options |= {"sample_weight": weight, "zero_division": np.nan}
        expected = {
            "accuracy": sk.accuracy_score(true, said, sample_weight=weight),
            "balanced_accuracy": sk.recall_score(true, said, **options),
            "f1": sk.f1_score(true, said, **options),
            "macro_auc": of_present(true, scores, weight, sk.roc_auc_score, rest=True),
            "average_precision": of_present(true, scores, weight, sk.average_precision_score),
        }
        if scores.shape[1] == 2:
            del expected["average_precision"], expected["macro_auc"]  # of a detector: below
        for name, value in expected.items():
            assert found[name][row] == pytest.approx(value, nan_ok=True), name


@settings(deadline=None)
@given(cases(many=True))
def test_several_labels_equal_scikit_learn_under_weights(case):
    true, scores, weights = case
    found = {name: metric(true, scores, weights) for name, metric in metrics.HEADLINES.items()}

    def f1(members, score, sample_weight):
        return sk.f1_score(members, score >= 0.5, sample_weight=sample_weight)

    top = true[np.arange(len(true)), scores.argmax(axis=1)]
    for row, weight in enumerate(weights):
        expected = {
            "accuracy": np.average(top, weights=weight),
            "f1": of_present(true, scores, weight, f1),
            "macro_auc": of_present(true, scores, weight, sk.roc_auc_score, rest=True),
            "average_precision": of_present(true, scores, weight, sk.average_precision_score),
        }
        for name, value in expected.items():
            assert found[name][row] == pytest.approx(value, nan_ok=True), name


@settings(deadline=None)
@given(cases(many=False), st.data())
def test_recordings_without_a_score_for_a_class_are_left_out_of_it(case, data):
    """Of it alone; and it is not the class that is said of them."""
    true, scores, weights = case
    silent = data.draw(hnp.arrays(bool, scores.shape))
    given = np.where(silent, np.nan, scores)
    for metric, oracle in (
        (metrics.macro_auc, sk.roc_auc_score),
        (metrics.average_precision, sk.average_precision_score),
    ):
        if scores.shape[1] == 2:
            continue  # of the difference of both scores
        for found, weight in zip(metric(true, given, weights), weights, strict=True):
            expected = []
            for c in range(scores.shape[1]):
                kept = (weight > 0) & ~silent[:, c]
                of_class = true[kept] == c
                if of_class.any() and not (oracle is sk.roc_auc_score and of_class.all()):
                    expected.append(oracle(of_class, scores[kept, c], sample_weight=weight[kept]))
            assert found == pytest.approx(np.mean(expected) if expected else np.nan, nan_ok=True)
    for row, said in enumerate(metrics.winners(given)):
        assert said == -1 if silent[row].all() else given[row, said] == np.nanmax(given[row])


@settings(deadline=None)
@given(cases(many=False, classes=2))
def test_detector_equals_scikit_learn_under_weights(case):
    true, scores, weights = case
    score = scores[:, 1] - scores[:, 0]
    precision = metrics.average_precision(true, scores, weights)
    area = metrics.macro_auc(true, scores, weights)
    sensitivity = metrics.sensitivity(true, scores, weights)
    for row, weight in enumerate(weights):
        kept = weight > 0
        of_class, options = true[kept] == 1, {"sample_weight": weight[kept]}
        if not of_class.any():
            assert np.isnan(precision[row]) and np.isnan(sensitivity[row])
            continue
        expected = sk.average_precision_score(of_class, score[kept], **options)
        assert precision[row] == pytest.approx(expected)
        if of_class.all():
            assert np.isnan(sensitivity[row]) and np.isnan(area[row])
            continue
        assert area[row] == pytest.approx(sk.roc_auc_score(of_class, score[kept], **options))
        false, caught, _ = sk.roc_curve(of_class, score[kept], drop_intermediate=False, **options)
        best = max(caught[1 - false >= metrics.SPECIFICITY - 1e-9])
        assert sensitivity[row] == pytest.approx(best)


def test_detector_is_scored_by_how_much_the_positive_class_leads():
    true, scores, _, rng = example(classes=2)
    scores = (scores * 8).round() / 8  # so that their differences are exact, and ties stay ties
    once = np.ones((1, len(true)))
    for metric in (metrics.average_precision, metrics.sensitivity, metrics.macro_auc):
        moved = metric(true, scores + rng.normal(size=(len(true), 1)).round(), once)
        np.testing.assert_allclose(moved, metric(true, scores, once))
    # Probabilities near 0 and 1 of a network in float32 keep their order.
    sure = np.array([[1.0, 1e-12], [1.0, 1e-9], [1.0, 1e-10], [1.0, 1e-11]], np.float32)
    for metric in (metrics.average_precision, metrics.macro_auc):
        assert metric(np.array([0, 1, 0, 0]), sure, np.ones((1, 4)))[0] == 1.0


@settings(deadline=None)
@given(cases(many=False, levels=30))
def test_calibration_error_equals_its_definition(case):
    """Bin by bin, over recordings repeated as often as they weigh."""
    true, scores, weights = case
    found = metrics.calibration_error(true, scores, weights)
    for row, weight in enumerate(weights):
        again = np.repeat(np.arange(len(true)), weight.astype(int))
        confidence, right = scores[again].max(axis=1), scores[again].argmax(axis=1) == true[again]
        thirtieths = np.round(30 * confidence).astype(int)
        total = 0.0
        for upper in range(2, 31, 2):  # 15 bins, closed above; zero is in the first
            inside = (thirtieths > upper - 2) & (thirtieths <= upper)
            inside |= (upper == 2) & (thirtieths == 0)
            if inside.any():
                total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
        assert found[row] == pytest.approx(total)


def test_calibration_error_of_known_classifiers():
    rng = np.random.default_rng(0)
    chance = rng.uniform(0.5, 1.0, size=20000)
    scores = np.stack([chance, 1 - chance], axis=1)
    once = np.ones((1, len(chance)))
    honest = (rng.random(len(chance)) > chance).astype(int)
    assert metrics.calibration_error(honest, scores, once)[0] < 0.015
    # Says 0.75 on average and is right half the time.
    coin = rng.integers(2, size=len(chance))
    assert metrics.calibration_error(coin, scores, once)[0] == pytest.approx(0.25, abs=0.015)


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


def test_a_specificity_that_is_just_reached_counts():
    """The positive is under one of five negatives: found at 80 %, and not among four."""
    score = np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    true, scores = np.array([0, 1, 0, 0, 0, 0]), np.stack([-score, score], axis=1)
    weights = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]], float)
    np.testing.assert_array_equal(metrics.sensitivity(true, scores, weights), [1.0, 0.0])


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
    # Class 1 is said there and is not there: class 0 alone counts, with its recall of a half.
    assert metrics.f1(true, scores, one_class)[0] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("name", "many"), [(name, False) for name in ALL] + [(name, True) for name in [*OF_MANY, "f1"]]
)
def test_order_and_repetition(name, many):
    true, scores, _, rng = example_of_many() if many else example()
    scores = scores if many else softmax(scores)
    weights = rng.integers(0, 4, size=(4, len(true))).astype(float)
    found = ALL[name](true, scores, weights)
    order = rng.permutation(len(true))
    np.testing.assert_allclose(ALL[name](true[order], scores[order], weights[:, order]), found)
    np.testing.assert_allclose(ALL[name](true, scores, weights / 7), found)
    for weight, value in zip(weights, found, strict=True):
        again = np.repeat(np.arange(len(true)), weight.astype(int))
        repeated = ALL[name](true[again], scores[again], np.ones((1, len(again))))
        assert repeated[0] == pytest.approx(value)
    assert np.ptp(found) > 0  # the weights do matter


@pytest.mark.parametrize("many", [False, True])
def test_perfect_and_random_classifiers(many):
    true, scores, _, rng = (example_of_many if many else example)(recordings=20000)
    members = true if many else np.eye(3, dtype=bool)[true]
    once = np.ones((1, len(true)))
    for name, metric in (OF_MANY | {"f1": metrics.f1} if many else metrics.HEADLINES).items():
        kept = members.any(axis=1)  # without a label there is no hit
        assert metric(true[kept], members[kept] + 0.0, once[:, kept])[0] == 1.0, name
    noise = rng.random(scores.shape)
    assert metrics.macro_auc(true, noise, once)[0] == pytest.approx(0.5, abs=0.02)
    share = members.mean(axis=0)
    assert metrics.average_precision(true, noise, once)[0] == pytest.approx(share.mean(), abs=0.02)
    assert metrics.accuracy(true, noise, once)[0] == pytest.approx(share.mean(), abs=0.02)
    # Said at random of half the recordings, or of a third where one of three is said.
    said = 1 / 2 if many else 1 / 3
    f1 = np.mean(2 * share * said / (share + said))
    assert metrics.f1(true, noise, once)[0] == pytest.approx(f1, abs=0.02)


def test_by_subject():
    subjects = np.array(["b", "a", "b", "c", "b"])
    true = np.array([1, 0, 1, 0, 1])
    scores = np.array([[0, 1], [5, 2], [3, 0], [1, 1], [6, 5]], np.float32)
    classes, means, names = metrics.by_subject(true, scores, subjects)
    assert names.tolist() == ["b", "a", "c"] and classes.tolist() == [1, 0, 0]
    np.testing.assert_array_equal(means, [[3, 2], [5, 2], [1, 1]])
    assert metrics.by_subject(np.array([1, 0, 0, 0, 1]), scores, subjects) is None
    many = np.eye(2, dtype=bool)[true]
    classes, means_of_many, _ = metrics.by_subject(many, scores, subjects)
    np.testing.assert_array_equal(classes, np.eye(2, dtype=bool)[[1, 0, 0]])
    np.testing.assert_array_equal(means_of_many, means)
    many[4, 0] = True
    assert metrics.by_subject(many, scores, subjects) is None


def test_metric_names():
    assert metrics.metric_name("macro_auc", 2) == "AUC"
    assert metrics.metric_name("macro_auc", 3) == "macro AUC"
    assert metrics.metric_name("balanced_accuracy", 3) == "balanced accuracy"
    assert metrics.metric_name(metrics.SENSITIVITY, 2) == "sensitivity at 80 % specificity"
