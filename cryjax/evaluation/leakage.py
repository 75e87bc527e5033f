"""Which subjects an encoder was trained on, so that none is scored unnoticed."""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

import ml_collections
import numpy as np

from cryjax.command import config as config_lib
from cryjax.command.errors import UserError
from cryjax.data.records import Prepared, open_prepared
from cryjax.evaluation import folds, tasks
from cryjax.training import start
from cryjax.training.checkpoints import read_meta


@dataclasses.dataclass
class Heard:
    """The training subjects of a run and of those it started from.

    Attributes:
      labelled: whose labels were learnt, or used to select a step.
      unlabelled: heard without labels.
      unknown: why there may be others.
    """

    labelled: set[str] = dataclasses.field(default_factory=set)
    unlabelled: set[str] = dataclasses.field(default_factory=set)
    unknown: list[str] = dataclasses.field(default_factory=list)


def heard(run: str, key: str) -> Heard:
    """Subjects that a run, and those it started from, were trained on.

    Looked up in their configs and in the datasets named there, as they are now.

    Args:
      run: its work directory.
      key: fingerprint of the key behind the subjects' pseudonyms.
    """
    found, followed = Heard(), set()
    while run:
        folder = pathlib.Path(run).resolve()
        if folder in followed:
            found.unknown.append(f"{run} started from a run whose folder it has now")
            break
        followed.add(folder)
        try:
            meta = read_meta(run)
        except UserError:
            found.unknown.append(f"{run} is gone")
            break
        config = ml_collections.ConfigDict(meta["config"])
        if meta["program"] == "import_weights":
            found.unknown.append(f"{run} has imported weights")
        try:
            _add(found, meta, config, key)
        except UserError as error:
            found.unknown.append(str(error))
        run = config.get("init", "")
    return found


def content(datasets: Iterable[Prepared], excluded: Iterable[str] = ()) -> str:
    """What a run is trained on, as text: its datasets, and the subjects of theirs left out."""
    return "".join([*(prepared.fingerprint for prepared in datasets), *sorted(excluded)])


def _add(found: Heard, meta: dict[str, Any], config: ml_collections.ConfigDict, key: str) -> None:
    """Adds the subjects of a run's datasets, if these are still what it was trained on.

    Raises:
      UserError: if they are not.
    """
    folders = config_lib.datasets(config.data) if "data" in config else []
    datasets = []
    for folder, _ in folders:
        try:
            datasets.append(open_prepared(folder))
        except UserError as error:
            found.unknown.append(str(error))
    excluded = folds.subjects_of(config.get("exclude_subjects", ""))
    if excluded:
        excluded &= set().union(*(prepared.index().subjects for prepared in datasets))
    now = start.digest(content(datasets, excluded))
    # Of some of them nobody can tell.
    if len(datasets) == len(folders) and meta.get("inputs", {}).get("data", now) != now:
        raise UserError(f"{config.data} is no longer what it was trained on")
    for prepared in datasets:
        if prepared.subject_key != key:
            found.unknown.append(f"{prepared.directory} names subjects with another key")
            continue
        if meta["program"] == "finetune":
            index = prepared.index()
            division = tasks.divide(index[index.labels != ""], config)
            for part in (division.train, division.validation):
                found.labelled |= set(part.subjects)
        else:
            found.unlabelled |= set(prepared.index(config.split).subjects) - excluded


def check(run: str, prepared: Prepared, scored: np.ndarray) -> list[str]:
    """Warnings about scored subjects that a run's encoder was, or may have been, trained on.

    Args:
      run: its work directory.
      prepared: the dataset that is scored.
      scored: subjects of the scored recordings.

    Raises:
      UserError: if it learnt the labels of some of them.
    """
    everybody, found = set(scored), heard(run, prepared.subject_key)
    if known := sorted(everybody & found.labelled):
        raise UserError(
            f"{len(known)} of the {len(everybody)} subjects to score, such as {str(known[0])!r}, "
            f"are among those whose labels {run} used in training, so they are not held out; score "
            "other people, such as its test subjects (config.folds=0 and the split 'test')"
        )
    warnings = []
    if known := sorted(everybody & found.unlabelled):
        warnings.append(
            f"{len(known)} of the {len(everybody)} scored subjects were used, without labels, to "
            f"pre-train {run}: it may do less well on people it was not trained on"
        )
    if found.unknown:
        warnings.append(
            f"cannot tell whether {run} was trained on scored subjects: {'; '.join(found.unknown)}"
        )
    return warnings
