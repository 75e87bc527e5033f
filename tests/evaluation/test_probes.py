"""Probes find what is there, do not find what is not, and never look at a test subject."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import NearestNeighbors

from cryjax.command.errors import UserError
from cryjax.evaluation import metrics, probes


def clusters(classes=3, subjects=12, each=9, strength=2.0, subject_strength=1.0, seed=0):
    """Features: a direction for the class, an offset for the subject, noise."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(subjects), each)
    labels = np.arange(len(group)) % classes
    features = strength * np.eye(classes, 16)[labels]
    features += subject_strength * rng.normal(size=(subjects, 16))[group]
    return features + rng.normal(size=features.shape), labels, group


def accuracy(found):
    return np.mean(metrics.winners(found.scores) == found.true)


@pytest.mark.parametrize("classifier", ["ridge", "logistic"])
@pytest.mark.parametrize("classes", [2, 3])
def test_finds_a_linear_signal(classifier, classes):
    found = probes.probe(*clusters(classes, strength=4.0), classifier=classifier)
    assert accuracy(found) > 0.85
    assert found.scores.shape == (108, classes)
    np.testing.assert_array_equal(found.rows, np.arange(108))  # each scored once, in order


@pytest.mark.parametrize("classifier", ["ridge", "logistic"])
def test_does_not_know_a_subject_again(classifier):
    """Each subject has one label, drawn at random: only knowing the subject again would help."""
    rng = np.random.default_rng(0)
    features, _, group = clusters(subjects=40, each=6, strength=0.0, subject_strength=5.0)
    labels = rng.permutation(np.arange(40) % 2)[group]
    by_subject = probes.probe(features, labels, group, classifier=classifier)
    assert abs(accuracy(by_subject) - 0.5) < 0.2
    leaking = probes.probe(features, labels, np.arange(len(group)), classifier=classifier)
    assert accuracy(leaking) > 0.75  # the fault that grouping prevents would be seen


def test_the_penalty_is_chosen_on_other_subjects(monkeypatch):
    """The recordings of a subject are on one side of every inner fold."""
    features, labels, group = clusters()
    chosen = []

    def search(model, grid, *, scoring, cv):
        chosen.extend(cv)
        return GridSearchCV(model, grid, scoring=scoring, cv=cv)

    monkeypatch.setattr(probes, "GridSearchCV", search)
    probes.fit(features, labels, group, classifier="ridge", seed=0)
    assert len(chosen) == probes.INNER_FOLDS
    for train, test in chosen:
        assert len(train) + len(test) == 108 and not set(group[train]) & set(group[test])


def test_fewer_labels_are_all_of_fewer_subjects(monkeypatch):
    features, labels, group = clusters(subjects=30)
    splits = np.where(group < 24, "train", "test")
    fitted, fit = [], probes.fit

    def spy(of, true, subjects, **options):
        fitted.append(subjects)
        return fit(of, true, subjects, **options)

    monkeypatch.setattr(probes, "fit", spy)
    for label_seed in (0, 1):
        found = probes.probe(
            features, labels, group, splits=splits, fraction=0.25, label_seed=label_seed
        )
        assert found.trained_subjects == 6 and found.trained == 54
    for subjects in fitted:
        assert len(set(subjects)) == 6 and np.isin(group, subjects).sum() == len(subjects)
    assert set(fitted[0]) != set(fitted[1])


def test_nothing_of_a_test_subject_enters():
    """Bit for bit: whatever one is like, the scores of the others are the same."""
    features, labels, group = clusters()
    splits = np.where(group < 8, "train", "test")
    before = probes.probe(features, labels, group, splits=splits)
    changed = np.where(group[:, None] == 11, 1000.0 * features + 7.0, features)
    after = probes.probe(changed, labels, group, splits=splits)
    others = before.subjects != 11
    np.testing.assert_array_equal(before.scores[others], after.scores[others])
    assert np.all(before.scores[~others] != after.scores[~others])


