"""Weighted metrics of a classifier over recordings.

A bootstrap resample is a weight for each recording, so that all resamples are computed at once; see
`cryjax.evaluation.bootstrap`.

Targets are of two kinds. Single-label: int [recordings], the class of each. Multi-label: bool
[recordings, classes], any number of classes each, as in AudioSet. A metric over classes is the mean
over the classes present in a resample.

A score is NaN where the classifier was trained without the class: it says nothing about it. Such a
class is never predicted, and its one-against-rest metrics leave out all recordings without a score,
since the classifier says nothing about the rest either.
"""

from collections.abc import Callable

import numpy as np

from cryjax.command.errors import UserError
from cryjax.data.subjects import numbered

# The specificity at which a detector's sensitivity is reported.
SPECIFICITY = 0.8
# Multi-label: a class is predicted from this probability up.
THRESHOLD = 0.5
CALIBRATION_BINS = 15

# (targets, scores, weights [resamples, recordings]) -> [resamples]
Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def memberships(true: np.ndarray, classes: int) -> np.ndarray:
    """bool [recordings, classes]: which classes a recording has."""
    return true.astype(bool) if true.ndim == 2 else true[:, None] == np.arange(classes)


def check_finite(values: np.ndarray, what: str, recordings: np.ndarray | None = None) -> None:
    """Raises UserError if any of `values` is NaN or infinite.

    Args:
      values: [recordings, anything].
      what: their name in the message.
      recordings: int [recordings], their numbers; row indices are reported if None.
    """
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        named = "rows" if recordings is None else "recordings"
        first = (bad if recordings is None else recordings[bad])[:5]
        raise UserError(
            f"{len(bad)} of {len(values)} recordings have {what} that are not finite, starting "
            f"with {named} {', '.join(map(str, first))}: if it is all of them, training has "
            "diverged; if only some, listen to those and leave them out"
        )


def scores_of(probabilities: np.ndarray, learnt: np.ndarray) -> np.ndarray:
    """[recordings, classes] scores to classify by: NaN for classes that were not learnt.

    Training made their probability low for everybody; pooled with those of a fold that learnt them,
    it would rank recordings by fold.
    """
    return np.where(learnt, probabilities, np.nan)


def winners(scores: np.ndarray) -> np.ndarray:
    """int [recordings]: the class with the highest score; -1 if all are NaN."""
    silent = np.isnan(scores)
    return np.where(silent.all(axis=1), -1, np.where(silent, -np.inf, scores).argmax(axis=1))


