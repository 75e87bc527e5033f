"""Finds copies of the same audio, which would count twice, or leak between splits.

The decoded audio is compared, sample for sample, so that copies in other lossless formats are found
too, under any name. Lossily compressed, trimmed or louder copies are not.
"""

import collections
from collections.abc import Iterable, Sequence

from cryjax.data.recording import Account


def _labels(recording: Account) -> frozenset[str]:
    return frozenset(filter(None, recording.label.split(";")))


def _contradiction(one: Account, other: Account) -> str:
    """How two recordings of the same audio contradict each other; '' if they do not."""
    ours, theirs = _labels(one), _labels(other)
    label = bool(ours and theirs) and ours != theirs
    subject = not (one.alone or other.alone) and one.subject != other.subject
    return " and ".join(["another label"] * label + ["another subject"] * subject)


def _reasons(copies: Sequence[Account]) -> tuple[dict[int, str], bool]:
    """number -> reason for copies that cannot be used, and whether copies contradict."""
    claims: dict[tuple, Account] = {}  # the first copy to make each, as copies may be many
    for one in copies:
        claims.setdefault((_labels(one), None if one.alone else one.subject), one)
    reasons = {}
    for one in copies:
        for other in claims.values():
            if how := _contradiction(one, other):
                reasons[one.number] = f"the same audio as recording {other.number}, with {how}"
                break
    if reasons:
        # Only their owner can tell which is right. Rejecting the dataset would waste hours of
        # decoding, and keeping the first would be a guess; so none is used, even without claims.
        rest = f"the same audio as recording {next(iter(reasons))}, which others contradict"
        return {one.number: reasons.get(one.number, rest) for one in copies}, True
    # Keep the most informative copy: subject first, as it keeps test subjects out of training.
    kept = max(copies, key=lambda one: (not one.alone, bool(one.label), -one.number))
    reason = f"the same audio as recording {kept.number}"
    return {one.number: reason for one in copies if one is not kept}, False


def find(recordings: Iterable[Account]) -> tuple[dict[int, str], int]:
    """Finds recordings to leave out as copies of others.

    Args:
      recordings: in order.

    Returns:
      number -> reason; and how many of these are in groups with contradicting labels or subjects.
      A missing label or subject contradicts none.
    """
    first: dict[str, Account] = {}
    groups: dict[str, list[Account]] = collections.defaultdict(list)
    for recording in recordings:
        if recording.digest and first.setdefault(recording.digest, recording) is not recording:
            groups[recording.digest].append(recording)
    reasons: dict[int, str] = {}
    contradicting = 0
    for key, others in groups.items():
        of_these, contradict = _reasons([first[key], *others])
        contradicting += len(of_these) * contradict
        reasons |= of_these
    return reasons, contradicting
