"""Which recordings to train on and score: grouped by subject, stratified, nested, repeatable."""

import collections
import pathlib
import re
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from cryjax.command.errors import TooFewLabels, UserError
from cryjax.data.manifest import read_manifest
from cryjax.data.records import open_prepared
from cryjax.data.subjects import is_pseudonym, numbered, pseudonym, read_key

Parts = list[tuple[np.ndarray, np.ndarray]]  # (train, test) indices


def grouped_folds(labels: np.ndarray, subjects: np.ndarray, folds: int, seed: int) -> Parts:
    """Stratified folds that divide no subject; fewer where there are fewer subjects.

    Also fewer where every class has fewer recordings, which `StratifiedGroupKFold` rejects, or
    where it leaves a fold empty, as it sometimes does the last one with few subjects; none where
    fewer than two remain.

    Args:
      labels: [recordings], of any type.
      subjects: [recordings].
      folds: number wanted.
      seed: of the shuffle.
    """
    _, labels = np.unique(labels, return_inverse=True)
    folds = min(folds, len(set(subjects)), int(np.bincount(labels).max()))
    if folds < 2:
        return []
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class with fewer recordings than folds: the caller reports it for the outer folds.
        warnings.simplefilter("ignore", UserWarning)
        parts = list(splitter.split(labels, labels, numbered(subjects)[0]))
    return [(train, test) for train, test in parts if len(train) and len(test)]


def has_own_folds(splits: Iterable[str]) -> bool:
    """Whether a dataset's splits are the folds of a benchmark: 'fold1', 'fold2', ..."""
    names = set(splits)
    return len(names) > 1 and all(re.fullmatch("fold[0-9]+", name) for name in names)


def own_split(subjects: np.ndarray, splits: np.ndarray) -> Parts:
    """The dataset's own 'train' (and 'validation') against its 'test'; or its own folds in turn.

    Args:
      subjects: [recordings].
      splits: [recordings]; 'fold1', 'fold2', ... are the folds of a published benchmark.

    Raises:
      UserError: if a part has no recordings, or a subject is in both.
    """
    if has_own_folds(splits):
        names = sorted(set(splits), key=lambda name: (len(name), name))
        parts = [(np.flatnonzero(splits != n), np.flatnonzero(splits == n)) for n in names]
        for part in parts:
            check_apart(subjects, *part)
        return parts
    train = np.flatnonzero(np.isin(splits, ("train", "validation")))
    test = np.flatnonzero(splits == "test")
    if not len(train) or not len(test):
        raise UserError(
            "config.folds=0 needs labelled recordings in the splits 'train' and 'test', but the "
            f"dataset has them only in {', '.join(sorted(set(splits)))}; set config.folds=5, or "
            "rename the splits in the manifest, or leave them out there and give prepare "
            "--splits=train=0.8,test=0.2"
        )
    check_apart(subjects, train, test)
    return [(train, test)]


def check_apart(subjects: np.ndarray, train: np.ndarray, test: np.ndarray) -> None:
    """Raises UserError if a subject is in both."""
    shared = sorted(set(subjects[train]) & set(subjects[test]))
    if shared:
        raise UserError(
            f"{len(shared)} subject(s), such as {str(shared[0])!r}, are in more than one split; "
            "correct the manifest's columns 'subject' and 'split': one split for each"
        )


def _classes(label: str) -> list[str]:
    return [name for name in label.split(";") if name]


def _classes_of_subjects(labels: np.ndarray, group: np.ndarray) -> list[list[str]]:
    """The classes of each subject's recordings, by its number in `group`."""
    found: list[list[str]] = [[] for _ in range(group.max() + 1)]
    for place, label in zip(group, labels, strict=True):
        found[place] += _classes(label)
    return found


def _kind(classes: list[str]) -> str:
    """A subject's kind: its commonest class, the first of equals; '' without one."""
    return collections.Counter(classes).most_common(1)[0][0] if classes else ""


def subject_order(labels: np.ndarray, subjects: np.ndarray, seed: int) -> tuple[Any, int]:
    """An order of the subjects of which every prefix is stratified.

    Args:
      labels: [recordings]; several are separated by ';'.
      subjects: [recordings].
      seed: of the order.

    Returns:
      The position of each recording's subject in the order, int [recordings]; and how many
      subjects, from the first, cover every class.
    """
    group, count = numbered(subjects)
    of_subject = _classes_of_subjects(labels, group)
    order = np.random.default_rng(seed).permutation(count)
    # Ordering by relative position among those of its kind spreads the kinds.
    same: dict[str, list[int]] = {}
    for place in order:
        same.setdefault(_kind(of_subject[place]), []).append(place)
    share = np.zeros(count)
    for places in same.values():
        share[places] = (np.arange(len(places)) + 0.5) / len(places)
    order = order[np.argsort(share[order], kind="stable")]
    # Subjects that introduce a class come before all others, or small parts would lack it.
    met: set[str] = set()
    first = np.zeros(count, bool)
    for place in order:
        first[place] = not met.issuperset(of_subject[place])
        met.update(of_subject[place])
    order = np.concatenate([order[first[order]], order[~first[order]]])
    rank = np.empty(count, int)
    rank[order] = np.arange(count)
    return rank[group], int(first.sum())


