"""The tables of an experiment, as table.csv and as table.md."""

import csv
import dataclasses
import math
import pathlib
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from cryjax.command.files import whole
from cryjax.evaluation.bootstrap import LEVEL
from cryjax.evaluation.metrics import SENSITIVITY, metric_name
from cryjax.evaluation.results import (
    Comparison,
    Estimate,
    Experiment,
    Line,
    Task,
    chance,
    method_name,
)

SYNTHETIC = (
    "SYNTHETIC DATA: these recordings were computed. The numbers check the software and say "
    "nothing of infants."
)


# With fewer scored subjects no difference is starred: for encoders of equal worth, 8 to 38 % would
# be (tests/simulations.py).
FEWEST_FOR_A_CLAIM = 6


@dataclasses.dataclass(frozen=True)
class Table:
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3f}" if math.isfinite(value) else "–"


def _cell(estimate: Estimate | None) -> str:
    """'0.812 [0.701, 0.898]', or a dash if missing."""
    return _marked(estimate, "", "")


def _difference(estimate: Estimate | None, task: Task) -> str:
    """A signed cell, starred if its interval excludes zero and subjects are enough."""
    enough = task.n_test_subjects >= FEWEST_FOR_A_CLAIM
    apart = estimate and (estimate.interval[0] > 0 or estimate.interval[1] < 0)
    return _marked(estimate, "+", "*" if enough and apart else "")


def _marked(estimate: Estimate | None, sign: str, star: str) -> str:
    if estimate is None or not math.isfinite(estimate.value):
        return "–"
    low, high = (_number(end, sign) for end in estimate.interval)
    return f"{_number(estimate.value, sign)}{star} [{low}, {high}]"


def headline(lines: Sequence[Line]) -> str:
    """The metric of the tables and curves: the macro AUC if present."""
    names = list(dict.fromkeys(name for line in lines for name in line.metrics))
    return "macro_auc" if "macro_auc" in names or not names else names[0]


def _by_fraction(task: Task, lines: Sequence[Line], method: str) -> Iterable[Table]:
    """A method's headline metric, rows by fractions, and the differences from 'scratch'."""
    metric = headline(lines)
    cells = {(line.row, line.fraction): line for line in lines if line.method == method}
    rows = list(dict.fromkeys(row for row, _ in cells))
    fractions = sorted({fraction for _, fraction in cells})
    head = ["encoder"]
    for fraction in fractions:
        size = np.mean([line.n_train for (_, own), line in cells.items() if own == fraction])
        head.append(f"{100 * fraction:g} % (n = {size:.0f})")

    name = f"{metric_name(metric, len(task.labels))}, {method_name(method)}"
    own = {key: line.metrics.get(metric) for key, line in cells.items()}
    body = [[row, *(_cell(own.get((row, share))) for share in fractions)] for row in rows]
    yield Table(name, head, body)
    gains = {key: line.difference.get(metric) for key, line in cells.items() if line.difference}
    body = [
        [row, *(_difference(gains.get((row, share)), task) for share in fractions)]
        for row in dict.fromkeys(row for row, _ in gains)
    ]
    if body:
        yield Table(f"{name}: difference from scratch", head, body)


def _by_comparison(
    task: Task, lines: Sequence[Line], comparisons: Sequence[Comparison]
) -> Iterable[Table]:
    """How much better one row is than another in the headline metric, by fraction."""
    metric = headline(lines)
    for method in dict.fromkeys(found.method for found in comparisons):
        cells = {
            (f"{found.row} over {found.other}", found.fraction): found.difference.get(metric)
            for found in comparisons
            if found.method == method
        }
        fractions = sorted({fraction for _, fraction in cells})
        name = f"{metric_name(metric, len(task.labels))}, {method_name(method)}"
        yield Table(
            f"{name}: other differences",
            ["encoders", *(f"{100 * fraction:g} %" for fraction in fractions)],
            [
                [pair, *(_difference(cells.get((pair, share)), task) for share in fractions)]
                for pair in dict.fromkeys(pair for pair, _ in cells)
            ],
        )


def _of_classes(task: Task) -> Iterable[Table]:
    """Size of each class: the macro AUC weights the rarest as much as the commonest."""
    head = ["class", "recordings", "subjects", "recordings scored", "subjects scored"]
    rows = [[label, *map(str, held)] for label, held in zip(task.labels, task.held, strict=False)]
    if rows:
        yield Table("Classes", head, rows)


