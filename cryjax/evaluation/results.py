"""Results of an experiment, as tables, figures and report take them; their wording."""

import dataclasses
from typing import Any

import numpy as np

from cryjax.evaluation import metrics
from cryjax.evaluation.embeddings import Embeddings

_METHOD_NAMES = {"probe": "linear probe", "finetune": "fine-tuning"}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number and its uncertainty.

    Attributes:
      value: mean over seeds.
      interval: at `LEVEL`, bootstrapped over subjects.
      spread: standard deviation over seeds.
    """

    value: float
    interval: tuple[float, float]
    spread: float = 0.0


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of results: an encoder, how it is used, a task, a share of the labels.

    Attributes:
      row: one of `recipe.ROWS`.
      method: 'probe' or 'finetune'.
      task: name.
      fraction: of the training subjects whose labels are used, in (0, 1].
      seeds: number behind each estimate.
      n_train: labelled training recordings, mean over folds and seeds.
      metrics: name -> estimate.
      difference: name -> estimate of how much better than 'scratch' with the same method, task and
        fraction; empty for 'scratch', or without it.
    """

    row: str
    method: str
    task: str
    fraction: float
    seeds: int
    n_train: int
    metrics: dict[str, Estimate]
    difference: dict[str, Estimate]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How much better a row is than another: same method, task and fraction, paired."""

    row: str
    other: str
    method: str
    task: str
    fraction: float
    difference: dict[str, Estimate]


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of test recordings, with all labels and the first seed.

    Attributes:
      true: int [recordings], indices into the labels of the task.
      scores: [recordings, classes], the highest wins; NaN for a class not learnt.
    """

    true: np.ndarray
    scores: np.ndarray


@dataclasses.dataclass(frozen=True)
class Task:
    """A classification task, and its size.

    Attributes:
      majority_accuracy: the share of the commonest class among the test recordings.
      held: per label: recordings, their subjects, and how many of each are scored.
      folds: whose test recordings are scored together; 1 for a test set.
    """

    name: str
    labels: tuple[str, ...]
    n_recordings: int
    n_subjects: int
    n_test_recordings: int
    n_test_subjects: int
    majority_accuracy: float
    held: tuple[tuple[int, int, int, int], ...] = ()
    folds: int = 1


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that is reported.

    Attributes:
      title: of the report.
      synthetic: whether any of the data are.
      tasks: in the order of the report.
      lines: in the order of the tables' rows.
      comparisons: between rows, besides those with 'scratch'.
      scores: (row, method, task) -> scores.
      embeddings: (row, task) -> embeddings.
      training: name of a run -> the lines of its metrics.jsonl.
      configs: name -> config.
      versions: package -> version.
      data: per dataset and split: name, split, recordings, subjects, hours, labels.
      commands: to rerun it.
      notes: warnings, shown first.
    """

    title: str
    synthetic: bool
    tasks: tuple[Task, ...]
    lines: tuple[Line, ...]
    comparisons: tuple[Comparison, ...]
    scores: dict[tuple[str, str, str], Scores]
    embeddings: dict[tuple[str, str], Embeddings]
    training: dict[str, list[dict[str, Any]]]
    configs: dict[str, dict[str, Any]]
    versions: dict[str, str]
    data: tuple[dict[str, Any], ...]
    commands: tuple[str, ...]
    notes: tuple[str, ...]


def method_name(method: str) -> str:
    """A method for a reader: 'probe' -> 'linear probe'."""
    return _METHOD_NAMES.get(method, method)


def chance(metric: str, task: Task) -> float | None:
    """What a classifier that ignores the audio gets; None where that is not one number."""
    known = {
        "macro_auc": 0.5,
        "accuracy": task.majority_accuracy,
        "balanced_accuracy": 1 / max(len(task.labels), 1),
        metrics.SENSITIVITY: 1 - metrics.SPECIFICITY,
    }
    return known.get(metric)
