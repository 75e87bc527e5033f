"""Linear probes of frozen embeddings, fitted on some subjects and scored on others."""

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler, normalize

from cryjax.command.errors import TooFewLabels
from cryjax.data.subjects import numbered
from cryjax.evaluation import bootstrap, metrics
from cryjax.evaluation import folds as folds_lib

INNER_FOLDS = 5
_AT_A_TIME = 1024  # recordings compared with all others


def _from_the_middle(penalties: np.ndarray) -> np.ndarray:
    """Middle first: among ties, as with a handful of labels, the search takes the first."""
    distance = np.abs(np.arange(len(penalties)) - len(penalties) // 2)
    return penalties[np.argsort(distance, kind="stable")]


# Penalties per training recording, on standardised features: from almost none to one that shrinks
# everything away.
RIDGE_PENALTIES = _from_the_middle(np.logspace(-4, 2, 13))
LOGISTIC_PENALTIES = _from_the_middle(np.logspace(-4, 0, 7))


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """A probe's scores of held-out recordings.

    Attributes:
      rows: int [n], indices into the recordings given, ascending.
      true: int [n] classes.
      scores: [n, classes], the highest wins; not probabilities. NaN where the training recordings
        lack the class.
      subjects: [n].
      trained: number of training recordings, mean over folds.
      trained_subjects: number of their subjects, likewise.
      penalties: the one chosen in each fold.
      warnings: what a reader of the numbers should know.
    """

    rows: np.ndarray
    true: np.ndarray
    scores: np.ndarray
    subjects: np.ndarray
    trained: float
    trained_subjects: float
    penalties: tuple[float, ...]
    warnings: tuple[str, ...]


def _scores(model: Pipeline, features: np.ndarray, classes: int) -> np.ndarray:
    """[n, classes]: the model's scores, and NaN for a class it never saw.

    Those of a recording have a mean of 0: ridge's, 2 / classes - 1, would rank the recordings of a
    fold that lacks a class above all others.
    """
    found = model.decision_function(features)
    if found.ndim == 1:
        found = np.stack([-found, found], axis=1)
    found = found - found.mean(axis=1, keepdims=True)
    scores = np.full((len(features), classes), np.nan)
    scores[:, model.classes_] = found
    return scores


def fit(
    features: np.ndarray, labels: np.ndarray, subjects: np.ndarray, *, classifier: str, seed: int
) -> tuple[Pipeline, float]:
    """Fits a linear classifier on standardised features, its penalty chosen by grouped folds.

    'ridge' is least squares on targets of -1 and 1, in closed form; 'logistic' is multinomial with
    an L2 penalty. Classes weigh the same, as in `cryjax.finetune`. The penalty is the one with the
    best macro AUC on held-out subjects within the recordings given, so that no test subject
    influences it. AUC is blind to how far scores are shrunk: without class weights, a heavy penalty
    leaves only the class shares, and the commonest class is predicted throughout.

    Args:
      features: [recordings, features].
      labels: int [recordings], of at least two classes.
      subjects: [recordings], at least two.
      classifier: 'ridge' or 'logistic'.
      seed: of the folds.

    Returns:
      The model, and its penalty per recording.
    """
    count = len(labels)
    if classifier == "ridge":
        model = make_pipeline(StandardScaler(), RidgeClassifier(class_weight="balanced"))
        penalties = RIDGE_PENALTIES
        grid = {"ridgeclassifier__alpha": penalties * count}
    else:
        logistic = LogisticRegression(max_iter=500, class_weight="balanced")
        model = make_pipeline(StandardScaler(), logistic)
        penalties = LOGISTIC_PENALTIES
        grid = {"logisticregression__C": 1.0 / (penalties * count)}
    total = labels.max() + 1

    def score(fitted: Pipeline, held_out: np.ndarray, true: np.ndarray) -> float:
        scores = _scores(fitted, held_out, total)
        found = metrics.macro_auc(true, scores, np.ones((1, len(true))))[0]
        return 0.5 if np.isnan(found) else found  # a fold of one class says nothing

    # A fold whose training part has one class cannot be fitted.
    folds = [
        (train, test)
        for train, test in folds_lib.grouped_folds(labels, subjects, INNER_FOLDS, seed)
        if len(set(labels[train])) > 1
    ]
    if not folds:
        raise TooFewLabels(
            f"{count} recordings of {len(set(subjects))} subject(s) to fit a probe on are too few "
            "to choose its penalty by subject; use more subjects, or a higher config.folds"
        )
    search = GridSearchCV(model, grid, scoring=score, cv=folds)
    with warnings.catch_warnings():
        # The search includes penalties so weak that the optimiser runs out of steps; they lose.
        warnings.simplefilter("ignore", ConvergenceWarning)
        search.fit(features, labels)
    return search.best_estimator_, float(penalties[search.best_index_])


def _check_enough(labels: np.ndarray, subjects: np.ndarray) -> None:
    """Raises TooFewLabels if no probe can be fitted and scored."""
    if len(set(labels)) < 2:
        raise TooFewLabels(
            f"{len(labels)} labelled recordings of {len(set(labels))} class(es); "
            "a probe needs at least two classes"
        )
    count = len(set(subjects))
    if count < 3:
        raise TooFewLabels(
            f"{count} subject(s); a probe needs at least 3: some to fit it, some to choose its "
            "penalty, some to score; fill in the manifest's column 'subject'"
        )


def _divide(
    labels: np.ndarray, subjects: np.ndarray, folds: int, splits: np.ndarray | None, seed: int
) -> tuple[folds_lib.Parts, list[str]]:
    """Train and test indices of each fold, and warnings; arguments as in `probe`."""
    count, remarks = len(set(subjects)), []
    if splits is None:
        parts = folds_lib.grouped_folds(labels, subjects, folds, seed)
        if not parts:
            raise TooFewLabels(
                f"{len(labels)} recordings of {count} subjects cannot be divided into stratified "
                "folds; a probe needs at least two recordings of a class"
            )
        if len(parts) < folds:
            remarks.append(f"{len(parts)} folds instead of {folds}: {count} subjects allow no more")
    else:
        parts = folds_lib.own_split(subjects, splits)
        if min(len(set(subjects[train])) for train, _ in parts) < 2:
            raise TooFewLabels(
                "1 subject in 'train'; a probe needs 2, to choose its penalty by subject"
            )
    for number, (train, _) in enumerate(parts, 1):
        _check_classes(number, labels[train])
    return parts, remarks


def _check_classes(fold: int, trained: np.ndarray) -> None:
    """Raises TooFewLabels if a fold's training recordings are all of one class."""
    if len(set(trained)) < 2:
        raise TooFewLabels(
            f"fold {fold} has only one class among its training subjects; every class needs "
            "several subjects: use other folds or another config.seed, or add subjects"
        )


def check(
    labels: np.ndarray, subjects: np.ndarray, folds: int, splits: np.ndarray | None, seed: int
) -> None:
    """Raises what `probe` would raise for such recordings, before they are embedded."""
    _check_enough(labels, subjects)
    _divide(labels, subjects, folds, splits, seed)


def _lacking(fold: int, trained: np.ndarray, tested: np.ndarray, names: Sequence[str]) -> list[str]:
    """Warnings about test classes that a fold's training recordings lack."""
    seen = set(trained)
    return [
        f"fold {fold}: no training recording has class {names[number]!r}, so its "
        f"{np.sum(tested == number)} test recording(s) cannot be recognised; its AUC and average "
        "precision leave out this fold"
        for number in sorted(set(tested) - seen)
    ]


def probe(
    features: np.ndarray,
    labels: np.ndarray,
    subjects: np.ndarray,
    *,
    classifier: str = "ridge",
    folds: int = 5,
    splits: np.ndarray | None = None,
    seed: int = 0,
    fraction: float = 1.0,
    label_seed: int = 0,
    classes: Sequence[str] | None = None,
    recordings: np.ndarray | None = None,
) -> ProbeResult:
    """Scores every held-out recording with a classifier that never saw its subject.

    Args:
      features: [recordings, features].
      labels: int [recordings], classes from 0 up.
      subjects: [recordings].
      classifier: 'ridge' or 'logistic'.
      folds: grouped, stratified; at most one per subject. Scores of all folds are pooled; the
        AUC is too low if classifiers lean towards classes frequent in their training parts.
      splits: [recordings], or None: instead of folds, fit on 'train' and 'validation' and score
        'test', or score 'fold1', 'fold2', ... in turn.
      seed: of the folds.
      fraction: of the training subjects to fit on, in (0, 1].
      label_seed: selects those subjects.
      classes: names for the warnings; numbers if None.
      recordings: int [recordings], their numbers, to report non-finite features by.

    Raises:
      TooFewLabels: with one class, or too few subjects.
      UserError: if features, or scores made from them, are not finite.
    """
    metrics.check_finite(features, "embeddings", recordings)
    _check_enough(labels, subjects)
    classes = classes or [str(number) for number in range(int(labels.max()) + 1)]
    parts, remarks = _divide(labels, subjects, folds, splits, seed)
    tested, scores, penalties, trained, people = [], [], [], [], []
    for number, (train, test) in enumerate(parts, 1):
        names = labels[train].astype(str)
        train = train[folds_lib.take_fraction(names, subjects[train], fraction, label_seed)]
        _check_classes(number, labels[train])  # again, as a fraction has fewer
        remarks += _lacking(number, labels[train], labels[test], classes)
        model, penalty = fit(
            features[train], labels[train], subjects[train], classifier=classifier, seed=seed
        )
        tested.append(test)
        found = _scores(model, features[test], len(classes))
        learnt = found[:, np.unique(labels[train])]
        metrics.check_finite(learnt, "scores", None if recordings is None else recordings[test])
        scores.append(found)
        penalties.append(penalty)
        trained.append(len(train))
        people.append(len(set(subjects[train])))
    rows = np.concatenate(tested)
    if len(set(labels[rows])) < 2:
        raise TooFewLabels(
            f"the {len(rows)} recordings to score are all of one class, so there is nothing to "
            "tell apart; set config.folds=5, or use another split"
        )
    order = np.argsort(rows)
    rows = rows[order]
    remarks += bootstrap.cautions(labels[rows], subjects[rows], classes)
    return ProbeResult(
        rows,
        labels[rows],
        np.concatenate(scores)[order],
        subjects[rows],
        float(np.mean(trained)),
        float(np.mean(people)),
        tuple(penalties),
        tuple(remarks),
    )


def nearest_neighbour_accuracy(
    features: np.ndarray, labels: np.ndarray, subjects: np.ndarray
) -> float | None:
    """Share of recordings whose nearest neighbour of another subject, by cosine, has their label.

    Args:
      features: [recordings, features].
      labels: [recordings] names; recordings with '' are left out.
      subjects: [recordings].

    Returns:
      In [0, 1], or None with fewer than two subjects or labels.
    """
    kept = labels != ""
    features, labels, subjects = features[kept], labels[kept], subjects[kept]
    if len(set(labels)) < 2 or len(set(subjects)) < 2:
        return None
    features, (group, _) = normalize(features), numbered(subjects)
    nearest = []
    for start in range(0, len(features), _AT_A_TIME):
        rows = slice(start, start + _AT_A_TIME)
        similarity = features[rows] @ features.T
        similarity[group[rows, None] == group] = -np.inf
        nearest.append(similarity.argmax(axis=1))
    return float(np.mean(labels[np.concatenate(nearest)] == labels))
