"""Leaves out the subjects of other manifests, to keep test subjects out of training."""

import os
from collections.abc import Sequence

from cryjax.command.errors import UserError
from cryjax.data import remarks
from cryjax.data.manifest import Columns, Row, read_manifest


def exclude(
    rows: list[Row], source: str, others: Sequence[str], columns: Columns
) -> tuple[list[Row], list[str]]:
    """Leaves out subjects.

    Args:
      rows: to choose from.
      source: what they were read from, for messages.
      others: manifests of the subjects to leave out.
      columns: of these manifests.

    Returns:
      The rows of all other subjects, and lines that say how many are gone, and of likely slips.

    Raises:
      UserError: for a manifest that cannot be read, or that has none of the subjects.
    """
    lines: list[str] = []
    gone: set[str] = set()
    named: set[str] = set()
    present = {row.subject_id for row in rows}
    for other in others:
        theirs = read_manifest(other, columns)
        files = {os.path.normpath(row.path): row.subject_id for row in theirs}
        # Excluding one file of a subject excludes the subject, whatever its name there.
        same = [
            (row.subject_id, files[file])
            for row in rows
            if (file := os.path.normpath(row.path)) in files
        ]
        who = set(files.values())
        found = who & present | {their for _, their in same}
        if not found:
            raise UserError(
                f"--exclude={other}: none of its subjects or files is in {source}; leave it out, "
                "or give both a column 'subject', spelt alike"
            )
        lines.append(f"{other}: {len(who - found)} of its {len(who)} subjects are not in {source}")
        gone |= who & present | {our for our, _ in same}
        named |= {row.subject for row in theirs if not row.alone}
    kept = [row for row in rows if row.subject_id not in gone]
    if gone:
        lines.append(
            f"left out {len(rows) - len(kept)} recordings of {len(gone)} excluded subjects"
        )
    return kept, lines + remarks.of_excluded({row.subject for row in kept if not row.alone}, named)
