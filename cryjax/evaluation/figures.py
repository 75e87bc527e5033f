"""Figures that a run leaves behind, as PNG. Colours are safe for colour-blind readers."""

import itertools
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import axes as axes_lib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import roc_curve
from threadpoolctl import threadpool_limits

from cryjax.evaluation import metrics

if TYPE_CHECKING:
    from cryjax.evaluation.tables import Line, Task

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#777777"
SKY, AMBER, GREEN, PURPLE, BLACK = "#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#000000"
PALE = "#c8c8c8"

# Rows of the experiment: the hue is the pre-training, dark and solid is adapted.
_ROWS = {
    "scratch": (GREY, "o", ":"),
    "supervised": (AMBER, "s", "--"),
    "supervised+adapted": (ORANGE, "D", "-"),
    "simclr": (SKY, "^", "--"),
    "simclr+adapted": (BLUE, "v", "-"),
}
_OTHER_ROWS = ((GREEN, "P", "-"), (PURPLE, "X", "-"), (BLACK, "*", "-"))

METHOD_NAMES = {"probe": "linear probe", "finetune": "fine-tuning"}
_METRIC_NAMES = {
    "macro_auc": "macro AUC",
    "f1": "F1",
    metrics.SENSITIVITY: f"sensitivity at {100 * metrics.SPECIFICITY:.0f} % specificity",
}

# Metrics of a training run worth a panel: name in metrics.jsonl, title.
_PANELS = (
    ("loss", "loss"),
    ("contrastive_accuracy", "contrastive accuracy"),
    ("effective_rank", "effective rank of the projections"),
    ("neighbour_accuracy", "nearest neighbour's label, other subject"),
    ("alignment", "alignment (distance² of positives)"),
    ("uniformity", "uniformity"),
    ("gradient_norm", "gradient norm"),
    ("clips_per_second", "clips per second"),
)
# The same of a supervised run.
SUPERVISED = (
    ("loss", "loss"),
    ("batch_accuracy", "accuracy on batches"),
    ("validation_macro_auc", "validation macro AUC"),
    ("validation_accuracy", "validation accuracy"),
    ("validation_average_precision", "validation average precision"),
    ("gradient_norm", "gradient norm"),
    ("learning_rate", "learning rate"),
    ("clips_per_second", "clips per second"),
)


def metric_name(metric: str, classes: int) -> str:
    """A metric for a reader: 'macro_auc' -> 'macro AUC', and 'AUC' where there are two classes."""
    if metric == "macro_auc" and classes == 2:
        return "AUC"
    return _METRIC_NAMES.get(metric, metric.replace("_", " "))


def _save(figure: Figure, path: pathlib.Path, note: str, *, dpi: int = 110) -> pathlib.Path:
    """Writes a figure, with a note in its corner; without pyplot, so no state is left behind."""
    if note:
        figure.text(0.995, 0.005, note, ha="right", va="bottom", fontsize=8, color=ORANGE)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=dpi)
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
    path: pathlib.Path,
    history: Sequence[Mapping[str, float]],
    *,
    note: str = "",
    names: Sequence[tuple[str, str]] = _PANELS,
    columns: int = 4,
    panel: tuple[float, float] = (3.1, 2.3),
) -> pathlib.Path:
    """The course of a run's metrics over its steps.

    Args:
      path: of the PNG.
      history: the lines of metrics.jsonl.
      note: for the corner.
      names: of the metrics worth a panel, as (name in metrics.jsonl, title).
      columns: of panels, at most.
      panel: width and height of one, in inches.
    """
    panels = [
        (title, [(line["step"], line[name]) for line in history if name in line])
        for name, title in names
    ]
    panels = [(title, points) for title, points in panels if points]
    columns = max(min(columns, len(panels)), 1)  # a run may end before its first line
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(panel[0] * columns, panel[1] * rows + 0.2), layout="constrained")
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
    ax.step(false_positive, true_positive, where="post", color=BLUE, lw=1.5, label="classifier")
    ax.set_xlabel("1 − specificity")
    ax.set_ylabel("sensitivity")
    ax.set_aspect("equal")
    ax.set_title(title, fontsize=9)
    ax.legend(loc="lower right", fontsize=8, frameon=False)
    _plain(ax)
    return _save(figure, path, note)


