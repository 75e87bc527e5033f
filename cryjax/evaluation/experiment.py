"""The cells of an experiment and their summary: means over seeds, with intervals."""

import csv
import dataclasses
import json
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import flax
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import sklearn

from cryjax import __version__
from cryjax.command.errors import UserError
from cryjax.command.files import whole
from cryjax.data.records import Prepared
from cryjax.evaluation import bootstrap, judge, metrics, results, tasks


def save_arrays(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays by name into an .npz file."""
    with whole(path, "wb") as file:
        np.savez_compressed(file, **arrays)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One result of the experiment, before the mean over seeds."""

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
    """A cell's scores of its test recordings, in the order of their numbers.

    Attributes:
      recordings: [n] their numbers.
      true: int [n] classes.
      scores: [n, classes], NaN for a class not learnt.
      subjects: [n].
      trained: number of training recordings.
      warnings: [m] for a reader of the numbers.
    """

    recordings: np.ndarray
    true: np.ndarray
    scores: np.ndarray
    subjects: np.ndarray
    trained: float
    warnings: np.ndarray

    def save(self, path: pathlib.Path) -> None:
        save_arrays(path, dataclasses.asdict(self))

    @classmethod
    def load(cls, path: pathlib.Path) -> "Found":
        with np.load(path, allow_pickle=False) as kept:
            return cls(**kept)

    @classmethod
    def of_run(cls, path: pathlib.Path, task: tasks.Task) -> "Found":
        """Reads a run of `cryjax.finetune`. Raises UserError if it had no test recordings."""
        result = json.loads((path / "result.json").read_text(encoding="utf-8"))
        if result["scored"] != "test":
            raise UserError(
                f"{task.prepared.directory} has no split 'test'; prepare it with "
                "--splits=train=0.8,test=0.2, or set config.folds=5"
            )
        with (path / "predictions.csv").open(encoding="utf-8", newline="") as file:
            _, *rows = csv.reader(file)
        recordings, subjects, labels, *scores = zip(*rows, strict=True)
        true, people = task.true(np.array(labels)), np.array(subjects)
        # All folds together may have enough subjects, and vary.
        of_fold = [*bootstrap.cautions(true, people, task.classes), *judge.unvarying(result)]
        learnt = np.isin(task.classes, result.get("learnt", task.classes))  # absent in old runs
        return cls(
            np.array(recordings, int),
            true,
            metrics.scores_of(np.array(scores, float).T, learnt),
            people,
            float(result["n_train"]),
            np.array([warning for warning in result["warnings"] if warning not in of_fold], str),
        )


def join_folds(parts: list[Found]) -> Found:
    """Pools the test recordings of all folds, in order of their numbers."""
    order = np.argsort(np.concatenate([part.recordings for part in parts]), kind="stable")

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])[order]

    return Found(
        joined("recordings"),
        joined("true"),
        joined("scores"),
        joined("subjects"),
        float(np.mean([part.trained for part in parts])),
        np.unique(np.concatenate([part.warnings for part in parts])),
    )


Key = tuple[str, str, str, float]  # row, method, task, fraction


def by_seed(cells: Mapping[Cell, Found], count: Mapping[str, int]) -> dict[Key, dict[int, Found]]:
    """(row, method, task, fraction) -> seed -> its pooled result.

    Args:
      cells: the result of each.
      count: task -> its folds; a fine-tuned seed that lacks one is left out.
    """
    parts: dict[Cell, list[Found]] = {}
    for cell, found in cells.items():
        parts.setdefault(dataclasses.replace(cell, fold=0), []).append(found)
    seeds: dict[Key, dict[int, Found]] = {}
    for cell, folds in parts.items():
        if cell.method == "probe" or len(folds) == count[cell.task]:
            key = (cell.row, cell.method, cell.task, cell.fraction)
            seeds.setdefault(key, {})[cell.seed] = join_folds(folds)
    return seeds


