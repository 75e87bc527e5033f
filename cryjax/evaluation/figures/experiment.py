"""Rows of the experiment side by side: label efficiency and ROC curves."""

import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import axes as axes_lib
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from sklearn.metrics import roc_curve

from cryjax.evaluation import metrics
from cryjax.evaluation.figures.style import (
    AMBER,
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALE,
    PURPLE,
    SKY,
    literal,
    plain,
    save,
    short,
)
from cryjax.evaluation.results import Line, Task, chance, method_name

# Rows of the experiment: the hue is the pre-training; dark and solid means adapted.
_ROWS = {
    "scratch": (GREY, "o", ":"),
    "supervised": (AMBER, "s", "--"),
    "supervised+adapted": (ORANGE, "D", "-"),
    "simclr": (SKY, "^", "--"),
    "simclr+adapted": (BLUE, "v", "-"),
}
_OTHER_ROWS = ((GREEN, "P", "-"), (PURPLE, "X", "-"), (BLACK, "*", "-"))


def _row_styles(rows: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and line style of each row."""
    others = itertools.cycle(_OTHER_ROWS)
    return {
        row: dict(zip(("color", "marker", "ls"), _ROWS.get(row) or next(others), strict=True))
        for row in rows
    }


def _efficiency_panel(
    ax: axes_lib.Axes, lines: Sequence[Line], styles: Mapping[str, dict[str, Any]], metric: str
) -> None:
    """The lines of one task and method. Rows are offset so that no interval hides another."""
    sizes: dict[float, list[float]] = {}
    for line in lines:
        sizes.setdefault(line.fraction, []).append(line.n_train)
    fractions = sorted(sizes)
    places = np.log(fractions)
    # Few fractions lie far apart: there, too, rows are offset by no more of the panel.
    gap = min(np.diff(places).min(), np.ptp(places) / 4) if len(places) > 1 else 1.0
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
    plain(ax)


def _limits(lines: Sequence[Line], metric: str, floor: float | None) -> tuple[float, float]:
    """A y range that holds a task's values, intervals and floor."""
    found = [line.metrics[metric] for line in lines if metric in line.metrics]
    ends = np.array([end for one in found for end in (one.value, *one.interval)] or [0.0, 1.0])
    ends = np.append(ends[np.isfinite(ends)], [] if floor is None else [floor])
    low, high = (ends.min(), ends.max()) if len(ends) else (0.0, 1.0)
    margin = max(0.04 * (high - low), 0.01)
    return low - margin, high + margin


def label_efficiency_figure(
    path: pathlib.Path,
    lines: Sequence[Line],
    tasks: Sequence[Task],
    metric: str = "macro_auc",
    *,
    note: str = "",
    only: tuple[str, str] | None = None,
) -> pathlib.Path:
    """Label efficiency: a panel per task and method, a line per row, bars for intervals.

    Args:
      path: of the PNG.
      lines: of the experiment.
      tasks: of the experiment.
      metric: on the y axis.
      note: in the corner.
      only: (task, method) of a single panel to draw, with the y range it has beside the others.
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
        title = f"{short(task.name, 30)}, {method_name(method)}"
        ax.set_title(literal(title), fontsize=10)
        if column == 0:
            ax.set_ylabel(metrics.metric_name(metric, len(task.labels)), fontsize=9)
    for row, style in styles.items():
        (handles[row],) = grid[0, 0].plot([], [], **style, lw=1.3, ms=5.5, label=row)
    # One panel is too narrow for both on a line.
    parts = "training subjects: share, and recordings", "bars: 95 % intervals over subjects"
    figure.supxlabel(("\n" if len(methods) == 1 else "; ").join(parts), fontsize=9)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside upper center",
        ncols=3 if len(methods) == 1 else 6,
        fontsize=8,
        frameon=False,
    )
    return save(figure, path, note, dpi=160)


def _roc(true: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The ROC curve of two classes, or the mean over classes of one-against-rest curves.

    The area under that mean is the macro AUC, from the same recordings: for each class, those with
    a score for it. Classes that are absent, or have no rest, are left out.

    Args:
      true: int [recordings].
      scores: [recordings, classes].

    Returns:
      [points] of 1 − specificity, [points] of sensitivity; None where no class is left.
    """
    grid = np.linspace(0, 1, 501)
    curves = []
    detector = scores.shape[1] == 2
    for label in [1] if detector else np.unique(true):
        score = scores[:, label]
        if detector:
            score = np.subtract(score, scores[:, 0], dtype=float)
        kept = np.isfinite(score)
        if len(set(true[kept] == label)) == 2:
            curve = roc_curve(true[kept] == label, score[kept])[:2]
            if detector:
                return curve
            curves.append(np.interp(grid, *curve))
    return (np.append(0, grid), np.append(0, np.mean(curves, axis=0))) if curves else None


def rocs_figure(
    path: pathlib.Path,
    found: Mapping[str, tuple[np.ndarray, np.ndarray]],
    title: str,
    *,
    note: str = "",
) -> pathlib.Path:
    """The ROC curves of several rows of the experiment on the same recordings.

    Args:
      path: of the PNG.
      found: row -> true int [recordings] and scores [recordings, classes]; no curve is drawn if
        all recordings with a score are of one class.
      title: of the figure.
      note: in the corner.
    """
    figure = Figure(figsize=(4.2, 4.3), layout="constrained")
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], color=PALE, lw=1.2, label="chance")
    detector = any(scores.shape[1] == 2 for _, scores in found.values())
    if detector:
        ax.axvline(1 - metrics.SPECIFICITY, color=PALE, lw=1, ls="--", zorder=0)
        label = f"{100 * metrics.SPECIFICITY:.0f} % specificity"
        ax.text(1.015 - metrics.SPECIFICITY, 0.0, label, fontsize=7, color=GREY, rotation=90)
    for row, style in _row_styles(list(found)).items():
        curve = _roc(*found[row])
        if curve:
            ax.plot(*curve, color=style["color"], ls=style["ls"], lw=1.5, label=row)
    ax.set_xlabel("1 − specificity", fontsize=9)
    ax.set_ylabel("sensitivity" if detector else "sensitivity, mean over the classes", fontsize=9)
    ax.tick_params(labelsize=8)
    ax.set_aspect("equal")
    ax.set_title(literal(title), fontsize=10)
    ax.legend(loc="lower right", fontsize=8, frameon=False)
    plain(ax)
    return save(figure, path, note, dpi=160)
