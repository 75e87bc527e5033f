"""Whom an encoder has heard in training, so that no number is of them unnoticed."""

import dataclasses
import pathlib

import ml_collections
import numpy as np

from cryjax.command.errors import UserError
from cryjax.data.records import Prepared, open_prepared
from cryjax.evaluation import folds, tasks
from cryjax.training.checkpoints import read_meta


@dataclasses.dataclass
class Heard:
    """The subjects of a run and of those that it started from.

    Attributes:
      labelled: whose labels were learnt, or chose a step.
      unlabelled: who were heard without.
      unknown: why others may have been, too.
    """

    labelled: set[str] = dataclasses.field(default_factory=set)
    unlabelled: set[str] = dataclasses.field(default_factory=set)
    unknown: list[str] = dataclasses.field(default_factory=list)


def heard(run: str, key: str) -> Heard:
    """Whom a run, and those that it started from, were trained on.

    That is told by their configs and the datasets that these name, as they are now.

    Args:
      run: its work directory.
      key: fingerprint of the key that subjects are to be named by.
    """
    found, followed = Heard(), set()
    while run:
        folder = pathlib.Path(run).resolve()
        if folder in followed:
            found.unknown.append(f"{run} began from a run whose folder it has now")
            break
        followed.add(folder)
        try:
            meta = read_meta(run)
        except UserError:
            found.unknown.append(f"{run} is gone")
            break
        config = ml_collections.ConfigDict(meta["config"])
        if meta["program"] == "import_weights":
            found.unknown.append(f"{run} has weights from elsewhere")
        for entry in filter(None, config.get("data", "").split(",")):
            try:
                _add(found, meta["program"], config, open_prepared(entry.partition(":")[0]), key)
            except UserError as error:
                found.unknown.append(str(error))
        run = config.get("init", "")
    return found


def _add(found: Heard, program: str, config: ml_collections.ConfigDict, prepared: Prepared,
         key: str) -> None:  # fmt: skip
    """Adds those of a dataset that a run of this config was trained on."""
    if prepared.subject_key != key:
        raise UserError(f"{prepared.directory} names subjects by another key")
    if program == "finetune":
        index = prepared.index()
        division = tasks.divide(index[index.labels != ""], config)
        for part in (division.train, division.validation):
            found.labelled |= set(part.subjects)
    else:
        excluded = folds.subjects_of(config.exclude_subjects)
        found.unlabelled |= set(prepared.index(config.split).subjects) - excluded


def check(run: str, prepared: Prepared, scored: np.ndarray) -> list[str]:
    """What a reader of numbers by a run's encoder should know of those whom it has heard.

    Args:
      run: its work directory.
      prepared: the dataset that is scored.
      scored: subjects of the recordings that are.

    Raises:
      UserError: where it learnt the labels of some of them.
    """
    everybody, found = set(scored), heard(run, prepared.subject_key)
    if known := sorted(everybody & found.labelled):
        raise UserError(
            f"{len(known)} of the {len(everybody)} subjects to score, as {str(known[0])!r}, are "
            f"among those whose labels {run} has learnt: the numbers would be of its training set; "
            "score other people, as those that it tested on (config.folds=0 and the split 'test')"
        )
    said = []
    if known := sorted(everybody & found.unlabelled):
        said.append(
            f"{len(known)} of the {len(everybody)} scored subjects were heard, without labels, in "
            f"the pre-training of {run}: people whom it has not heard may be told apart less well"
        )
    if found.unknown:
        said.append(
            f"whether {run} has heard scored subjects in training cannot be told: "
            f"{'; '.join(found.unknown)}"
        )
    return said
