"""The same audio twice: a copy would count double, and between splits it would leak.

What is compared is the decoded audio, sample by sample, so that a copy in another lossless file is
found too, under whatever name. What was compressed with loss, trimmed or made louder is not.
"""

import collections
from collections.abc import Iterable, Sequence

from cryjax.data.recording import Account


def _labels(recording: Account) -> frozenset[str]:
    return frozenset(filter(None, recording.label.split(";")))


def _contradiction(one: Account, other: Account) -> str:
    """In what two recordings of the same audio cannot both be right; '' if they can."""
    ours, theirs = _labels(one), _labels(other)
    label = bool(ours and theirs) and ours != theirs
    subject = not (one.alone or other.alone) and one.subject != other.subject
    return " and ".join(["another label"] * label + ["another subject"] * subject)


def _reasons(copies: Sequence[Account]) -> tuple[dict[int, str], bool]:
    """number -> reason, of those that cannot be used; and whether they contradict each other."""
    claims: dict[tuple, Account] = {}  # the first to make each, as there may be very many copies
    for one in copies:
        claims.setdefault((_labels(one), None if one.alone else one.subject), one)
    said = {}
    for one in copies:
        for other in claims.values():
            if how := _contradiction(one, other):
                said[one.number] = f"the same audio as recording {other.number}, with {how}"
                break
    if said:
        # Which is right only their owner can tell. Refusing the dataset would throw away hours of
        # decoding, and keeping the first would guess; so none is used, nor one that claims nothing.
        rest = f"the same audio as recording {next(iter(said))}, which others contradict"
        return {one.number: said.get(one.number, rest) for one in copies}, True
    # The one that tells the most: a subject first, by which test subjects are kept out of training.
    kept = max(copies, key=lambda one: (not one.alone, bool(one.label), -one.number))
    reason = f"the same audio as recording {kept.number}"
    return {one.number: reason for one in copies if one is not kept}, False


def find(recordings: Iterable[Account]) -> tuple[dict[int, str], int]:
    """Recordings that are left out as copies of others.

    Args:
      recordings: in order.

    Returns:
      number -> reason; and how many of them contradict each other in label or subject. A copy
      without a label, or of nobody knows whom, contradicts none.
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