def _hits(true: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """bool [recordings]: whether the class with the highest score is one of the recording's."""
    classes = scores.shape[1]
    return np.any(memberships(true, classes) & memberships(winners(scores), classes), axis=1)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole; NaN where `whole` is 0."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


def _macro(values: np.ndarray) -> np.ndarray:
    """[classes, resamples] -> [resamples]: the mean without NaNs; NaN if all are."""
    return _ratio(np.nansum(values, axis=0), np.isfinite(values).sum(axis=0))


def accuracy(true: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of recordings whose highest score is the true class's.

    For multi-label targets, the top-1 hit rate: the highest score is that of any true class. A
    recording without a label then counts as a miss.

    Args:
      true: int [recordings], or bool [recordings, classes].
      scores: [recordings, classes].
      weights: [resamples, recordings].

    Returns:
      [resamples], in [0, 1].
    """
    return weights @ _hits(true, scores) / weights.sum(axis=1)


def balanced_accuracy(true: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean recall over the classes in a resample; single-label, shapes as in `accuracy`."""
    members = memberships(true, scores.shape[1])
    found = weights @ (members & _hits(true, scores)[:, None])
    return _macro(_ratio(found, weights @ members).T)


def f1(true: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over the classes in a resample of the harmonic mean of precision and recall.

    A class is predicted where its score is the highest; for multi-label targets, where it is at
    least `THRESHOLD`, so scores must be probabilities. A class absent from a resample is left out
    even where predicted, as with `labels` in scikit-learn's f1_score: in single-label data, its
    false positives already lower the recall of other classes. Shapes as in `accuracy`.
    """
    classes = scores.shape[1]
    members = memberships(true, classes)
    predicted = scores >= THRESHOLD if true.ndim == 2 else memberships(winners(scores), classes)
    of_class = weights @ members
    values = _ratio(2 * (weights @ (members & predicted)), of_class + weights @ predicted)
    return _macro(np.where(of_class > 0, values, np.nan).T)


def _curve(
    positive: np.ndarray, score: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The weight of positives, and of negatives, at or above thresholds from high to low.

    A step of the curve is one score that positives have, or all negatives between two such scores:
    no metric depends on where a threshold lies among those, and rare classes have few steps.
    Recordings without a score are left out. Arguments as in `auc`; returns two [resamples, steps].
    """
    scored = ~np.isnan(score)
    if not scored.any():
        return np.zeros((len(weights), 1)), np.zeros((len(weights), 1))
    if not scored.all():
        positive, score, weights = positive[scored], score[scored], weights[:, scored]
    order = np.argsort(score)[::-1]
    falling, positive = score[order], positive[order]
    starts = np.flatnonzero(np.append(True, falling[1:] != falling[:-1]))  # of equal scores
    has = np.logical_or.reduceat(positive, starts)
    starts = starts[has | np.append(True, has[:-1])]
    drawn = weights[:, order]
    up = np.cumsum(np.add.reduceat(drawn * positive, starts, axis=1), axis=1)
    down = np.cumsum(np.add.reduceat(drawn * ~positive, starts, axis=1), axis=1)
    return up, down


def auc(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve: how often a positive scores above a negative, ties counting half.

    Args:
      positive: bool [recordings].
      score: [recordings], NaN where there is none.
      weights: [resamples, recordings].

    Returns:
      [resamples], in [0, 1]; NaN where there are no positives or no negatives.
    """
    up, down = _curve(positive, score, weights)
    above = up - np.diff(up, axis=1, prepend=0.0) / 2
    won = np.sum(np.diff(down, axis=1, prepend=0.0) * above, axis=1)
    return _ratio(won, up[:, -1] * down[:, -1])


def _precision(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision of one class: arguments and result as in `auc`, but 1 without negatives."""
    up, down = _curve(positive, score, weights)
    gained = np.diff(up, axis=1, prepend=0.0)
    # Where nothing is above a threshold, nothing is gained there either.
    total = np.sum(gained * up / np.maximum(up + down, np.finfo(float).tiny), axis=1)
    return _ratio(total, up[:, -1])


def _one_against_rest(
    metric: Metric, true: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    pairs = zip(memberships(true, scores.shape[1]).T, scores.T, strict=True)
    return _macro(np.stack([metric(member, score, weights) for member, score in pairs]))


def macro_auc(true: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over the classes in a resample of one-against-rest `auc`; shapes as in `accuracy`.

    With two classes, single-label, both are the AUC of `detection`.
    """
    if true.ndim == 1 and scores.shape[1] == 2:
        return auc(*detection(true, scores), weights)
    return _one_against_rest(auc, true, scores, weights)


def detection(true: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which recordings are of the second of two classes, and by how much it scores higher.

    In float64: in float32, the differences of nearly certain probabilities would tie.

    Args:
      true: int [recordings].
      scores: [recordings, 2].

    Returns:
      bool [recordings] and float64 [recordings].
    """
    return true == 1, np.subtract(scores[:, 1], scores[:, 0], dtype=float)


def average_precision(true: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over the classes in a resample of one-against-rest average precision (mAP).

    That of a class is the sum over thresholds of precision times the recall gained there, without
    interpolation, as in scikit-learn; by chance it is the share of the class. With two classes,
    single-label, it is that of the positive class alone, scored as in `sensitivity`; NaN where that
    is absent. Shapes as in `accuracy`.
    """
    if true.ndim == 1 and scores.shape[1] == 2:
        return _precision(*detection(true, scores), weights)
    return _one_against_rest(_precision, true, scores, weights)


def sensitivity(true: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sensitivity at `SPECIFICITY` for the positive class, the second of two.

    The score is that of the positive class minus the other's. The threshold is the lowest that
    leaves at least that share of the negatives below it. It is chosen on the same recordings, as in
    the literature, so the figure is optimistic.

    Args:
      true: int [recordings].
      scores: [recordings, 2].
      weights: [resamples, recordings].

    Returns:
      [resamples], in [0, 1]; NaN where there are no positives or no negatives.
    """
    up, down = _curve(*detection(true, scores), weights)
    allowed = down <= (1 - SPECIFICITY) * down[:, -1:] + 1e-9
    caught = np.max(np.where(allowed, up, 0.0), axis=1)
    return _ratio(caught, up[:, -1] * (down[:, -1] > 0))


def calibration_error(true: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Expected calibration error of the highest probability (Guo et al., 2017, equation 3).

    The mean over `CALIBRATION_BINS` equal-width bins (a, b] of probability, weighted by their
    share of recordings, of the distance between accuracy and mean probability. Biased upwards, more
    so with fewer recordings, and again in a resample: the interval of a well-calibrated classifier
    may lie above its value. Single-label, for probabilities; shapes as in `accuracy`.
    """
    confidence = np.nanmax(scores, axis=1).astype(float)
    edges = np.arange(1, CALIBRATION_BINS) / CALIBRATION_BINS
    inside = memberships(np.digitize(confidence, edges, right=True), CALIBRATION_BINS)
    gaps = weights @ (inside * (_hits(true, scores) - confidence)[:, None])
    return np.abs(gaps).sum(axis=1) / weights.sum(axis=1)


def by_subject(
    true: np.ndarray, scores: np.ndarray, subjects: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """One row per subject, with the mean scores of its recordings.

    Args:
      true: int [recordings], or bool [recordings, classes].
      scores: [recordings, classes].
      subjects: [recordings].

    Returns:
      `true`, `scores` and `subjects` of the subjects, in order of appearance; None if the
      recordings of one differ in their labels, so that it has none of its own.
    """
    group, people = numbered(subjects)
    _, first = np.unique(group, return_index=True)
    if not np.array_equal(true, true[first][group]):
        return None
    sums = np.zeros((people, scores.shape[1]))
    np.add.at(sums, group, scores)
    return true[first], sums / np.bincount(group)[:, None], subjects[first]


# Means over classes: in a resample that lacks a class, they measure something else.
OVER_CLASSES = ("balanced_accuracy", "macro_auc", "average_precision", "f1")
HEADLINES: dict[str, Metric] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_auc": macro_auc,
    "average_precision": average_precision,
    "f1": f1,
}
SENSITIVITY = f"sensitivity_at_{SPECIFICITY * 100:.0f}_specificity"


def headlines(true: np.ndarray, classes: int, *, probabilities: bool = False) -> dict[str, Metric]:
    """The metrics that are meaningful for these targets.

    Args:
      true: int [recordings], or bool [recordings, classes].
      classes: number of classes.
      probabilities: whether the scores are.
    """
    if true.ndim == 2:
        left_out = {"balanced_accuracy"} if probabilities else {"balanced_accuracy", "f1"}
        return {name: metric for name, metric in HEADLINES.items() if name not in left_out}
    found = dict(HEADLINES)
    if classes == 2:
        found[SENSITIVITY] = sensitivity
    if probabilities:
        found["calibration_error"] = calibration_error
    return found


_METRIC_NAMES = {
    "macro_auc": "macro AUC",
    "f1": "F1",
    SENSITIVITY: f"sensitivity at {100 * SPECIFICITY:.0f} % specificity",
}


def metric_name(metric: str, classes: int) -> str:
    """A metric for a reader: 'macro_auc' -> 'macro AUC', or 'AUC' with two classes."""
    if metric == "macro_auc" and classes == 2:
        return "AUC"
    return _METRIC_NAMES.get(metric, metric.replace("_", " "))
