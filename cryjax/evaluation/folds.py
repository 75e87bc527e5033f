"""Which recordings to train on and which to score: by subject, stratified, nested, repeatable."""

import pathlib
import re
import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from cryjax.command.errors import UserError
from cryjax.data.manifest import read_manifest
from cryjax.data.records import open_prepared

Parts = list[tuple[np.ndarray, np.ndarray]]  # (train, test) places


def grouped_folds(labels: np.ndarray, subjects: np.ndarray, folds: int, seed: int) -> Parts:
    """Stratified folds that divide no subject; fewer where there are fewer subjects.

    Fewer too where every class has fewer recordings, which `StratifiedGroupKFold` refuses; none
    where that leaves less than two.

    Args:
      labels: [recordings], of any kind.
      subjects: [recordings].
      folds: wanted.
      seed: of the deal.
    """
    _, labels = np.unique(labels, return_inverse=True)
    folds = min(folds, len(set(subjects)), int(np.bincount(labels).max()))
    if folds < 2:
        return []
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class with fewer recordings than folds: told by the caller, of the outer folds.
        warnings.simplefilter("ignore", UserWarning)
        return list(splitter.split(labels, labels, subjects))


def own_split(subjects: np.ndarray, splits: np.ndarray) -> Parts:
    """The dataset's own 'train' (and 'validation') against its 'test'.

    Raises:
      UserError: where one has no recordings, or a subject is in both.
    """
    train = np.flatnonzero(np.isin(splits, ("train", "validation")))
    test = np.flatnonzero(splits == "test")
    if not len(train) or not len(test):
        raise UserError(
            "config.folds=0 takes the dataset's splits 'train' and 'test', and it has labelled "
            f"recordings in {', '.join(sorted(set(splits)))}; take config.folds=5, or prepare it "
            "with --splits=train=0.8,test=0.2"
        )
    check_apart(subjects, train, test)
    return [(train, test)]


def check_apart(subjects: np.ndarray, train: np.ndarray, test: np.ndarray) -> None:
    """Raises UserError where a subject is both trained on and scored."""
    shared = sorted(set(subjects[train]) & set(subjects[test]))
    if shared:
        raise UserError(
            f"{len(shared)} subject(s), as {shared[0]!r}, are both trained on and scored; a "
            "subject belongs to one: mend the manifest's columns 'subject' and 'split'"
        )


def _classes(label: str) -> list[str]:
    return [name for name in label.split(";") if name]


def take_fraction(
    labels: Sequence[str], subjects: Sequence[str], fraction: float, seed: int
) -> np.ndarray:
    """A share of the subjects with all their recordings: stratified, and nested.

    What a smaller fraction takes lies inside what a larger one takes, for one seed, so that a curve
    over fractions differs by added data alone. Every class has at least one subject in each, even
    where that is more than the fraction.

    Args:
      labels: [recordings]; several are separated by ';'.
      subjects: [recordings].
      fraction: of the subjects, in (0, 1].
      seed: of the order in which subjects are taken.

    Returns:
      bool [recordings].
    """
    names, group = np.unique(subjects, return_inverse=True)
    of_subject: list[list[str]] = [[] for _ in names]
    for place, label in zip(group, labels, strict=True):
        of_subject[place] += _classes(label)
    kinds = [max(sorted(set(found)), key=found.count) if found else "" for found in of_subject]
    # A subject's place among those of its kind, as a share, spreads the kinds along the order.
    order = np.random.default_rng(seed).permutation(len(names))
    share = np.zeros(len(names))
    for kind in set(kinds):
        same = [place for place in order if kinds[place] == kind]
        share[same] = (np.arange(len(same)) + 0.5) / len(same)
    order = order[np.argsort(share[order], kind="stable")]
    # Those by whom a class is first met come before all, or small fractions would lack it.
    met: set[str] = set()
    first = []
    for place in order:
        if set(of_subject[place]) - met:
            first.append(place)
            met |= set(of_subject[place])
    order = np.concatenate([np.array(first, int), order[~np.isin(order, first)]])
    taken = np.zeros(len(names), bool)
    taken[order[: max(len(first), round(fraction * len(names)))]] = True
    return taken[group]


def hold_out(
    labels: np.ndarray, subjects: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Takes about a share of the recordings out, by subject, stratified, to choose by.

    Returns:
      Places of those that stay, and of those held out.

    Raises:
      UserError: where there are too few subjects to hold one out.
    """
    parts = grouped_folds(labels, subjects, max(2, round(1 / share)), seed)
    if not parts:
        raise UserError(
            f"{len(set(subjects))} subject(s) to train on: none can be held out for validation; "
            "take config.validation=0, or more subjects"
        )
    return parts[0]


_FOLD = re.compile(r"(.*):([0-9]+)/([0-9]+)(?:@([0-9]+))?")


def subjects_of(text: str) -> set[str]:
    """The subjects that a field such as `config.exclude_subjects` names.

    Args:
      text: entries separated by commas, each one of: a subject; a manifest, as 'test.csv'; a
        prepared dataset, 'DATA', or a split of one, 'DATA:test'; a fold of one, 'DATA:0/5', that
        evaluation with five folds calls 0, or 'DATA:0/5@7' where its seed is 7 rather than 0.

    Raises:
      UserError: for a split or fold that is not there.
    """
    found: set[str] = set()
    for entry in filter(None, (part.strip() for part in text.split(","))):
        folder, _, split = entry.partition(":")
        fold = _FOLD.fullmatch(entry)
        if entry.endswith(".csv"):
            found |= {row.subject for row in read_manifest(entry)}
        elif fold and pathlib.Path(fold[1]).is_dir():
            found |= _of_fold(fold[1], int(fold[2]), int(fold[3]), int(fold[4] or 0))
        elif pathlib.Path(folder).is_dir():
            found |= set(open_prepared(folder).index(*([split] if split else [])).subjects)
        else:
            found.add(entry)
    return found


def _of_fold(folder: str, fold: int, folds: int, seed: int) -> set[str]:
    index = open_prepared(folder).index()
    index = index[np.unique(index.recordings, return_index=True)[1]]
    index = index[index.labels != ""]
    parts = grouped_folds(index.labels, index.subjects, folds, seed)
    if fold >= len(parts):
        raise UserError(f"{folder}:{fold}/{folds}: the dataset makes {len(parts)} folds, from 0 up")
    return set(index.subjects[parts[fold][1]])
