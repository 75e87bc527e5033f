"""Metrics of a classifier over recordings, with intervals from a bootstrap over subjects.

Recordings of one subject resemble each other, so a subject is what is resampled: an interval over
recordings would be too narrow. A resample is a weight for each recording, how often its subject was
drawn, so every metric here is a weighted one and all resamples are computed at once.

Targets are of two kinds. Single-label: int [recordings], the class of each. Multi-label: bool
[recordings, classes], any number of them, as in AudioSet. A metric over classes is the mean over
those that a resample has; a class that it lacks is left out.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

from cryjax.data.subjects import numbered

LEVEL = 0.95
# A detector is judged by its sensitivity where it has this specificity.
SPECIFICITY = 0.8
# A label of several is said to be there from this probability on.
THRESHOLD = 0.5
CALIBRATION_BINS = 15
# Weights worked on at a time: few enough that what is made of them stays under 100 MB.
BLOCK = 2**20

# (targets, scores, weights [resamples, recordings]) -> [resamples]
Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _members(true: np.ndarray, classes: int) -> np.ndarray:
    """bool [recordings, classes]: which classes a recording is of."""
    return true.astype(bool) if true.ndim == 2 else true[:, None] == np.arange(classes)


def _hits(true: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """bool [recordings]: whether the class with the highest score is one of the recording's."""
    top = scores.argmax(axis=1)
    return _members(true, scores.shape[1])[np.arange(len(top)), top]


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole; NaN where there is nothing to divide by."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


def _macro(values: np.ndarray) -> np.ndarray:
    """[classes, resamples] -> [resamples]: the mean without NaNs; NaN of nothing else."""
    return _ratio(np.nansum(values, axis=0), np.isfinite(values).sum(axis=0))


