"""A labelled dataset as a task: its classes, and its training, validation and test parts."""

import dataclasses
from typing import Any

import numpy as np

from cryjax.command import config as config_lib
from cryjax.command.errors import TooFewLabels, UserError
from cryjax.data.records import Index, Prepared
from cryjax.evaluation import folds


def ordered(prepared: Prepared, positive: str) -> tuple[str, ...]:
    """A dataset's classes by name, the positive one, if given, last.

    Of two classes, the second is the positive one, here and in every metric.
    """
    names = prepared.label_names
    if positive and positive not in names:
        raise UserError(
            f"config.positive={positive!r} is not a label of {prepared.directory}; use one of "
            f"{', '.join(names)}"
        )
    if positive and len(names) != 2:
        raise UserError(
            f"config.positive={positive!r}: {prepared.directory} has {len(names)} classes, but it "
            "applies only to two; leave it empty"
        )
    return tuple(sorted(names, key=lambda name: (name == positive, name)))


def targets_of(labels: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    """[n] labels, several separated by ';' -> bool [n, classes]."""
    places = {name: place for place, name in enumerate(classes)}
    targets = np.zeros((len(labels), len(classes)), bool)
    for row, label in zip(targets, labels, strict=True):
        row[[places[name] for name in label.split(";") if name]] = True
    return targets


@dataclasses.dataclass(frozen=True)
class Task:
    """A classification task.

    Attributes:
      prepared: the dataset.
      classes: names, in order.
      multi_label: whether a recording may have several.
    """

    prepared: Prepared
    classes: tuple[str, ...]
    multi_label: bool

    def true(self, labels: np.ndarray) -> np.ndarray:
        """[n] labels -> int [n] classes, or bool [n, classes] if multi-label."""
        targets = targets_of(labels, self.classes)
        return targets if self.multi_label else targets.argmax(axis=1)


def open_task(config: Any, index: Index, prepared: Prepared) -> Task:
    """The task of a dataset. Raises UserError if the config or the labels do not fit it."""
    classes = prepared.label_names
    if len(classes) < 2:
        found = f"1 class ({classes[0]!r})" if classes else "no labels"
        raise UserError(
            f"{prepared.directory} has {found}; training needs at least two classes: prepare it "
            "from a manifest that has them, or with --label_column"
        )
    several = any(";" in label for label in index.labels)
    if several and config.task == "single":
        raise UserError(
            f"config.task='single', but {prepared.directory} has recordings with several labels; "
            "use 'multi' or 'auto'"
        )
    classes = ordered(prepared, config.positive)
    return Task(prepared, classes, several or config.task == "multi")


@dataclasses.dataclass(frozen=True)
class Division:
    """The examples for training, validation and testing; the last two may be empty."""

    train: Index
    validation: Index
    test: Index

    @property
    def scored(self) -> Index:
        """The scored examples: those for testing or, if there are none, for validation."""
        return self.test if len(self.test) else self.validation


def divide(index: Index, config: Any) -> Division:
    """Divides labelled examples by recording, and recordings by subject, as the config says.

    Raises:
      UserError: if there is nothing to train on, or nothing to score.
    """
    of = index.by_recording
    validation = np.array([], int)
    if config.folds or folds.has_own_folds(of.splits):
        parts = (
            folds.grouped_folds(of.labels, of.subjects, config.folds, config.fold_seed)
            if config.folds
            else folds.own_split(of.subjects, of.splits)
        )
        found = f"{len(of)} recordings of {len(set(of.subjects))} subjects"
        if not parts:
            raise TooFewLabels(
                f"config.folds={config.folds}: {found} allow no folds, which need two subjects and "
                "two recordings of a class; add some, or use config.folds=0 and splits of your own"
            )
        if config.fold >= len(parts):
            raise TooFewLabels(
                f"config.fold={config.fold}: {found} allow {len(parts)} folds; use one from 0 to "
                f"{len(parts) - 1}"
            )
        train, test = parts[config.fold]
    else:
        train, validation, test = (
            np.flatnonzero(of.splits == name) for name in ("train", "validation", "test")
        )
        if not len(train):
            raise UserError(
                "config.folds=0 needs labelled recordings in the split 'train', but the dataset "
                f"has them only in {', '.join(sorted(set(of.splits)))}; set config.folds=5"
            )
        folds.check_apart(of.subjects, np.concatenate([train, validation]), test)
        folds.check_apart(of.subjects, train, validation)
    if config.validation and not len(validation):
        if len(test) and config_lib.never(config.evaluate_every):
            raise UserError(
                f"config.validation={config.validation} holds subjects out and config."
                f"evaluate_every={config.evaluate_every!r} never looks at them; set "
                "config.validation=0 to train on them"
            )
        stay, held = folds.hold_out(
            of.labels[train], of.subjects[train], config.validation, config.label_seed
        )
        train, validation = train[stay], train[held]
    # From each part separately: both are nested, and few labels means few for validation.
    train, validation = (
        part[
            folds.take_fraction(
                of.labels[part], of.subjects[part], config.label_fraction, config.label_seed
            )
        ]
        for part in (train, validation)
    )
    if not len(test) and not len(validation):
        raise UserError(
            "nothing to score: the dataset has no split 'test', and config.folds and "
            "config.validation are 0; set one of them"
        )

    def examples(recordings: np.ndarray) -> Index:
        return index[np.isin(index.recordings, of.recordings[recordings])]

    return Division(examples(train), examples(validation), examples(test))


def learnt(task: Task, division: Division) -> np.ndarray:
    """bool [classes]: which of them occur in training."""
    return np.any(targets_of(division.train.labels, task.classes), axis=0)


def missing(task: Task, division: Division) -> list[str]:
    """What a reader of the numbers should know about the division.

    Raises:
      TooFewLabels: if there are fewer than two classes to learn.
    """
    warnings = [*task.prepared.cautions]
    has = learnt(task, division)
    if has.sum() < 2:
        raise TooFewLabels(
            f"the training recordings have {has.sum()} of the {len(task.classes)} classes; use "
            "another fold, fold_seed or label_seed, or a larger label_fraction"
        )
    absent = [name for name, found in zip(task.classes, has, strict=True) if not found]
    if absent:
        warnings.append(
            f"no training recording has class {', '.join(absent)}, so it is never predicted, and "
            "AUC and average precision leave it out"
        )
    if len(division.validation):
        chosen_by = targets_of(division.validation.labels, task.classes).any(axis=0)
        if chosen_by.sum() < 2:
            warnings.append(
                "the validation recordings have only one class, so they cannot select a step: the "
                "last is used"
            )
    held = np.any(targets_of(division.scored.labels, task.classes), axis=0)
    if not held.all():
        names = [name for name, found in zip(task.classes, held, strict=True) if not found]
        warnings.append(f"no scored recording has class {', '.join(names)}: no metric covers it")
    return warnings
