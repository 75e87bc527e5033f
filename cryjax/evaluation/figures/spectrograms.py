"""Spectrograms: the views that an encoder is trained on, and a recording with its scores."""

import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib import axes as axes_lib
from matplotlib.figure import Figure

from cryjax.evaluation.figures.style import (
    AMBER,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    Place,
    literal,
    plain,
    save,
    short,
)


def views_figure(path: Place, views: np.ndarray, *, hop_seconds: float, note: str = "") -> Place:
    """Pairs of views as spectrograms, one clip per row: what the encoder sees.

    Args:
      path: of the PNG.
      views: [clips, 2, frames, mels] in decibels.
      hop_seconds: between frames.
      note: in the corner.
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
    figure.supylabel("mel band, one clip per row", fontsize=9)
    figure.colorbar(image, ax=grid, label="level (dB, as normalised)", shrink=0.6)
    return save(figure, path, note)


def _in_columns(spectrum: np.ndarray, most: int = 1500) -> np.ndarray:
    """[frames, mels] reduced to at most `most` frames, each the maximum of its neighbours."""
    step = -(-len(spectrum) // most)
    return np.maximum.reduceat(spectrum, np.arange(0, len(spectrum), step))


def _draw_scores(
    ax: axes_lib.Axes, places: np.ndarray, scores: np.ndarray, labels: Sequence[str]
) -> None:
    """Plots the likeliest classes over time: [windows] places, [windows, classes] scores."""
    styles = [(c, s) for s in ("-", "--") for c in (BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY)]
    shown = np.argsort(-scores.mean(axis=0), kind="stable")[:6]
    together = -(-len(scores) // 300)  # more points would be unreadable
    starts = np.arange(0, len(scores), together)
    counts = np.diff([*starts, len(scores)])
    places = np.add.reduceat(places, starts) / counts
    scores = np.add.reduceat(scores, starts) / counts[:, None]
    over = f"\n(mean of {together} windows)" if together > 1 else ""
    for (colour, style), label in zip(styles, sorted(shown), strict=False):
        ax.plot(
            places, scores[:, label], style, color=colour, marker=".",
            markersize=5 if len(places) < 100 else 0, linewidth=1.4,
            label=literal(short(labels[label])),
        )  # fmt: skip
    ax.set(ylim=(-0.03, 1.03), ylabel="probability" + over)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=6, frameon=False, fontsize=8)
    plain(ax)


def scores_figure(
    path: pathlib.Path,
    spectrum: np.ndarray,
    *,
    seconds: float,
    centres: np.ndarray,
    scores: np.ndarray | None,
    labels: Sequence[str],
    highest_hz: float,
    title: str,
    note: str = "",
) -> pathlib.Path:
    """A recording's spectrogram and, below it, the probabilities of its windows over time.

    Args:
      path: of the PNG.
      spectrum: [frames, mels] in decibels.
      seconds: length of the recording.
      centres: [windows], in seconds.
      scores: [windows, classes], or None for a model without a classifier; neighbours are averaged
        if there are many.
      labels: of the classes; the six with the highest mean score are shown.
      highest_hz: upper edge of the mel bands.
      title: of the figure.
      note: in the corner.
    """
    figure = Figure(figsize=(9.0, 3.2 if scores is None else 5.0), layout="constrained")
    rows = figure.subplots(
        1 if scores is None else 2, 1, sharex=True, squeeze=False,
        height_ratios=[1] if scores is None else [3, 2],
    )[:, 0]  # fmt: skip
    unit, scale = ("minutes", 60.0) if seconds > 180 else ("seconds", 1.0)
    spectrum = _in_columns(spectrum)
    mels = spectrum.shape[1]
    image = rows[0].imshow(
        spectrum.T,
        origin="lower",
        aspect="auto",
        extent=(0, seconds / scale, 0, mels),
        vmin=max(np.percentile(spectrum, 2), spectrum.max() - 80),
        vmax=spectrum.max(),
        cmap="magma",
    )
    figure.colorbar(image, ax=rows[0], label="dB", pad=0.01)
    rows[0].set_ylabel(f"mel band (to {highest_hz / 1000:g} kHz)")
    rows[0].set_title(literal(title), fontsize=10)
    if scores is not None:
        _draw_scores(rows[1], centres / scale, scores, labels)
    rows[-1].set_xlabel(unit)
    rows[-1].set_xlim(0, seconds / scale)
    return save(figure, path, note)
