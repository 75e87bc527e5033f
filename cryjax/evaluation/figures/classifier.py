"""A classifier's confusion matrix and, with two classes, its ROC curve."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from cryjax.evaluation import bootstrap, metrics
from cryjax.evaluation.figures.style import BLUE, GREY, literal, plain, save

_GRID = np.linspace(0, 1, 201)  # of 1 − specificity
_RESAMPLES = 300


def confusion_figure(
    path: pathlib.Path,
    confusion: Sequence[Sequence[int]],
    labels: Sequence[str],
    title: str,
    *,
    note: str = "",
) -> pathlib.Path:
    """A confusion matrix: counts, cells shaded by the share of the true class.

    Args:
      path: of the PNG.
      confusion: [true, predicted] counts.
      labels: names of the classes.
      title: of the figure.
      note: in the corner.
    """
    counts = np.asarray(confusion)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.2 + 0.5 * len(labels)
    figure = Figure(figsize=(side + 0.9, side), layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if share[row, column] > 0.55 else "black"
        ax.text(column, row, count, ha="center", va="center", fontsize=8, color=colour)
    names = [*map(literal, labels)]
    ax.set_xticks(range(len(labels)), names, fontsize=8)
    if max(map(len, labels)) > 3:
        for tick in ax.get_xticklabels():
            tick.set(rotation=45, ha="right")
    ax.set_yticks(range(len(labels)), names, fontsize=8)
    ax.set_xlabel("classified as")
    ax.set_ylabel("true class")
    ax.set_title(literal(title), fontsize=9)
    figure.colorbar(image, ax=ax, label="share of the true class", shrink=0.8)
    return save(figure, path, note)


def _band(true: np.ndarray, score: np.ndarray, subjects: np.ndarray) -> np.ndarray:
    """95 % interval of sensitivity at each of `_GRID`, from resampled subjects: [2, grid]."""
    curves = []
    for weights in bootstrap.subject_weights(subjects, _RESAMPLES, 0):
        if weights @ true and weights @ (1 - true):
            there = weights > 0
            fall, rise, _ = roc_curve(true[there], score[there], sample_weight=weights[there])
            curves.append(np.interp(_GRID, fall, rise))
    # None if all are of one class.
    return bootstrap.interval(
        np.reshape(curves, (-1, len(_GRID))), *bootstrap.reach(true, subjects, 2)
    )


def roc_figure(
    path: pathlib.Path,
    true: np.ndarray,
    score: np.ndarray,
    subjects: np.ndarray,
    title: str,
    *,
    note: str = "",
) -> pathlib.Path:
    """The ROC curve of a detector, with a band from a bootstrap over subjects.

    Args:
      path: of the PNG.
      true: int [recordings], 1 is positive.
      score: [recordings], higher is more positive.
      subjects: [recordings].
      title: of the figure.
      note: in the corner.
    """
    false_positive, true_positive, _ = roc_curve(true, score)
    figure = Figure(figsize=(4.2, 4.2), layout="constrained")
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--", label="chance")
    ax.fill_between(
        _GRID, *_band(np.asarray(true), np.asarray(score), np.asarray(subjects)), color=BLUE,
        alpha=0.18, lw=0, label="95 % interval at each point",
    )  # fmt: skip
    # Straight between points, as the AUC counts equal scores; a step would be below.
    ax.plot(false_positive, true_positive, color=BLUE, lw=1.5, label="classifier")
    ax.set_xlabel("1 − specificity")
    ax.set_ylabel("sensitivity")
    ax.set_aspect("equal")
    ax.set_title(literal(title), fontsize=9)
    ax.legend(loc="lower right", fontsize=8, frameon=False)
    plain(ax)
    return save(figure, path, note)


def draw(
    figure: Callable[[str], pathlib.Path],
    result: Mapping[str, Any],
    true: np.ndarray,
    scores: np.ndarray,
    subjects: np.ndarray,
) -> None:
    """Both figures of a result.json, if single-label; the ROC curve only for two classes.

    Args:
      figure: name of a figure -> its path.
      result: the content of result.json.
      true: int [recordings], indices into its labels; or bool [recordings, classes].
      scores: [recordings, classes].
      subjects: [recordings].
    """
    if true.ndim > 1:
        return
    labels, note = result["labels"], "synthetic data" if result["synthetic"] else ""
    scored = f"{result['scored']} " if "scored" in result else ""
    title = f"{result['n_recordings']} {scored}recordings of {result['n_subjects']} subjects"
    confusion_figure(figure("confusion"), result["confusion"], labels, title, note=note)
    if len(labels) == 2 and len(np.unique(true)) == 2:
        _, score = metrics.detection(true, scores)
        title = f"'{labels[1]}', {title}"
        roc_figure(figure("roc"), true, score, subjects, title, note=note)
