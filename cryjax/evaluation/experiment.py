"""The cells of an experiment, and what they say together: means over seeds, with intervals."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from cryjax.data.records import Prepared
from cryjax.evaluation import metrics, report, tasks


@dataclasses.dataclass(frozen=True)
class Cell:
    """One number of the experiment, before the mean over seeds."""

    row: str
    method: str
    task: str
    fraction: float
    seed: int
    fold: int = 0

    @property
    def name(self) -> str:
        return f"{self.method} {self.row} {self.task} {self.fraction:g} seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class Found:
    """What a cell said of its test recordings, in the order of their numbers."""

    recordings: np.ndarray
    true: np.ndarray
    scores: np.ndarray
    subjects: np.ndarray
    trained: float

    def save(self, path: pathlib.Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez_compressed(file, **dataclasses.asdict(self))
        partial.replace(path)

    @classmethod
    def load(cls, path: pathlib.Path) -> "Found":
        with np.load(path, allow_pickle=False) as kept:
            return cls(**kept)


def join_folds(parts: list[Found]) -> Found:
    """The test recordings of all folds, in the order of their numbers."""
    order = np.argsort(np.concatenate([part.recordings for part in parts]), kind="stable")

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])[order]

    return Found(
        joined("recordings"),
        joined("true"),
        joined("scores"),
        joined("subjects"),
        float(np.mean([part.trained for part in parts])),
    )


def by_seed(cells: Mapping[Cell, Found], count: int) -> dict[tuple[Any, ...], list[Found]]:
    """(row, method, task, fraction) -> what each seed says; seeds that lack a fold are left out."""
    parts: dict[Cell, list[Found]] = {}
    for cell, found in cells.items():
        parts.setdefault(dataclasses.replace(cell, fold=0), []).append(found)
    seeds: dict[tuple[Any, ...], list[Found]] = {}
    for cell, found in parts.items():
        if cell.method == "probe" or len(found) == max(count, 1):
            key = (cell.row, cell.method, cell.task, cell.fraction)
            seeds.setdefault(key, []).append(join_folds(found))
    return seeds


def estimates(found: Mapping[str, Mapping[str, Any]]) -> dict[str, report.Estimate]:
    return {
        name: report.Estimate(value["value"], tuple(value["interval"]), value.get("spread", 0.0))
        for name, value in found.items()
    }


def lines(seeds: Mapping[tuple[Any, ...], list[Found]], config: Any) -> list[report.Line]:
    """The table: means over seeds, and how much better each row is than the first from scratch."""
    made = []
    for (row, method, task, fraction), found in seeds.items():
        how = {
            "resamples": config.resamples,
            "seed": config.fold_seed,
            "probabilities": method == "finetune",
        }
        scores = np.stack([one.scores for one in found])
        first = found[0]
        scratch = seeds.get(("scratch", method, task, fraction))
        better = {}
        if row != "scratch" and scratch:
            others = np.stack([one.scores for one in scratch])
            better = metrics.differences(first.true, scores, others, first.subjects, **how)
        summary = metrics.summarise_seeds(first.true, scores, first.subjects, **how)
        made.append(
            report.Line(
                row,
                method,
                task,
                fraction,
                len(found),
                round(float(np.mean([one.trained for one in found]))),
                estimates(summary),
                estimates(better),
            )
        )
    return made


def task_of(name: str, task: tasks.Task, tested: Found) -> report.Task:
    index = task.prepared.index()
    index = index[index.labels != ""]
    return report.Task(
        name,
        task.classes,
        len(set(index.recordings)),
        len(set(index.subjects)),
        len(tested.true),
        len(set(tested.subjects)),
        float(np.bincount(tested.true).max() / len(tested.true)),
    )


def counts(datasets: Mapping[str, Prepared]) -> list[dict[str, Any]]:
    """What each split of each dataset holds."""
    return [
        {
            "name": name,
            "split": split,
            **{key: held[key] for key in ("recordings", "subjects", "hours")},
            "labels": ", ".join(f"{label} {n}" for label, n in held["labels"].items()),
        }
        for name, prepared in datasets.items()
        for split, held in prepared.counts.items()
    ]
