"""Metrics of a classifier over recordings, with intervals from a bootstrap over subjects.

Recordings of one subject resemble each other, so a subject is what is resampled: an interval over
recordings would be too narrow. A resample is a weight for each recording, how often its subject was
drawn, so every metric here is a weighted one and all resamples are computed at once.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

LEVEL = 0.95
# A detector is judged by its sensitivity where it has this specificity.
SPECIFICITY = 0.8


def accuracy(true: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of recordings whose highest score is the true class's.

    Args:
      true: int [recordings].
      scores: [recordings, classes].
      weights: [resamples, recordings].

    Returns:
      [resamples], in [0, 1].
    """
    right = scores.argmax(axis=1) == true
    return weights @ right / weights.sum(axis=1)


def _mean_where_defined(values: list[np.ndarray]) -> np.ndarray:
    """[classes] of [resamples] -> [resamples], without NaNs; NaN where there is nothing else."""
    table = np.stack(values)
    defined = np.isfinite(table)
    count = defined.sum(axis=0)
    total = np.where(defined, table, 0.0).sum(axis=0)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def balanced_accuracy(true: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over the classes of a resample of their recall; shapes as `accuracy`."""
    right = scores.argmax(axis=1) == true
    recalls = []
    for label in range(scores.shape[1]):
        of_class = weights * (true == label)
        count = of_class.sum(axis=1)
        recalls.append(
            np.divide(of_class @ right, count, out=np.full(len(count), np.nan), where=count > 0)
        )
    return _mean_where_defined(recalls)


def auc(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve: how often a positive scores above a negative, ties counting half.

    Args:
      positive: bool [recordings].
      score: [recordings].
      weights: [resamples, recordings].

    Returns:
      [resamples], in [0, 1]; NaN where there are no positives or no negatives.
    """
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))  # of runs of equal scores
    up = np.add.reduceat(weights[:, order] * positive[order], starts, axis=1)
    down = np.add.reduceat(weights[:, order] * ~positive[order], starts, axis=1)
    below = np.cumsum(down, axis=1) - down / 2
    pairs = up.sum(axis=1) * down.sum(axis=1)
    won = np.sum(up * below, axis=1)
    return np.divide(won, pairs, out=np.full(len(won), np.nan), where=pairs > 0)


def macro_auc(true: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over the classes of a resample of one-against-rest `auc`; shapes as `accuracy`."""
    return _mean_where_defined(
        [auc(true == label, scores[:, label], weights) for label in range(scores.shape[1])]
    )


def sensitivity(true: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sensitivity at `SPECIFICITY` for the second of two classes.

    The threshold is the lowest score that leaves at least that share of the negatives under it. It
    is chosen on the same recordings, as in the literature, so it is an optimistic figure.

    Args:
      true: int [recordings], 1 is positive.
      scores: [recordings, 2].
      weights: [resamples, recordings].

    Returns:
      [resamples], in [0, 1]; NaN where there are no positives or no negatives.
    """
    score = scores[:, 1] - scores[:, 0]
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.diff(score[order], append=-np.inf))  # of runs of equal scores
    up = np.cumsum(weights[:, order] * (true[order] == 1), axis=1)[:, ends]
    down = np.cumsum(weights[:, order] * (true[order] != 1), axis=1)[:, ends]
    allowed = down <= (1 - SPECIFICITY) * down[:, -1:] + 1e-9
    caught = np.max(np.where(allowed, up, 0.0), axis=1)
    sound = (up[:, -1] > 0) & (down[:, -1] > 0)
    return np.divide(caught, up[:, -1], out=np.full(len(caught), np.nan), where=sound)


def subject_weights(subjects: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Draws as many subjects as there are, with replacement, `resamples` times.

    Args:
      subjects: [recordings].
      resamples: how many.
      seed: of the draw.

    Returns:
      [resamples, recordings]: how often each recording's subject was drawn.
    """
    names, group = np.unique(subjects, return_inverse=True)
    drawn = np.random.default_rng(seed).integers(len(names), size=(resamples, len(names)))
    counts = np.zeros((resamples, len(names)))
    np.add.at(counts, (np.arange(resamples)[:, None], drawn), 1.0)
    return counts[:, group]


Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
HEADLINES: dict[str, Metric] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_auc": macro_auc,
}
SENSITIVITY = f"sensitivity_at_{SPECIFICITY * 100:.0f}_specificity"


def _headlines(classes: int) -> dict[str, Metric]:
    return HEADLINES | ({SENSITIVITY: sensitivity} if classes == 2 else {})


def _interval(values: np.ndarray) -> list[float]:
    """The percentile interval at `LEVEL` of [resamples], those without a value left out."""
    return np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()


def summarise(
    true: np.ndarray,
    scores: np.ndarray,
    labels: Sequence[str],
    subjects: np.ndarray,
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """The metrics of result.json.

    Args:
      true: int [recordings], indices into `labels`.
      scores: [recordings, classes], the highest wins.
      labels: names of the classes.
      subjects: [recordings].
      resamples: behind each interval.
      seed: of the bootstrap.

    Returns:
      Each headline metric; under 'intervals' its percentile interval at the level of `LEVEL`; the
      share of the most frequent class; the confusion matrix, rows true; counts.
    """
    once = np.ones((1, len(true)))
    weights = subject_weights(subjects, resamples, seed)
    headlines = _headlines(len(labels))
    summary: dict[str, Any] = {
        name: float(metric(true, scores, once)[0]) for name, metric in headlines.items()
    }
    summary["intervals"] = {
        name: _interval(metric(true, scores, weights)) for name, metric in headlines.items()
    }
    if len(labels) == 2:
        summary["positive"] = labels[1]  # of the sensitivity
    counts = np.bincount(true, minlength=len(labels))
    return summary | {
        "majority_accuracy": float(counts.max() / counts.sum()),
        "confusion": confusion_matrix(
            true, scores.argmax(axis=1), labels=range(len(labels))
        ).tolist(),
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
) -> dict[str, dict[str, Any]]:
    """How much better one classifier is than another on the same recordings: a paired bootstrap.

    Args:
      true: int [recordings].
      scores: [recordings, classes] of the one.
      others: [recordings, classes] of the other.
      subjects: [recordings].
      resamples: behind each interval; the same subjects are drawn for both.
      seed: of the bootstrap.

    Returns:
      metric -> {'value', 'interval'} of the difference.
    """
    once = np.ones((1, len(true)))
    weights = subject_weights(subjects, resamples, seed)

    def gap(metric: Metric, drawn: np.ndarray) -> np.ndarray:
        return metric(true, scores, drawn) - metric(true, others, drawn)

    return {
        name: {"value": float(gap(metric, once)[0]), "interval": _interval(gap(metric, weights))}
        for name, metric in _headlines(scores.shape[1]).items()
    }