def test_ridge_is_the_closed_form_with_classes_of_equal_weight():
    features, labels, group = clusters()
    labels = np.where(group % 3 == 0, labels, labels % 2)  # the third is rare
    model, penalty = probes.fit(features, labels, group, classifier="ridge", seed=0)
    standard = (features - features.mean(axis=0)) / features.std(axis=0)
    targets = np.where(labels[:, None] == np.arange(3), 1.0, -1.0)
    weights = (len(labels) / 3 / np.bincount(labels))[labels]
    ridge = Ridge(alpha=penalty * len(labels)).fit(standard, targets, sample_weight=weights)
    reference = ridge.predict(standard)
    np.testing.assert_allclose(model.decision_function(features), reference, atol=1e-6)


@pytest.mark.parametrize("classifier", ["ridge", "logistic"])
def test_a_heavy_penalty_does_not_say_one_class_of_all(classifier, monkeypatch):
    """Of training recordings two in three are well: scores shrunk to nothing are still in order."""
    features, labels, group = clusters(2, subjects=40, strength=1.0)
    kept = (labels == 0) | (np.arange(len(labels)) % 4 == 1)
    monkeypatch.setattr(probes, f"{classifier.upper()}_PENALTIES", np.array([100.0]))
    found = probes.probe(features[kept], labels[kept], group[kept], classifier=classifier)
    recalls = [np.mean(found.scores.argmax(axis=1)[found.true == c] == c) for c in range(2)]
    assert min(recalls) > 0.5


def test_penalty_is_heavy_where_there_is_nothing_to_find():
    rng = np.random.default_rng(0)
    _, labels, group = clusters()
    signal, _, _ = clusters(strength=6.0, subject_strength=0.0)
    _, for_signal = probes.fit(signal, labels, group, classifier="ridge", seed=0)
    noise = np.concatenate([signal, 3 * rng.normal(size=(108, 300))], axis=1)
    _, for_noise = probes.fit(noise, labels, group, classifier="ridge", seed=0)
    assert for_noise > for_signal


def test_own_splits():
    features, labels, group = clusters()
    splits = np.where(group < 6, "train", np.where(group < 8, "validation", "test"))
    found = probes.probe(features, labels, group, splits=splits)
    np.testing.assert_array_equal(found.rows, np.flatnonzero(splits == "test"))
    model, _ = probes.fit(features[:72], labels[:72], group[:72], classifier="ridge", seed=0)
    # Ridge's scores add up to 2 - classes; these to 0.
    np.testing.assert_allclose(found.scores, model.decision_function(features[72:]) + 1 / 3)


def test_a_class_that_is_missing_from_training_is_told_and_never_found():
    features, labels, group = clusters()
    labels = np.where(group == 11, 2, labels % 2)
    splits = np.where(group < 9, "train", "test")
    classes = ["hunger", "pain", "belly_pain"]
    found = probes.probe(features, labels, group, splits=splits, classes=classes)
    assert "no training recording has class 'belly_pain', so its 9 test" in found.warnings[0]
    assert not np.any(metrics.winners(found.scores) == 2)
    assert np.isnan(found.scores[:, 2]).all() and np.isfinite(found.scores[:, :2]).all()


def test_a_class_of_one_subject_does_not_move_chance(monkeypatch):
    """It is lacking where it is scored: a lowest score of its own would be an AUC of nought."""
    monkeypatch.setattr(probes, "RIDGE_PENALTIES", np.array([1.0]))  # quicker
    found = []
    for seed in range(10):
        features, _, group = clusters(subjects=30, each=4, strength=0.0, seed=seed)
        kinds = np.arange(30) % 2
        kinds[28:] = 2, 3
        result = probes.probe(features, kinds[group], group)
        once = np.ones((1, len(group)))
        found.append(metrics.macro_auc(result.true, result.scores, once)[0])
    assert np.mean(found) == pytest.approx(0.5, abs=0.1)