def take_fraction(
    labels: np.ndarray, subjects: np.ndarray, fraction: float, seed: int
) -> np.ndarray:
    """A share of the subjects with all their recordings: stratified, and nested.

    For one seed, a smaller fraction is a subset of a larger one, so that points of a curve over
    fractions differ by added data alone. Every class has at least one subject in each, even where
    that is more than the fraction.

    Args:
      labels: [recordings]; several are separated by ';'.
      subjects: [recordings].
      fraction: of the subjects, in (0, 1].
      seed: of the order in which subjects are taken.

    Returns:
      bool [recordings].
    """
    if fraction == 1 or not len(labels):
        return np.ones(len(labels), bool)
    rank, first = subject_order(labels, subjects, seed)
    return rank < max(first, round(fraction * (rank.max() + 1)))


def hold_out(
    labels: np.ndarray, subjects: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Holds out a stratified share of the subjects for validation; each class keeps a subject.

    Each kind of subject, by commonest class, is held out in proportion to its size, by largest
    remainders; a kind whose quota is half a subject may lose none.

    Args:
      labels: [recordings]; several are separated by ';'.
      subjects: [recordings].
      share: of the subjects, in (0, 1); at least one is held out.
      seed: of the order in which subjects are taken.

    Returns:
      Indices of the recordings that stay, and of those held out.

    Raises:
      TooFewLabels: if there are too few subjects to hold one out.
    """
    rank, first = subject_order(labels, subjects, seed)
    people = int(rank.max()) + 1
    spare = people - first
    if not spare:
        raise TooFewLabels(
            f"{people} subject(s) to train on: none can be held out for validation; "
            "set config.validation=0, or add subjects"
        )
    wanted = min(max(round(share * people), 1), spare)
    kinds = [_kind(classes) for classes in _classes_of_subjects(labels, rank)]
    sizes = collections.Counter(kinds)
    # What is left of its kind's quota when a subject's turn comes, by rank, after those that every
    # class needs: a whole subject goes before a remainder, a larger remainder before a smaller.
    due = np.full(people, -np.inf)
    before: collections.Counter[str] = collections.Counter()
    for place in range(first, people):
        kind = kinds[place]
        due[place] = min(wanted * sizes[kind] / people - before[kind], 1.0)
        before[kind] += 1
    held = np.argsort(-due, kind="stable")[:wanted]
    chosen = np.isin(rank, held)
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


_FOLD = re.compile(r"([0-9]+)/([0-9]+)(?:@([0-9]+))?")


def subjects_of(text: str) -> set[str]:
    """The subjects named by a field such as `config.exclude_subjects`.

    Args:
      text: comma-separated entries, each one of: a subject; a manifest, as 'test.csv'; a prepared
        dataset, 'DATA', or a split of one, 'DATA:test'; a fold of one, 'DATA:0/5', which evaluation
        with five folds calls 0, or 'DATA:0/5@7' where its seed is 7 rather than 0.

    Raises:
      UserError: for a missing folder, split or fold, or a manifest row without a subject.
    """
    found: set[str] = set()
    for entry in entries(text):
        folder, _, split = entry.rpartition(":")
        fold = _FOLD.fullmatch(split)
        if entry.endswith(".csv"):
            rows = read_manifest(entry)
            if unknown := sum(row.alone for row in rows):
                raise UserError(
                    f"{entry}: {unknown} of its {len(rows)} rows have no 'subject', so nobody can "
                    "tell who is left out; fill the column in, or prepare the manifest and name "
                    "the dataset, DATA or DATA:test"
                )
            found |= _also_renamed({row.subject for row in rows})
        elif pathlib.Path(entry).is_dir():
            found |= set(open_prepared(entry).index().subjects)
        elif folder and pathlib.Path(folder).is_dir():
            found |= (
                _of_fold(folder, *(int(number or 0) for number in fold.groups()))
                if fold
                else set(open_prepared(folder).index(split).subjects)
            )
        elif _is_name(entry):
            found |= _also_renamed({entry})
        else:
            raise UserError(
                f"{entry!r}: no such folder; name a subject, a manifest TEST.csv, a prepared "
                "dataset DATA, or DATA:SPLIT"
            )
    return found


def entries(text: str) -> list[str]:
    """The parts of a list, as `subjects_of` takes it."""
    return [entry for part in text.split(",") if (entry := part.strip())]


def _is_name(entry: str) -> bool:
    """Whether an entry of `subjects_of` is a subject's name."""
    if entry.endswith(".csv") or entry.startswith((".", "~")) or {":", "/"} & set(entry):
        return False
    return not pathlib.Path(entry).is_dir()


def renamed_entries(text: str) -> str:
    """The entries of `subjects_of` with subjects by their pseudonyms in datasets.

    For a config that is saved: a run holds no name that a clinic gave.
    """
    key = read_key()
    if key is None:
        return text
    return ",".join(
        pseudonym(entry, key) if _is_name(entry) and not is_pseudonym(entry) else entry
        for entry in entries(text)
    )


def _also_renamed(names: set[str]) -> set[str]:
    """The names, and their pseudonyms in datasets prepared with this user's key."""
    key = read_key()
    return names | ({pseudonym(name, key) for name in names} if key else set())


def _of_fold(folder: str, fold: int, folds: int, seed: int) -> set[str]:
    index = open_prepared(folder).index().by_recording
    index = index[index.labels != ""]
    parts = grouped_folds(index.labels, index.subjects, folds, seed)
    if fold >= len(parts):
        raise UserError(f"{folder}:{fold}/{folds}: the data allow {len(parts)} folds, from 0 up")
    return set(index.subjects[parts[fold][1]])
