"""What may be wrong in a manifest or a dataset, and only its owner can tell."""

import collections
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cryjax.data.manifest import Row

_NO_LABELS = {"?", "-", "n/a", "na", "nan", "none", "null", "unknown", "unlabelled", "unlabeled"}


def _spelling(name: str) -> str:
    """The same of names that a reader would take for one: '007' and '7', 'Pain' and 'pain '."""
    plain = " ".join(re.split(r"[\s_-]+", unicodedata.normalize("NFKC", name).casefold()))
    return re.sub(r"(?<![0-9])0+(?=[0-9])", "", plain)


def alike(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that differ in capitals, blanks or leading zeros only, each sorted."""
    groups = collections.defaultdict(set)
    for name in dict.fromkeys(names):
        groups[_spelling(name)].add(name)
    return [sorted(group) for group in groups.values() if len(group) > 1]


def alike_subjects(rows: Iterable[Row]) -> list[list[str]]:
    """`alike` of the subjects of a manifest, which still have their names."""
    return alike(row.subject for row in rows if not row.alone)


def of_rows(rows: Sequence[Row], label_column: str) -> list[str]:
    """Of the rows of a manifest, whose subjects still have their names.

    Args:
      rows: all of them.
      label_column: that labels were taken from.
    """
    said = []
    if groups := alike_subjects(rows):
        named = "; ".join(", ".join(map(repr, group[:3])) for group in groups[:3])
        more = f"; and {len(groups) - 3} more" * (len(groups) > 3)
        said.append(
            "subjects that differ in capitals, blanks or leading zeros only, and count as several: "
            f"{named}{more}. If they are one, write them alike, or splits and folds divide them"
        )
    bare = sum(not row.label for row in rows)
    if bare == len(rows):
        said.append(
            "no recording has a label, which only pre-training can do without: --label_column=NAME "
            f"takes another column than {label_column!r}"
        )
    elif bare:
        said.append(f"{bare} of {len(rows)} recordings have no label")
    return said


def cautions(info: Mapping[str, Any]) -> list[str]:
    """Of a dataset: what a reader of any number by it should know.

    Args:
      info: of the dataset, of old ones too.
    """
    said = []
    if info.get("alone"):
        said.append(
            f"{info['alone']} recordings have no 'subject': each counts as a subject of its own, "
            "so whoever is in several may be both trained on and scored, and intervals are too "
            "narrow; give the column that says whose they are the name 'subject', or name it by "
            "--subject_column"
        )
    if info.get("alike"):
        said.append(
            f"{info['alike']} subjects may be two each, as their names differ in capitals, blanks "
            "or leading zeros only: who is one under two names may be both trained on and scored"
        )
    if low := info.get("low_rates"):
        used = sum(split["recordings"] for split in info["splits"].values())
        rates = ", ".join(f"{count} at {rate} Hz" for rate, count in low.items())
        said.append(
            f"{sum(low.values())} of {used} recordings were made at less than "
            f"{info['sample_rate']} Hz ({rates}): nothing is in the upper part of their spectra, "
            "and a classifier can hear that; where it goes with a label, numbers mean nothing: "
            f"--sample_rate={min(map(int, low))} makes all alike"
        )
    return said


def of_dataset(info: Mapping[str, Any]) -> list[str]:
    """Of a dataset: what is not in it, its cautions, and likely slips; arguments as `cautions`."""
    said = []
    if info["skipped"]:
        counted = [f"{count} x {reason}" for reason, count in info.get("reasons", {}).items()]
        why = f" ({'; '.join(counted[:4])}{'; ...' * (len(counted) > 4)})" if counted else ""
        said.append(f"skipped {info['skipped']} recordings{why}")
    if info.get("contradicting"):
        said.append(
            f"of these, {info['contradicting']} are the same audio under different labels or "
            "subjects, and none is used: mend the manifest, or leave out all but one of each"
        )
    said += cautions(info)
    counts: collections.Counter[str] = collections.Counter()
    for split in info["splits"].values():
        counts.update(split["labels"])
    for group in [] if info["synthetic"] else alike(counts):
        shown = ", ".join(f"{label!r} {counts[label]}" for label in group)
        said.append(f"labels that differ in capitals, blanks or leading zeros only: {shown}")
    empty = [label for label in counts if label.casefold() in _NO_LABELS]
    if empty:
        said.append(
            f"labels that say nothing: {', '.join(map(repr, sorted(empty)))}; each is a class like "
            "another: leave such cells empty"
        )
    # One among several is more often a typing mistake than a class. Where all are, they are texts.
    once = sorted(label for label, count in counts.items() if count == 1)
    if once and len(once) < len(counts) and not info["synthetic"]:
        named = ", ".join(map(repr, once[:5])) + (f" and {len(once) - 5} more" * (len(once) > 5))
        said.append(f"labels of one recording only: {named}; are they spelt as meant?")
    return said
