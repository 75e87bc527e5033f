"""Possible errors in a manifest or dataset that only its owner can judge."""

import collections
import contextlib
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from cryjax.data.manifest import Row

# What people, spreadsheets and programs write for nothing; as a label or subject, a mistake.
_NO_LABELS = {
    "?", "-", "n/a", "na", "nan", "none", "null", "unknown", "unlabelled", "unlabeled",
    "#n/a", "#ref!", "#value!", "#name?",
}  # fmt: skip
_OTHER_SPLITS = {"val", "valid", "dev", "testing", "training", "eval"}  # no program reads these
# A long number as a spreadsheet shows it, such as 4.91757E+12; '3E7' may be a real name.
_SHORTENED = re.compile(r"\d([.,]\d+E\+?|E\+)\d+", re.IGNORECASE)
_SPELLING = "capitals, blanks, invisible characters, hyphens, leading zeros or a trailing '.0'"


def _spelling(name: str) -> str:
    """A key shared by names that read as one: '007', '7' and '7.0', 'Pain' and 'pain '."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    if not plain.isprintable():  # rare, and slow to remove: such as zero-width spaces
        plain = "".join(c for c in plain if unicodedata.category(c) != "Cf")
    plain = re.sub(r"[\s_-]+", " ", plain).strip()
    plain = re.sub(r"(?<![0-9.,])0+(?=[0-9])", "", plain)
    return re.sub(r"^([0-9]+)[.,]0+$", r"\1", plain)


def alike(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that differ in spelling only, each sorted.

    Spelling means capitals, blanks, invisible characters, hyphens, underscores, leading zeros or,
    of a number, a trailing '.0'. There may be millions of names, so most of them take only one
    entry in a table.
    """
    first: dict[str, str] = {}
    groups: dict[str, set[str]] = {}
    before = None
    for name in names:
        if name == before:  # rows of a subject are often adjacent
            continue
        before, key = name, _spelling(name)
        # The name's own string where equal: millions of copies would take much memory.
        known = first.setdefault(name if key == name else key, name)
        if known != name:
            groups.setdefault(key, {known}).add(name)
    return [sorted(group) for group in groups.values()]


def _shown(groups: Sequence[Sequence[str]]) -> str:
    named = "; ".join(", ".join(map(repr, group[:3])) for group in groups[:3])
    return named + f"; and {len(groups) - 3} more" * (len(groups) > 3)


def of_excluded(kept: Collection[str], excluded: Collection[str]) -> list[str]:
    """Remarks on subjects that may have been kept only because they are spelt differently.

    Args:
      kept: names of those kept.
      excluded: names of those to exclude.
    """
    groups = [
        group
        for group in (alike([*kept, *excluded]) if excluded else [])
        if any(name in kept for name in group) and any(name in excluded for name in group)
    ]
    if not groups:
        return []
    return [
        f"subjects that are kept, and differ from excluded ones only in {_SPELLING}: "
        f"{_shown(groups)}. If they are the same, spell them alike, or --exclude does not leave "
        "them out"
    ]


def of_rows(rows: Sequence[Row], subjects: Sequence[Sequence[str]], label_column: str) -> list[str]:
    """Remarks on the rows of a manifest, before subjects are renamed.

    Args:
      rows: all of them.
      subjects: groups from `alike`.
      label_column: that labels were read from.
    """
    remarks = []
    if subjects:
        remarks.append(
            f"subjects that differ only in {_SPELLING}, and count as several: {_shown(subjects)}. "
            "If they are the same, spell them alike, or splits and folds divide them"
        )
    counts = collections.Counter(row.subject for row in rows if not row.alone)
    for subject in sorted(name for name in counts if name.casefold() in _NO_LABELS):
        remarks.append(
            f"{counts[subject]} recordings of the subject {subject!r} count as one person: leave "
            "the cell empty if unknown"
        )
    if short := sorted(filter(_SHORTENED.fullmatch, counts)):
        more = f" and {len(short) - 3} more" * (len(short) > 3)
        remarks.append(
            f"subjects that a spreadsheet shortened: {', '.join(map(repr, short[:3]))}{more}, so "
            "several may count as one: format the column as text, and export it again"
        )
    bare = sum(not row.label for row in rows)
    if bare == len(rows):
        remarks.append(
            "no recording has a label, and only pre-training works without: --label_column=NAME "
            f"reads a column other than {label_column!r}"
        )
    elif bare:
        remarks.append(f"{bare} of {len(rows)} recordings have no label")
    return remarks