def test_few_subjects_are_told():
    (said,) = probes.probe(*clusters(subjects=9)).warnings
    assert "only 9 scored subject(s)" in said
    assert not probes.probe(*clusters(subjects=25, each=6)).warnings


@pytest.mark.parametrize(
    ("labels", "subjects", "splits", "named"),
    [
        (np.zeros(12, int), np.arange(12), None, "two classes"),
        (np.arange(12) % 2, np.arange(12) % 2, None, "2 subject"),
        (np.arange(12) % 2, np.arange(12), np.full(12, "train"), "folds=5"),
        (np.arange(4) % 2, np.arange(4), None, "too few"),
        (np.arange(3), np.arange(3), None, "cannot be divided"),
        (np.arange(12) % 2, np.arange(12), np.array(["train"] * 11 + ["test"]), "one class"),
        (
            np.arange(12) % 2,
            np.arange(12) // 2,
            np.array(["train", "test"] * 6),
            "more than one split",
        ),
    ],
)
def test_mistakes_are_named(labels, subjects, splits, named):
    features = np.random.default_rng(0).normal(size=(len(labels), 3))
    with pytest.raises(UserError, match=named):
        probes.probe(features, labels, subjects, splits=splits)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(value):
    features, labels, group = clusters()
    features[[3, 50], 1] = value
    with pytest.raises(UserError, match=r"2 of 108 .* embeddings .* rows 3, 50:"):
        probes.probe(features, labels, group)
    with pytest.raises(UserError, match="recordings 103, 150:"):
        probes.probe(features, labels, group, recordings=100 + np.arange(108))


def test_scores_that_are_not_finite_are_refused(monkeypatch):
    """However they came about; of a class that was not learnt they are none."""
    scores = probes._scores

    def broken(model, features, classes):
        return scores(model, features, classes) * np.where(np.arange(classes) == 1, np.inf, 1.0)

    monkeypatch.setattr(probes, "_scores", broken)
    with pytest.raises(UserError, match="scores that are not finite"):
        probes.probe(*clusters())


def test_a_fold_that_lacks_a_class_scores_the_others_no_higher():
    """Pooled, its recordings would all rank first: the AUC of 30 data sets fell by 0.01."""
    features, labels, group = clusters(4, strength=0.0)
    for classes in (2, 3, 4):
        kept = labels < classes
        model, _ = probes.fit(features[kept], labels[kept], group[kept], classifier="ridge", seed=0)
        scores = probes._scores(model, features, 4)[:, :classes]
        np.testing.assert_allclose(scores.mean(axis=1), 0.0, atol=1e-12)


def test_nearest_neighbour_of_another_subject(monkeypatch):
    features, labels, group = clusters(strength=8.0, subject_strength=0.0)
    names = np.array(["a", "b", "c"])[labels]
    assert probes.nearest_neighbour_accuracy(features, names, group) > 0.95
    # A duplicate under the same subject must not count: here it is all that has the label.
    lonely = np.where(group == 0, "z", names)
    twice = np.concatenate([features, features[group == 0]])
    found = probes.nearest_neighbour_accuracy(
        twice, np.append(lonely, ["z"] * 9), np.append(group, [0] * 9)
    )
    assert found < 0.95 * 99 / 117 + 0.05
    names[:] = ""
    assert probes.nearest_neighbour_accuracy(features, names, group) is None
    # As scikit-learn finds them, one subject's after another, in blocks of any size.
    rng = np.random.default_rng(0)
    features, group = rng.normal(size=(200, 4)), rng.integers(9, size=200)
    kinds, right = rng.choice(["a", "b"], 200), []
    for subject in range(9):
        own = group == subject
        index = NearestNeighbors(n_neighbors=1, metric="cosine").fit(features[~own])
        nearest = index.kneighbors(features[own], return_distance=False)[:, 0]
        right += list(kinds[~own][nearest] == kinds[own])
    monkeypatch.setattr(probes, "_AT_A_TIME", 64)
    assert probes.nearest_neighbour_accuracy(features, kinds, group) == np.mean(right)