def _estimates(found: Mapping[str, Mapping[str, Any]]) -> dict[str, results.Estimate]:
    return {
        name: results.Estimate(value["value"], tuple(value["interval"]), value.get("spread", 0.0))
        for name, value in found.items()
    }


def _how(method: str, config: Any) -> dict[str, Any]:
    return {
        "resamples": config.resamples,
        "seed": config.fold_seed,
        "probabilities": method == "finetune",
    }


def _difference(
    seeds: Mapping[Key, Mapping[int, Found]], key: Key, other: str, config: Any
) -> dict[str, results.Estimate]:
    """How much better a row is than another, all else equal, over the seeds that both have.

    With all labels, the seed of a probe is that of an untrained encoder alone, and all count.
    """
    ours, theirs = seeds[key], seeds.get((other, *key[1:]), {})
    both = ours.keys() & theirs.keys()
    if other == key[0] or not both:
        return {}
    if key[1] != "probe" or key[3] != 1:
        ours, theirs = ({seed: found[seed] for seed in both} for found in (ours, theirs))
    first = ours[min(both)]
    scores, others = (np.stack([one.scores for one in found.values()]) for found in (ours, theirs))
    how = _how(key[1], config)
    return _estimates(bootstrap.differences(first.true, scores, others, first.subjects, **how))


def lines(seeds: Mapping[Key, Mapping[int, Found]], config: Any) -> list[results.Line]:
    """The table: means over seeds, and how much better each row is than 'scratch'."""
    made = []
    for key, found in seeds.items():
        first = next(iter(found.values()))
        scores = np.stack([one.scores for one in found.values()])
        how = _how(key[1], config)
        summary = bootstrap.summarise_seeds(first.true, scores, first.subjects, **how)
        trained = float(np.mean([one.trained for one in found.values()]))
        better = _difference(seeds, key, "scratch", config)
        made.append(results.Line(*key, len(found), round(trained), _estimates(summary), better))
    return made


def comparisons(seeds: Mapping[Key, Mapping[int, Found]], config: Any) -> list[results.Comparison]:
    """The paper's questions: is SimCLR better than supervision, and adaptation than none?"""
    asked = [("simclr", "supervised"), ("simclr+adapted", "supervised+adapted")]
    # Every row's difference from 'scratch' is in its line already.
    adapted = [row for row in config.rows if "+" in row and row != "scratch+adapted"]
    asked += [(row, row.removesuffix("+adapted")) for row in adapted]
    made = []
    for row, other in asked:
        for key in seeds:
            found = _difference(seeds, key, other, config) if key[0] == row else {}
            if found:
                made.append(results.Comparison(row, other, *key[1:], found))
    return made


def task_of(name: str, task: tasks.Task, tested: Found, folds: int) -> results.Task:
    index = task.prepared.index()
    index = index[index.labels != ""]
    index = index.by_recording
    true = task.true(index.labels)

    def held(label: int) -> tuple[int, int, int, int]:
        mine, scored = true == label, tested.true == label
        people = (set(index.subjects[mine]), set(tested.subjects[scored]))
        return int(mine.sum()), len(people[0]), int(scored.sum()), len(people[1])

    return results.Task(
        name,
        task.classes,
        len(index.recordings),
        len(set(index.subjects)),
        len(tested.true),
        len(set(tested.subjects)),
        float(np.bincount(tested.true).max() / len(tested.true)),
        held=tuple(map(held, range(len(task.classes)))),
        folds=folds,
    )


def counts(datasets: Mapping[str, Prepared]) -> list[dict[str, Any]]:
    """Counts per split of each dataset."""
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


def versions() -> dict[str, str]:
    """Versions of packages and Python; the device."""
    modules = (jax, flax, optax, np, sklearn)
    return {
        "cryjax": __version__,
        **{module.__name__: module.__version__ for module in modules},
        "orbax-checkpoint": ocp.__version__,
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
    }