def accuracy(true: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of recordings whose highest score is the true class's.

    Of several labels it is the top-1 hit rate: the highest score is that of any true class. A
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
    """Mean over the classes of a resample of their recall; single-label, shapes as `accuracy`."""
    members = _members(true, scores.shape[1])
    found = weights @ (members & _hits(true, scores)[:, None])
    return _macro(_ratio(found, weights @ members).T)


def f1(true: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over the classes of a resample of the harmonic mean of precision and recall.

    A class is said where its score is the highest; of several labels, where it is at least
    `THRESHOLD`, so there the scores have to be probabilities. A class that a resample lacks is left
    out even where it is said, as with `labels` in scikit-learn's f1_score: of one label, its false
    alarms lower the recall of other classes already. Shapes as `accuracy`.
    """
    classes = scores.shape[1]
    members = _members(true, classes)
    said = scores >= THRESHOLD if true.ndim == 2 else _members(scores.argmax(axis=1), classes)
    of_class = weights @ members
    values = _ratio(2 * (weights @ (members & said)), of_class + weights @ said)
    return _macro(np.where(of_class > 0, values, np.nan).T)


def _curve(
    positive: np.ndarray, score: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The weight of positives, and of negatives, at or above thresholds from high to low.

    A step of the curve is one score that positives have, or all the negatives between two such:
    nothing below depends on where among those a threshold is, and rare classes have few steps.
    Arguments as `auc`; returns two of [resamples, steps].
    """
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
      score: [recordings].
      weights: [resamples, recordings].

    Returns:
      [resamples], in [0, 1]; NaN where there are no positives or no negatives.
    """
    up, down = _curve(positive, score, weights)
    above = up - np.diff(up, axis=1, prepend=0.0) / 2
    won = np.sum(np.diff(down, axis=1, prepend=0.0) * above, axis=1)
    return _ratio(won, up[:, -1] * down[:, -1])


def _precision(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision of one class: arguments and result as `auc`, but 1 without negatives."""
    up, down = _curve(positive, score, weights)
    gained = np.diff(up, axis=1, prepend=0.0)
    # Where nothing is above a threshold, nothing is gained there either.
    total = np.sum(gained * up / np.maximum(up + down, np.finfo(float).tiny), axis=1)
    return _ratio(total, up[:, -1])


def _one_against_rest(
    metric: Metric, true: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    pairs = zip(_members(true, scores.shape[1]).T, scores.T, strict=True)
    return _macro(np.stack([metric(member, score, weights) for member, score in pairs]))


def macro_auc(true: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over the classes of a resample of one-against-rest `auc`; shapes as `accuracy`."""
    return _one_against_rest(auc, true, scores, weights)


def _detection(
    true: np.ndarray, scores: np.ndarray, positive: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which recordings are of the positive one of two classes, and how much more it scores."""
    return true == positive, np.subtract(scores[:, positive], scores[:, 1 - positive], dtype=float)


def average_precision(
    true: np.ndarray, scores: np.ndarray, weights: np.ndarray, *, positive: int = 1
) -> np.ndarray:
    """Mean over the classes of a resample of one-against-rest average precision (mAP).

    That of a class is the sum over thresholds of precision times the recall gained there, without
    interpolation, as in scikit-learn; by chance it is the share of the class. Of two classes, one
    label a recording, it is that of the positive one alone, scored as in `sensitivity`; NaN where
    that one is lacking. Shapes as `accuracy`.
    """
    if true.ndim == 1 and scores.shape[1] == 2:
        return _precision(*_detection(true, scores, positive), weights)
    return _one_against_rest(_precision, true, scores, weights)


def sensitivity(
    true: np.ndarray, scores: np.ndarray, weights: np.ndarray, *, positive: int = 1
) -> np.ndarray:
    """Sensitivity at `SPECIFICITY` for the positive one of two classes.

    The score is by how much the positive class has more than the other. The threshold is the
    lowest that leaves at least that share of the negatives under it. It is chosen on the same
    recordings, as in the literature, so it is an optimistic figure.

    Args:
      true: int [recordings].
      scores: [recordings, 2].
      weights: [resamples, recordings].
      positive: the class to detect.

    Returns:
      [resamples], in [0, 1]; NaN where there are no positives or no negatives.
    """
    up, down = _curve(*_detection(true, scores, positive), weights)
    allowed = down <= (1 - SPECIFICITY) * down[:, -1:] + 1e-9
    caught = np.max(np.where(allowed, up, 0.0), axis=1)
    return _ratio(caught, up[:, -1] * (down[:, -1] > 0))


def calibration_error(true: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Expected calibration error of the highest probability (Guo et al., 2017, equation 3).

    The mean over `CALIBRATION_BINS` equal bins (a, b] of probability, each by its share of the
    recordings, of the distance between accuracy and mean probability. It is biased upwards, the
    more so the fewer the recordings, and again in a resample: the interval of a well-calibrated
    classifier may lie above its value. Single-label, of probabilities; shapes as `accuracy`.
    """
    confidence = scores.max(axis=1).astype(float)
    edges = np.arange(1, CALIBRATION_BINS) / CALIBRATION_BINS
    inside = _members(np.digitize(confidence, edges, right=True), CALIBRATION_BINS)
    gaps = weights @ (inside * (_hits(true, scores) - confidence)[:, None])
    return np.abs(gaps).sum(axis=1) / weights.sum(axis=1)


def subject_weights(subjects: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Draws as many subjects as there are, with replacement, `resamples` times.

    Args:
      subjects: [recordings].
      resamples: how many.
      seed: of the draw.

    Returns:
      [resamples, recordings]: how often each recording's subject was drawn.
    """
    group, people = numbered(subjects)
    drawn = np.random.default_rng(seed).integers(people, size=(resamples, people))
    counts = np.zeros((resamples, people))
    np.add.at(counts, (np.arange(resamples)[:, None], drawn), 1.0)
    return counts[:, group]


def by_subject(
    true: np.ndarray, scores: np.ndarray, subjects: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """One row a subject, with the mean of the scores of its recordings.

    Args:
      true: int [recordings], or bool [recordings, classes].
      scores: [recordings, classes].
      subjects: [recordings].

    Returns:
      `true`, `scores` and `subjects` of the subjects, as they come; None where the recordings of
      one differ in their labels, so that it has none of its own.
    """
    group, people = numbered(subjects)
    _, first = np.unique(group, return_index=True)
    if not np.array_equal(true, true[first][group]):
        return None
    sums = np.zeros((people, scores.shape[1]))
    np.add.at(sums, group, scores)
    return true[first], sums / np.bincount(group)[:, None], subjects[first]


HEADLINES: dict[str, Metric] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_auc": macro_auc,
    "average_precision": average_precision,
    "f1": f1,
}
SENSITIVITY = f"sensitivity_at_{SPECIFICITY * 100:.0f}_specificity"


def headlines(
    true: np.ndarray, classes: int, *, positive: int = 1, probabilities: bool = False
) -> dict[str, Metric]:
    """The metrics that mean something for these targets; arguments as `summarise`."""
    if true.ndim == 2:
        left_out = {"balanced_accuracy"} if probabilities else {"balanced_accuracy", "f1"}
        return {name: metric for name, metric in HEADLINES.items() if name not in left_out}
    found = dict(HEADLINES)
    if classes == 2:
        found["average_precision"] = functools.partial(average_precision, positive=positive)
        found[SENSITIVITY] = functools.partial(sensitivity, positive=positive)
    if probabilities:
        found["calibration_error"] = calibration_error
    return found


def _bootstrap(
    true: np.ndarray,
    scores: np.ndarray,
    subjects: np.ndarray,
    resamples: int,
    seed: int,
    positive: int,
    probabilities: bool,
) -> dict[str, np.ndarray]:
    """metric -> [seeds, 1 + resamples]: of the recordings as they are, then of each resample."""
    seeds = scores if scores.ndim == 3 else scores[None]
    once = np.ones((1, len(true)))
    weights = np.concatenate([once, subject_weights(subjects, resamples, seed)])
    rows = max(1, BLOCK // len(true))
    blocks = [weights[start : start + rows] for start in range(0, len(weights), rows)]
    told = headlines(true, scores.shape[-1], positive=positive, probabilities=probabilities)
    return {
        name: np.concatenate([[metric(true, one, w) for one in seeds] for w in blocks], axis=1)
        for name, metric in told.items()
    }


def _interval(values: np.ndarray) -> list[float]:
    """The percentile interval at `LEVEL` of [resamples], those without a value left out."""
    return np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()


def summarise_seeds(
    true: np.ndarray,
    scores: np.ndarray,
    subjects: np.ndarray,
    *,
    resamples: int,
    seed: int,
    positive: int = 1,
    probabilities: bool = False,
) -> dict[str, dict[str, Any]]:
    """The headline metrics of a classifier trained with several seeds, on the same recordings.

    Args:
      true: int [recordings], or bool [recordings, classes].
      scores: [seeds, recordings, classes].
      subjects: [recordings].
      resamples: behind each interval; the same subjects are drawn for every seed.
      seed: of the bootstrap.
      positive: index of the class to detect, of two.
      probabilities: whether the scores are.

    Returns:
      metric -> its mean over seeds ('value'), the percentile interval of that mean at `LEVEL`
      ('interval'), which is over subjects and not over seeds, and its standard deviation over
      seeds ('spread', divided by S - 1; 0 for one seed).
    """
    found = _bootstrap(true, scores, subjects, resamples, seed, positive, probabilities)
    return {
        name: {
            "value": float(values[:, 0].mean()),
            "interval": _interval(values[:, 1:].mean(axis=0)),
            "spread": float(values[:, 0].std(ddof=1)) if len(values) > 1 else 0.0,
        }
        for name, values in found.items()
    }


def summarise(
    true: np.ndarray,
    scores: np.ndarray,
    labels: Sequence[str],
    subjects: np.ndarray,
    *,
    resamples: int,
    seed: int,
    positive: int = 1,
    probabilities: bool = False,
) -> dict[str, Any]:
    """The metrics of result.json.

    Args:
      true: int [recordings], indices into `labels`; or bool [recordings, classes].
      scores: [recordings, classes], the highest wins.
      labels: names of the classes.
      subjects: [recordings].
      probabilities: whether the scores are; then their calibration is told, or, of several labels,
        what `THRESHOLD` makes of them.
      resamples, seed, positive: as of `summarise_seeds`.

    Returns:
      Each headline metric; under 'intervals' its percentile interval at the level of `LEVEL`; the
      share of recordings that have the most frequent class; the confusion matrix, rows true, or of
      several labels [[tn, fp], [fn, tp]] of each (None without probabilities); counts.
    """
    found = _bootstrap(true, scores, subjects, resamples, seed, positive, probabilities)
    summary: dict[str, Any] = {name: float(values[0, 0]) for name, values in found.items()}
    summary["intervals"] = {name: _interval(values[0, 1:]) for name, values in found.items()}
    confusion = None
    if true.ndim == 1:
        if len(labels) == 2:
            summary["positive"] = labels[positive]
        said = scores.argmax(axis=1)
        confusion = confusion_matrix(true, said, labels=range(len(labels))).tolist()
    elif probabilities:
        pairs = zip(true.T, (scores >= THRESHOLD).T, strict=True)
        confusion = [confusion_matrix(*pair, labels=[False, True]).tolist() for pair in pairs]
    return summary | {
        "majority_accuracy": float(_members(true, len(labels)).mean(axis=0).max()),
        "confusion": confusion,
        "labels": list(labels),
        "n_recordings": len(true),
        "n_subjects": len(np.unique(subjects)),
        "resamples": resamples,
    }


def differences(
    true: np.ndarray,
    scores: np.ndarray,
    others: np.ndarray,
    subjects: np.ndarray,
    *,
    resamples: int,
    seed: int,
    positive: int = 1,
    probabilities: bool = False,
) -> dict[str, dict[str, Any]]:
    """How much better one classifier is than another on the same recordings: a paired bootstrap.

    Args:
      true: int [recordings], or bool [recordings, classes].
      scores: [recordings, classes] of the one, or [seeds, recordings, classes]: then the mean of
        a metric over its seeds is compared.
      others: of the other, likewise; its seeds may be more or fewer.
      subjects: [recordings].
      resamples, seed, positive, probabilities: as of `summarise_seeds`; the same subjects are
        drawn for both. Of a calibration error less is better.

    Returns:
      metric -> {'value', 'interval'} of the difference.
    """
    options = (subjects, resamples, seed, positive, probabilities)
    one, other = _bootstrap(true, scores, *options), _bootstrap(true, others, *options)
    gaps = {name: one[name].mean(axis=0) - other[name].mean(axis=0) for name in one}
    return {
        name: {"value": float(gap[0]), "interval": _interval(gap[1:])} for name, gap in gaps.items()
    }


def table(result: dict[str, Any]) -> str:
    """The headline numbers, with their intervals, for a person to read."""

    def cell(value: float, interval: list[float], sign: str = "") -> str:
        return f"{value:{sign}.3f} [{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}]"

    names = list(result["intervals"])
    width = max(map(len, names)) + 2
    floor = result.get("floor")
    one = [result["init"] or "from scratch"]
    heads = ["pre-trained", "untrained (floor)", "difference"] if floor else one
    lines = [" " * (width + 2) + "".join(f"{head:<26}" for head in heads).rstrip()]
    for name in names:
        cells = [cell(result[name], result["intervals"][name])]
        if floor:
            difference = floor["difference"][name]
            cells.append(cell(floor[name], floor["intervals"][name]))
            cells.append(cell(difference["value"], difference["interval"], "+"))
        lines.append(f"  {name:<{width}}" + "".join(f"{c:<26}" for c in cells).rstrip())
    lines.append(f"  {'majority_accuracy':<{width}}{result['majority_accuracy']:.3f}")
    return "\n".join(lines)