def short(name: str, most: int = 18) -> str:
    """A name cut to what fits."""
    return name if len(name) <= most else name[: most - 1] + "…"


def _literal(name: str) -> str:
    """A name in which Matplotlib sees no mathematics."""
    return name.replace("$", r"\$")


def _row_styles(rows: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and dashes of each row of the experiment."""
    others = itertools.cycle(_OTHER_ROWS)
    return {
        row: dict(zip(("color", "marker", "ls"), _ROWS.get(row) or next(others), strict=True))
        for row in rows
    }


def chance(metric: str, task: "Task") -> float | None:
    """What a classifier that has not listened gets; None where that is not one number."""
    known = {
        "macro_auc": 0.5,
        "accuracy": task.majority_accuracy,
        "balanced_accuracy": 1 / max(len(task.labels), 1),
        metrics.SENSITIVITY: 1 - metrics.SPECIFICITY,
    }
    return known.get(metric)


def _efficiency_panel(
    ax: axes_lib.Axes, lines: Sequence["Line"], styles: Mapping[str, dict[str, Any]], metric: str
) -> None:
    """The lines of one task and method. Rows stand side by side, so that intervals do not hide."""
    sizes: dict[float, list[float]] = {}
    for line in lines:
        sizes.setdefault(line.fraction, []).append(line.n_train)
    fractions = sorted(sizes)
    gap = np.diff(np.log(fractions)).min() if len(fractions) > 1 else 1.0
    rows = [row for row in styles if any(line.row == row for line in lines)]
    for place, row in enumerate(rows):
        found = {
            line.fraction: line.metrics[metric]
            for line in sorted(lines, key=lambda line: line.fraction)
            if line.row == row and metric in line.metrics
        }
        x = np.array(list(found)) * np.exp(gap * 0.55 * ((place + 0.5) / len(rows) - 0.5))
        low, high = np.array([estimate.interval for estimate in found.values()]).reshape(-1, 2).T
        style = styles[row]
        ax.vlines(x, low, high, color=style["color"], lw=1.3, alpha=0.75)
        y = [estimate.value for estimate in found.values()]
        ax.plot(x, y, **style, lw=1.3, ms=5.5, mec="white", mew=0.6)
    ax.set_xscale("log")
    ax.xaxis.set_minor_locator(NullLocator())
    ticks = [f"{100 * fraction:g} %\n{np.mean(sizes[fraction]):.0f}" for fraction in fractions]
    ax.set_xticks(fractions, ticks)
    ax.set_xlim(fractions[0] * np.exp(-0.6 * gap), fractions[-1] * np.exp(0.6 * gap))
    ax.tick_params(labelsize=8)
    ax.grid(axis="y", alpha=0.25, lw=0.5)
    _plain(ax)


def _limits(lines: Sequence["Line"], metric: str, floor: float | None) -> tuple[float, float]:
    """A range of y that holds every value and interval of a task."""
    found = [line.metrics[metric] for line in lines if metric in line.metrics]
    ends = np.array([(estimate.value, *estimate.interval) for estimate in found] or [(0.0, 1.0)])
    ends = np.append(ends[np.isfinite(ends)], [] if floor is None else [floor])
    low, high = (ends.min(), ends.max()) if len(ends) else (0.0, 1.0)
    margin = max(0.04 * (high - low), 0.01)
    return low - margin, high + margin


def label_efficiency_figure(
    path: pathlib.Path,
    lines: Sequence["Line"],
    tasks: Sequence["Task"],
    metric: str = "macro_auc",
    *,
    note: str = "",
    only: tuple[str, str] | None = None,
) -> pathlib.Path:
    """What more labels bring: a panel a task and method, a line a row, bars of the intervals.

    Args:
      path: of the PNG.
      lines: of the experiment.
      tasks: of the experiment.
      metric: on the y axis.
      note: for the corner.
      only: (task, method) of the one panel to draw, with the axis that it has beside the others.
    """
    styles = _row_styles(list(dict.fromkeys(line.row for line in lines)))
    methods = [only[1]] if only else list(dict.fromkeys(line.method for line in lines))
    tasks = [task for task in tasks if not only or task.name == only[0]]
    size = (5.0, 3.9) if only else (0.5 + 4.2 * len(methods), 0.6 + 3.1 * len(tasks))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(tasks), len(methods), squeeze=False)
    handles: dict[str, Any] = {}
    for (place, column), ax in np.ndenumerate(grid):
        task, method = tasks[place], methods[column]
        of_task = [line for line in lines if line.task == task.name]
        panel = [line for line in of_task if line.method == method]
        floor = chance(metric, task)
        if not panel:
            ax.set_axis_off()
            continue
        if floor is not None:
            handles["chance"] = ax.axhline(floor, color=PALE, lw=1.2, zorder=0)
        _efficiency_panel(ax, panel, styles, metric)
        ax.set_ylim(_limits(of_task, metric, floor))
        title = f"{short(task.name, 30)}, {METHOD_NAMES.get(method, method)}"
        ax.set_title(_literal(title), fontsize=10)
        if column == 0:
            ax.set_ylabel(metric_name(metric, len(task.labels)), fontsize=9)
    for row, style in styles.items():
        (handles[row],) = grid[0, 0].plot([], [], **style, lw=1.3, ms=5.5, label=row)
    figure.supxlabel("training labels: share and recordings", fontsize=9)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside upper center",
        ncols=3 if len(methods) == 1 else 6,
        fontsize=8,
        frameon=False,
    )
    return _save(figure, path, note, dpi=160)


def _roc(true: np.ndarray, scores: np.ndarray, positive: int) -> tuple[np.ndarray, np.ndarray]:
    """The ROC curve of two classes, or the mean over the classes of one-against-rest curves.

    The area under that mean is the macro AUC. Classes that are not there are left out.

    Args:
      true: int [recordings], of two classes at least.
      scores: [recordings, classes].
      positive: of two classes.

    Returns:
      [points] of 1 − specificity, [points] of sensitivity.
    """
    if scores.shape[1] == 2:
        margin = scores[:, positive] - scores[:, 1 - positive]
        return roc_curve(true == positive, margin)[:2]
    grid = np.linspace(0, 1, 501)
    curves = [
        np.interp(grid, *roc_curve(true == label, scores[:, label])[:2])
        for label in np.unique(true)
    ]
    return np.append(0, grid), np.append(0, np.mean(curves, axis=0))


def rocs_figure(
    path: pathlib.Path,
    found: Mapping[str, tuple[np.ndarray, np.ndarray]],
    title: str,
    *,
    positive: int = 1,
    note: str = "",
) -> pathlib.Path:
    """The ROC curves of several rows of the experiment on the same recordings.

    Args:
      path: of the PNG.
      found: row -> true int [recordings] and scores [recordings, classes]; no curve is drawn where
        all are of one class or scores are not finite.
      title: over it.
      positive: of two classes.
      note: for the corner.
    """
    figure = Figure(figsize=(4.2, 4.3), layout="constrained")
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], color=PALE, lw=1.2, label="chance")
    detector = any(scores.shape[1] == 2 for _, scores in found.values())
    if detector:
        ax.axvline(1 - metrics.SPECIFICITY, color=PALE, lw=1, ls="--", zorder=0)
        said = f"{100 * metrics.SPECIFICITY:.0f} % specificity"
        ax.text(1.015 - metrics.SPECIFICITY, 0.0, said, fontsize=7, color=GREY, rotation=90)
    for row, style in _row_styles(list(found)).items():
        true, scores = found[row]
        if len(np.unique(true)) > 1 and np.isfinite(scores).all():
            curve = _roc(true, scores, positive)
            ax.plot(*curve, color=style["color"], ls=style["ls"], lw=1.5, label=row)
    ax.set_xlabel("1 − specificity", fontsize=9)
    ax.set_ylabel("sensitivity" if detector else "sensitivity, mean over the classes", fontsize=9)
    ax.tick_params(labelsize=8)
    ax.set_aspect("equal")
    ax.set_title(_literal(title), fontsize=10)
    ax.legend(loc="lower right", fontsize=8, frameon=False)
    _plain(ax)
    return _save(figure, path, note, dpi=160)


# A map of fewer recordings shows nothing.
FEWEST = 5


def project(features: np.ndarray, *, most: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Lays embeddings out in a plane: PCA to 50 dimensions, then t-SNE; the same every time.

    Args:
      features: [recordings, features], of `FEWEST` recordings at least.
      most: recordings to lay out, drawn where there are more.

    Returns:
      int [kept], which recordings; [kept, 2], where they lie.
    """
    kept = np.arange(len(features))
    if len(kept) > most:
        kept = np.sort(np.random.default_rng(0).choice(kept, most, replace=False))
    chosen = features[kept].astype(np.float64)
    parts = min(50, *chosen.shape)
    # Threads that wait by spinning take minutes where others want the cores too, and sum in another
    # order each time. A collapsed encoder has no variance to explain.
    with threadpool_limits(1), np.errstate(invalid="ignore"):
        reduced = PCA(parts, random_state=0).fit_transform(chosen)
        # It starts from the first two components by their deviation, which is zero there.
        start = "pca" if parts > 1 and reduced[:, 0].std() > 0 else "random"
        perplexity = min(30.0, (len(kept) - 1) / 3)
        tsne = TSNE(perplexity=perplexity, init=start, random_state=0)
        return kept, tsne.fit_transform(reduced)


def map_figure(
    path: pathlib.Path,
    points: np.ndarray,
    names: Sequence[str],
    title: str,
    *,
    most: int = 14,
    note: str = "",
) -> pathlib.Path:
    """A map of embeddings, coloured by a name that each has: its label, its subject.

    Args:
      path: of the PNG.
      points: [recordings, 2].
      names: [recordings].
      title: over it.
      most: names told apart, the most frequent ones; the others are grey.
      note: for the corner.
    """
    names = np.asarray(names)
    counts = Counter(names.tolist())
    chosen = [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    others = max(len(chosen) - most, 0)
    chosen = chosen[:most] if others else sorted(chosen)
    figure = Figure(figsize=(4.9, 3.7), layout="constrained")
    ax = figure.subplots()
    dots = {"s": 14 if len(points) > 300 else 24, "lw": 0.3, "ec": "white"}
    handles = {}
    if others:
        rest = ~np.isin(names, chosen)
        handles[f"{others} others"] = ax.scatter(*points[rest].T, color=PALE, **dots)
    colours = (BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY, BLACK)
    for place, name in enumerate(chosen):
        turn, colour = divmod(place, len(colours))
        handles[name] = ax.scatter(
            *points[names == name].T,
            color=colours[colour],
            marker="o^sD"[turn % 4],
            alpha=0.85,
            **dots,
        )
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_title(_literal(title), fontsize=10)
    figure.legend(
        handles.values(),
        [_literal(short(name)) or "(none)" for name in handles],
        loc="outside right center",
        fontsize=8,
        frameon=False,
        handletextpad=0.2,
        markerscale=1.5,
    )
    return _save(figure, path, note, dpi=160)


def _in_columns(spectrum: np.ndarray, most: int = 1500) -> np.ndarray:
    """[frames, mels] with `most` frames at the most, each the loudest of its neighbours."""
    step = -(-len(spectrum) // most)
    return np.maximum.reduceat(spectrum, np.arange(0, len(spectrum), step))


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
      centres: [windows] of the windows, in seconds.
      scores: [windows, classes], or None for a model without a classifier; neighbours of many
        are averaged.
      labels: of the classes; of many, the six with the highest mean are shown.
      highest_hz: upper edge of the mel bands.
      title: of the figure.
      note: for the corner.
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
    rows[0].set_title(_literal(title), fontsize=10)
    if scores is not None:
        styles = [(c, s) for s in ("-", "--") for c in (BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY)]
        shown = np.argsort(-scores.mean(axis=0), kind="stable")[:6]
        together = -(-len(scores) // 300)  # of more lines than that nothing is to be seen
        starts = np.arange(0, len(scores), together)
        counts = np.diff([*starts, len(scores)])
        centres = np.add.reduceat(centres, starts) / counts
        scores = np.add.reduceat(scores, starts) / counts[:, None]
        over = f"\n(mean of {together} windows)" if together > 1 else ""
        for (colour, style), label in zip(styles, sorted(shown), strict=False):
            rows[1].plot(
                centres / scale, scores[:, label], style, color=colour, marker=".",
                markersize=5 if len(centres) < 100 else 0, linewidth=1.4,
                label=_literal(short(labels[label])),
            )  # fmt: skip
        rows[1].set(ylim=(-0.03, 1.03), ylabel="probability" + over)
        rows[1].legend(
            loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=6, frameon=False, fontsize=8
        )
        _plain(rows[1])
    rows[-1].set_xlabel(unit)
    rows[-1].set_xlim(0, seconds / scale)
    return _save(figure, path, note)
