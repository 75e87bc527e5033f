"""Splits by subject. Imported by worker processes, so imports little."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from cryjax.command.errors import UserError

SPLIT_NAMES = "letters, digits, '_' and '-', but not 'all'"  # TFDS's rule


def is_split_name(name: str) -> bool:
    return re.fullmatch(r"[\w-]+", name) is not None and name != "all"


def parse_fractions(text: str) -> dict[str, float]:
    """'train=0.8,test=0.2' -> {'train': 0.8, 'test': 0.2}. Raises UserError if invalid."""
    try:
        pairs = [part.split("=") for part in text.split(",")]
        fractions = {name.strip(): float(share) for name, share in pairs}
    except ValueError:
        fractions = {}
    sound = fractions and all(share > 0 for share in fractions.values())
    if not sound or abs(sum(fractions.values()) - 1) > 1e-6 or len(fractions) != len(pairs):
        raise UserError(f"--splits={text!r}: give shares that sum to 1, such as train=0.8,test=0.2")
    for name in fractions:
        if not is_split_name(name):
            raise UserError(f"--splits={text!r}: {name!r} is not a split name; use {SPLIT_NAMES}")
    return fractions


def assign_splits(
    subjects: Sequence[str], labels: Sequence[str], fractions: Mapping[str, float], seed: int
) -> list[str]:
    """Assigns recordings to splits by subject, with labels spread as evenly as subjects allow.

    Subjects are assigned one by one, large ones early, each to the split that lacks it most.

    Args:
      subjects: of each recording.
      labels: of each recording.
      fractions: split -> share of the recordings; they sum to 1.
      seed: of the assignment.

    Returns:
      The split of each recording. Each split has at least one subject.

    Raises:
      UserError: if there are fewer subjects than splits.
    """
    count = len(set(subjects))
    if count < len(fractions):
        raise UserError(
            f"--splits asks for {len(fractions)} splits of {count} subject(s); a subject is never "
            "divided: ask for fewer, or fill in the manifest's column 'subject'"
        )
    _, who = np.unique(subjects, return_inverse=True)
    kinds, what = np.unique(labels, return_inverse=True)
    sizes = np.bincount(who)
    whats = np.split(what[np.argsort(who)], np.cumsum(sizes)[:-1])
    names, shares = list(fractions), np.array(list(fractions.values()))
    taken = np.zeros((len(names), len(kinds) + 1))  # recordings by label; last, in total
    chosen = np.empty(count, dtype=object)
    early = sizes * np.random.default_rng(seed).uniform(0.5, 1.0, count)
    for place, subject in enumerate(np.argsort(-early)):
        kind, held = np.unique(whats[subject], return_counts=True)
        kind, held = np.append(kind, -1), np.append(held, sizes[subject])
        # The sum of count^2 / share over splits is least where each has its share of each
        # label and of the total; the subject goes where it adds least.
        added = (held * (2 * taken[:, kind] + held)).sum(axis=1) / shares
        empty = taken[:, -1] == 0
        if count - place <= empty.sum():
            added[~empty] = np.inf
        split = np.argmin(added)
        taken[split, kind] += held
        chosen[subject] = names[split]
    return chosen[who].tolist()
