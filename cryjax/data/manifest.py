"""Manifests: CSV files with one row a recording."""

import csv
import dataclasses
import os
import pathlib
from collections.abc import Iterable

from cryjax.command.errors import UserError
from cryjax.data.splits import SPLIT_NAMES, is_split_name


@dataclasses.dataclass(frozen=True)
class Row:
    """One recording of a manifest.

    Attributes:
      path: absolute.
      name: as the manifest has it.
      label: '' is none; several are separated by ';'.
      subject: the group that a split never divides; the name where the manifest has no subjects.
      split: '' is none.
    """

    path: pathlib.Path
    name: str
    label: str
    subject: str
    split: str


def _column(name: str) -> str:
    """'Subject ' is 'subject': a column that is missed would divide its subjects."""
    name = name.strip()
    return name.lower() if name.lower() in ("path", "label", "subject", "split") else name


def read_manifest(path: str | pathlib.Path, label_column: str = "label") -> list[Row]:
    """Reads a manifest.

    Args:
      path: of a CSV file in UTF-8 with a column `path` (relative to the manifest, or absolute) and,
        if wanted, `label`, `subject` and `split`; other columns are ignored.
      label_column: the column to take labels from.

    Raises:
      UserError: for a file or a column that is not there, no rows, an empty or repeated path, or a
        subject in two splits.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such manifest; give the path of a CSV file")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = [_column(name) for name in reader.fieldnames or []]
            reader.fieldnames = columns
            lines, numbers = [], []
            for line in reader:
                lines.append({k: v or "" for k, v in line.items() if k})
                numbers.append(reader.line_num)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8 ({error}); export it as CSV") from error
    if "path" not in columns:
        raise UserError(f"{path}: no column 'path' (found: {', '.join(columns)}); add one")
    if label_column != "label" and label_column not in columns:
        raise UserError(
            f"{path}: no column {label_column!r} for --label_column (found: {', '.join(columns)})"
        )
    rows = [
        Row(
            path=(path.parent / line["path"]).absolute(),
            name=line["path"],
            # Stripped: 'bob ' is no other subject than 'bob'.
            label=";".join(filter(None, map(str.strip, line.get(label_column, "").split(";")))),
            subject=line.get("subject", "").strip() or line["path"],
            split=line.get("split", "").strip(),
        )
        for line in lines
    ]
    _check(path, rows, numbers)
    return rows


def check_inside(rows: list[Row], manifest: str | pathlib.Path, allowed: Iterable[str]) -> None:
    """Refuses files outside the manifest's folder, links followed: a manifest may be another's.

    Args:
      rows: of it.
      manifest: its path.
      allowed: other folders that files may lie in.

    Raises:
      UserError: naming the first such file.
    """
    folders = [
        pathlib.Path(os.path.realpath(folder))
        for folder in (pathlib.Path(manifest).parent, *allowed)
    ]
    for row in rows:
        file = pathlib.Path(os.path.realpath(row.path))
        if not any(file.is_relative_to(folder) for folder in folders):
            raise UserError(
                f"{manifest}: {row.name!r} leads to {str(file.parent)!r}, outside the manifest's "
                f"folder; if that is meant, allow it with --allow_dir={file.parent}"
            )


def _check(path: pathlib.Path, rows: list[Row], numbers: list[int]) -> None:
    if not rows:
        raise UserError(f"{path}: no rows under the header; add one a recording")
    seen: set[str] = set()
    split_of: dict[str, str] = {}
    for number, row in zip(numbers, rows, strict=True):
        if not row.name:
            raise UserError(f"{path}: line {number} has an empty path; fill it in or delete it")
        file = os.path.normpath(row.path)
        if file in seen:
            raise UserError(f"{path}: line {number} repeats {row.name!r}; keep one of the rows")
        seen.add(file)
        if row.split and not is_split_name(row.split):
            raise UserError(
                f"{path}: line {number} has the split {row.split!r}; name it by {SPLIT_NAMES}"
            )
        split = split_of.setdefault(row.subject, row.split)
        if split != row.split:
            raise UserError(
                f"{path}: subject {row.subject!r} is in split {split!r} and, on line {number}, in "
                f"{row.split!r}; a subject belongs to one split"
            )
    if any(row.split for row in rows) and not all(row.split for row in rows):
        raise UserError(f"{path}: some rows have a split and some none; fill in all or none")