def tables_of(experiment: Experiment, task: Task) -> list[Table]:
    """The tables of a task, the same for Markdown and HTML; none if it has no lines."""
    lines = [line for line in experiment.lines if line.task == task.name]
    if not lines:
        return []
    methods = list(dict.fromkeys(line.method for line in lines))
    tables = [*_of_classes(task)]
    tables += [table for method in methods for table in _by_fraction(task, lines, method)]
    compared = [found for found in experiment.comparisons if found.task == task.name]
    tables += _by_comparison(task, lines, compared)
    most = max((line.fraction for line in lines), default=1.0)
    full = [line for line in lines if line.fraction == most]
    names = list(dict.fromkeys(name for line in full for name in line.metrics))
    head = ["encoder", *(metric_name(name, len(task.labels)) for name in names)]
    rows = [
        [f"{line.row}, {method_name(line.method)}", *(_cell(line.metrics.get(n)) for n in names)]
        for line in full
    ]
    by_chance = [chance(name, task) for name in names]
    rows.append(["majority class, chance", *("–" if x is None else _number(x) for x in by_chance)])
    return [*tables, Table(f"All metrics with {100 * most:g} % of the labels", head, rows)]


def about(task: Task, lines: Sequence[Line]) -> str:
    """Describes a task in a few sentences."""
    positive = f" ({task.labels[1]} is positive)" if len(task.labels) == 2 else ""
    scored = [recordings for _, _, recordings, _ in task.held]
    commonest = "the commonest class"
    if scored:
        commonest = f"'{task.labels[int(np.argmax(scored))]}', {commonest},"
    text = (
        f"{len(task.labels)} classes: {', '.join(task.labels)}{positive}. {task.n_recordings} "
        f"recordings of {task.n_subjects} subjects; scored are {task.n_test_recordings} of "
        f"{task.n_test_subjects}. Always answering {commonest} is right "
        f"{_number(task.majority_accuracy)} of the time."
    )
    counted = sorted({line.seeds for line in lines}) or [1]
    if counted[-1] > 1:
        seeds = " or ".join(map(str, counted))
        spreads = [own.spread for line in lines for own in line.metrics.values()]
        widest = max(filter(math.isfinite, spreads), default=0.0)
        text += f" Means over {seeds} seeds; a seed's standard deviation is at most {widest:.3f}."
    return text


def reading(lines: Sequence[Line]) -> str:
    """How to read the numbers."""
    text = (
        f"Brackets hold {100 * LEVEL:.0f} % intervals from a bootstrap over the subjects scored; "
        "they hold the trained classifier fixed, and do not cover what other training subjects or "
        "another pre-training would change. A percentage is the share of the training subjects "
        "whose labels were used, n how many recordings that is. "
    )
    if any(line.difference for line in lines):
        text += (
            "Differences are from 'scratch' with the same method and labels, paired by recording; "
            "a star marks an interval that leaves out zero, not corrected for how many there are, "
            f"and is given of {FEWEST_FOR_A_CLAIM} scored subjects or more. "
        )
    if any(SENSITIVITY in line.metrics for line in lines):
        text += "A sensitivity's threshold was chosen on the recordings scored: optimistic. "
    return text.strip()


def write_csv(experiment: Experiment, path: pathlib.Path) -> None:
    """Writes every number at full precision: one row per line and metric."""
    with whole(path, newline="") as file:
        _write_rows(experiment, csv.writer(file, lineterminator="\n"))


def _write_rows(experiment: Experiment, writer: Any) -> None:
    head = ["row", "method", "task", "fraction", "metric", "value", "low", "high", "spread"]
    head += ["seeds", "n_train", "difference", "difference_low", "difference_high"]
    writer.writerow(head)
    for line in experiment.lines:
        for name, own in line.metrics.items():
            gain = line.difference.get(name)
            numbers: list[Any] = [own.value, *own.interval, own.spread, line.seeds, line.n_train]
            numbers += [gain.value, *gain.interval] if gain else [""] * 3
            # NumPy's scalars would be written with their type.
            plain = [x.item() if isinstance(x, np.generic) else x for x in numbers]
            writer.writerow([line.row, line.method, line.task, line.fraction, name, *plain])


def write_markdown(experiment: Experiment, path: pathlib.Path) -> None:
    """Writes the tables, aligned so that they can be read without being rendered."""

    def plain(text: str) -> str:
        return " ".join(text.split()).replace("<", r"\<").replace("|", r"\|")

    def filled(text: str) -> str:
        return textwrap.fill(plain(text), 100, break_long_words=False, break_on_hyphens=False)

    parts = [f"# {plain(experiment.title)}"]
    if experiment.synthetic:
        parts.append(f"**{SYNTHETIC}**")
    if experiment.notes:
        parts.append("\n".join(f"- {plain(note)}" for note in experiment.notes))
    parts.append(filled(reading(experiment.lines)))
    for task in experiment.tasks:
        lines = [line for line in experiment.lines if line.task == task.name]
        parts += [f"## {plain(task.name)}", filled(about(task, lines))]
        for table in tables_of(experiment, task):
            cells = [[plain(cell) for cell in row] for row in (table.head, *table.rows)]
            widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
            cells.insert(1, ["-" * width for width in widths])
            rows = [" | ".join(map(str.ljust, row, widths)) for row in cells]
            parts += [f"### {plain(table.caption)}", "\n".join(f"| {row} |" for row in rows)]
    with whole(path, newline="") as file:
        file.write("\n\n".join(parts) + "\n")