def of_missing(rows: Iterable[Row]) -> str:
    """The first missing file, to add to an error, and the one that may be meant; '' for none."""
    path = next((row.path for row in rows if not os.path.isfile(row.path)), None)  # noqa: PTH113
    if path is None:
        return ""
    remark = f"; the first missing file is {str(path)!r}"
    wanted = unicodedata.normalize("NFC", path.name)
    with contextlib.suppress(OSError, ValueError):  # no such folder, or no possible one
        for entry in sorted(path.parent.iterdir()):
            name = unicodedata.normalize("NFC", entry.name)
            if name.casefold() == wanted.casefold() and entry.is_file():
                form = ", in another Unicode form" * (name == wanted)
                return f"{remark}; there is {entry.name!r}{form}"
    return remark


def of_splits(names: Iterable[str]) -> list[str]:
    """Remarks on names of splits, which programs ignore unless they know them."""
    return [
        f"split {name!r}: programs look for 'train', 'validation' and 'test'"
        for name in sorted(names)
        if name.casefold() in _OTHER_SPLITS
    ]


def cautions(info: Mapping[str, Any]) -> list[str]:
    """What to know about a dataset when reading any result on it.

    Args:
      info: of the dataset, possibly an old one.
    """
    remarks = []
    if info.get("alone"):
        remarks.append(
            f"recordings without a 'subject': {info['alone']}; each counts as a subject of its "
            "own, so a person in several may be both trained on and scored, and intervals are "
            "too narrow; in a manifest, rename the column of subjects to 'subject', or name it "
            "with --subject_column"
        )
    if info.get("alike"):
        remarks.append(
            f"subjects whose names differ from another's only in {_SPELLING}: {info['alike']}; a "
            "person under two names may be both trained on and scored"
        )
    if low := info.get("low_rates"):
        used = sum(split["recordings"] for split in info["splits"].values())
        rates = ", ".join(f"{count} at {rate} Hz" for rate, count in low.items())
        remarks.append(
            f"{sum(low.values())} of {used} recordings were made at less than "
            f"{info['sample_rate']} Hz ({rates}): the upper part of their spectra is empty, "
            "and a classifier can detect that; where it correlates with a label, numbers mean "
            f"nothing: --sample_rate={min(map(int, low))} makes all alike"
        )
    return remarks


def of_dataset(info: Mapping[str, Any]) -> list[str]:
    """What a dataset leaves out, its cautions, and likely slips; arguments as in `cautions`."""
    remarks = []
    if info["skipped"]:
        counted = [f"{count} x {reason}" for reason, count in info.get("reasons", {}).items()]
        why = f" ({'; '.join(counted[:4])}{'; ...' * (len(counted) > 4)})" if counted else ""
        remarks.append(f"skipped {info['skipped']} recordings{why}")
    if info.get("contradicting"):
        remarks.append(
            f"of these, {info['contradicting']} are the same audio under different labels or "
            "subjects, and none is used: correct the manifest, or keep only one of each"
        )
    remarks += cautions(info)
    counts: collections.Counter[str] = collections.Counter()
    for split in info["splits"].values():
        counts.update(split["labels"])
    for group in [] if info["synthetic"] else alike(counts):
        shown = ", ".join(f"{label!r} {counts[label]}" for label in group)
        remarks.append(f"labels that differ only in {_SPELLING}: {shown}")
    empty = [label for label in counts if label.casefold() in _NO_LABELS]
    if empty:
        remarks.append(
            f"labels that say nothing: {', '.join(map(repr, sorted(empty)))}; each counts as a "
            "class: leave such cells empty"
        )
    # A label used once is more often a typo than a class. If all are, they are free text.
    once = sorted(label for label, count in counts.items() if count == 1)
    if once and len(once) < len(counts) and not info["synthetic"]:
        named = ", ".join(map(repr, once[:5])) + (f" and {len(once) - 5} more" * (len(once) > 5))
        remarks.append(f"labels of only one recording: {named}; are they spelt as intended?")
    return remarks
