"""Splits by subject."""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from cryjax.command.program import UserError

_PARTS = 20


def parse_fractions(text: str) -> dict[str, float]:
    """'train=0.8,test=0.2' -> {'train': 0.8, 'test': 0.2}. Raises UserError if it is not so."""
    try:
        pairs = [part.split("=") for part in text.split(",")]
        fractions = {name.strip(): float(share) for name, share in pairs}
    except ValueError:
        fractions = {}
    sound = fractions and all(share > 0 for share in fractions.values())
    if not sound or abs(sum(fractions.values()) - 1) > 1e-6 or len(fractions) != len(pairs):
        raise UserError(f"--splits={text!r}: give shares that sum to 1, as train=0.8,test=0.2")
    return fractions


def assign_splits(
    subjects: Sequence[str], labels: Sequence[str], fractions: Mapping[str, float], seed: int
) -> list[str]:
    """A split for each recording, by subject, with labels spread as evenly as subjects allow.

    Subjects are dealt into stratified groups of near equal size, and the groups to the splits.

    Args:
      subjects: of each recording.
      labels: of each recording.
      fractions: split -> share of the recordings; they sum to 1.
      seed: of the deal.

    Returns:
      The split of each recording. Each split has at least one subject.

    Raises:
      UserError: where there are fewer subjects than splits.
    """
    count = len(set(subjects))
    if count < len(fractions):
        raise UserError(
            f"--splits asks for {len(fractions)} splits of {count} subject(s); a subject is never "
            "divided: ask for fewer, or fill in the manifest's column 'subject'"
        )
    parts = min(_PARTS, count)
    subjects, labels = np.asarray(subjects), np.asarray(labels)
    folds = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
    # Its warning about rare labels says what 'as evenly as subjects allow' says.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        groups = [test for _, test in folds.split(labels, labels, subjects)]
    chosen = np.empty(len(subjects), dtype=object)
    # Each group goes to the split that lacks most of its share; the small splits come first.
    names = sorted(fractions, key=fractions.get)
    taken = dict.fromkeys(names, 0)
    for place, group in enumerate(sorted(groups, key=len, reverse=True)):
        empty = [name for name in names if not taken[name]]
        if parts - place <= len(empty):
            name = empty[0]
        else:
            name = max(names, key=lambda n: fractions[n] - taken[n] / len(subjects))
        taken[name] += len(group)
        chosen[group] = name
    return chosen.tolist()
