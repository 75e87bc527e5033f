"""Figures that a run leaves behind, as PNG. Colours are safe for colour-blind readers."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import axes as axes_lib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_curve

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#777777"

# Metrics of a training run worth a panel: name in metrics.jsonl, title.
_PANELS = (
    ("loss", "NT-Xent loss"),
    ("contrastive_accuracy", "contrastive accuracy"),
    ("effective_rank", "effective rank of the projections"),
    ("neighbour_accuracy", "nearest neighbour's label, other subject"),
    ("alignment", "alignment (distance² of positives)"),
    ("uniformity", "uniformity"),
    ("gradient_norm", "gradient norm"),
    ("clips_per_second", "clips per second"),
)


def _save(figure: Figure, path: pathlib.Path, note: str) -> pathlib.Path:
    """Writes a figure, with a note in its corner; without pyplot, so no state is left behind."""
    if note:
        figure.text(0.995, 0.005, note, ha="right", va="bottom", fontsize=8, color=ORANGE)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110)
    return path


def _plain(ax: axes_lib.Axes) -> None:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def views_figure(
    path: pathlib.Path, views: np.ndarray, *, hop_seconds: float, note: str = ""
) -> pathlib.Path:
    """Pairs of views as spectrograms, a row a clip: what the encoder sees.

    Args:
      path: of the PNG.
      views: [clips, 2, frames, mels] in decibels.
      hop_seconds: between frames.
      note: for the corner.
    """
    clips, _, frames, mels = views.shape
    figure = Figure(figsize=(7.0, 0.9 + 1.5 * clips), layout="constrained")
    grid = figure.subplots(clips, 2, sharex=True, sharey=True, squeeze=False)
    low, high = np.percentile(views, [2, 99.5])
    for row, pair in zip(grid, views, strict=True):
        for ax, spectrogram in zip(row, pair, strict=True):
            image = ax.imshow(
                spectrogram.T,
                origin="lower",
                aspect="auto",
                cmap="magma",
                vmin=low,
                vmax=high,
                extent=(0, frames * hop_seconds, 0, mels),
            )
    for ax, title in zip(grid[0], ("first view", "second view"), strict=True):
        ax.set_title(title, fontsize=10)
    figure.supxlabel("time (s)", fontsize=9)
    figure.supylabel("mel band, one clip a row", fontsize=9)
    figure.colorbar(image, ax=grid, label="level (dB, as normalised)", shrink=0.6)
    return _save(figure, path, note)


def training_figure(
    path: pathlib.Path, history: Sequence[Mapping[str, float]], *, note: str = ""
) -> pathlib.Path:
    """The course of a run's metrics over its steps.

    Args:
      path: of the PNG.
      history: the lines of metrics.jsonl.
      note: for the corner.
    """
    panels = [
        (title, [(line["step"], line[name]) for line in history if name in line])
        for name, title in _PANELS
    ]
    panels = [(title, points) for title, points in panels if points]
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.1 * columns, 2.3 * rows + 0.2), layout="constrained")
    for place, (title, points) in enumerate(panels, 1):
        ax = figure.add_subplot(rows, columns, place)
        ax.plot(*zip(*points, strict=True), color=BLUE, lw=1.2, marker="." * (len(points) < 20))
        ax.set_title(title, fontsize=9)
        ax.tick_params(labelsize=8)
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.grid(alpha=0.25, lw=0.5)
        _plain(ax)
    figure.supxlabel("step", fontsize=9)
    return _save(figure, path, note)


def confusion_figure(
    path: pathlib.Path,
    confusion: Sequence[Sequence[int]],
    labels: Sequence[str],
    title: str,
    *,
    note: str = "",
) -> pathlib.Path:
    """A confusion matrix: counts, on a ground shaded by the share of the true class.

    Args:
      path: of the PNG.
      confusion: [true, said] counts.
      labels: names of the classes.
      title: over it.
      note: for the corner.
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
    turned = {"rotation": 45, "ha": "right"} if max(map(len, labels)) > 3 else {}
    ax.set_xticks(range(len(labels)), labels, fontsize=8, **turned)
    ax.set_yticks(range(len(labels)), labels, fontsize=8)
    ax.set_xlabel("classified as")
    ax.set_ylabel("true class")
    ax.set_title(title, fontsize=9)
    figure.colorbar(image, ax=ax, label="share of the true class", shrink=0.8)
    return _save(figure, path, note)


def roc_figure(
    path: pathlib.Path, true: np.ndarray, score: np.ndarray, title: str, *, note: str = ""
) -> pathlib.Path:
    """The ROC curve of a detector.

    Args:
      path: of the PNG.
      true: int [recordings], 1 is positive.
      score: [recordings], higher is more positive.
      title: over it.
      note: for the corner.
    """
    false_positive, true_positive, _ = roc_curve(true, score)
    figure = Figure(figsize=(4.2, 4.2), layout="constrained")
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--", label="chance")
    ax.step(false_positive, true_positive, where="post", color=BLUE, lw=1.5, label="probe")
    ax.set_xlabel("1 − specificity")
    ax.set_ylabel("sensitivity")
    ax.set_aspect("equal")
    ax.set_title(title, fontsize=9)
    ax.legend(loc="lower right", fontsize=8, frameon=False)
    _plain(ax)
    return _save(figure, path, note)
