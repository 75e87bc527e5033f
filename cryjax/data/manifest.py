"""Manifests: CSV files with one row a recording, read row by row in bounded memory."""

import csv
import dataclasses
import itertools
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator
from typing import TextIO

from cryjax.command.errors import UserError
from cryjax.data.splits import SPLIT_NAMES, is_split_name

# What a file may make a reader hold: a row with all its columns, a value that is kept, and rows,
# of which each takes some 250 bytes beside its name.
ROW_CHARACTERS = 1_000_000
VALUE_CHARACTERS = 4096  # as long as a path can be
MAXIMUM_ROWS = 10_000_000
_KEPT = ("path", "label", "subject", "split")
_ROOT = pathlib.Path("/")


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One recording of a manifest. There may be millions: what rows share, they share.

    Attributes:
      folder: absolute, the manifest's; the root for an absolute name.
      name: as the manifest has it.
      label: '' is none; several are separated by ';'.
      subject: the group that a split never divides; the name where the manifest has no subjects.
      split: '' is none.
      alone: whether the manifest does not say whose it is.
    """

    folder: pathlib.Path
    name: str
    label: str
    subject: str
    split: str
    alone: bool = False

    @property
    def path(self) -> pathlib.Path:
        """Absolute."""
        return self.folder / self.name

    @property
    def subject_id(self) -> str:
        """By which subjects are told apart in all manifests.

        Where nobody said whose a recording is, its file: 'a.wav' of another folder is another's.
        """
        return os.path.normpath(self.path) if self.alone else self.subject


def _column(name: str) -> str:
    """'Subject ' is 'subject': a column that is missed would divide its subjects."""
    name = name.strip()
    return name.lower() if name.lower() in _KEPT else name


def _separator(header: str) -> str:
    """What divides columns: spreadsheets take ';' where the comma is the decimal sign."""
    start = header[:VALUE_CHARACTERS]  # all of it, but for one that nobody wrote
    for mark in ",;\t":
        if "path" in map(_column, next(csv.reader([start], delimiter=mark), [])):
            return mark
    return ","


def _lines(file: TextIO) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file but for blank ones, each with the line that it ends on.

    Raises:
      csv.Error: for one that has no end; no more of it is read than a row may have.
    """
    taken = 0

    def text() -> Iterator[str]:
        nonlocal taken
        while line := file.readline(ROW_CHARACTERS + 1):
            taken += len(line)
            if taken > ROW_CHARACTERS:
                raise csv.Error(f"a row of more than {ROW_CHARACTERS} characters")
            yield line

    lines = text()
    header = next(lines, "")
    if header.lower().startswith("sep="):  # Excel's word to itself
        header = next(lines, "")
    reader = csv.reader(itertools.chain([header], lines), delimiter=_separator(header))
    for values in reader:
        taken = 0
        if values:
            yield reader.line_num, values


def read_manifest(path: str | pathlib.Path, label_column: str = "label") -> list[Row]:
    """Reads a manifest.

    Args:
      path: of a CSV file in UTF-8, divided by commas or, as its header is, by ';' or tabs, with a
        column `path` (relative to the manifest, or absolute) and, if wanted, `label`, `subject`
        and `split`; other columns are ignored.
      label_column: the column to take labels from.

    Raises:
      UserError: for a file or a column that is not there, no rows, more or longer ones than a
        manifest may have, an empty or repeated path, or a subject in two splits.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such manifest; give the path of a CSV file")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _read(path, _lines(file), label_column)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path}: not a CSV file in UTF-8 ({error}); export it as CSV UTF-8"
        ) from error


def _read(
    path: pathlib.Path, lines: Iterator[tuple[int, list[str]]], label_column: str
) -> list[Row]:
    columns = [_column(name) for name in next(lines, (0, []))[1]]
    found = ", ".join(columns[:30])[:1000]
    if "path" not in columns:
        raise UserError(
            f"{path}: no column 'path' (found: {found}); add one, or name the column of files so"
        )
    if label_column != "label" and label_column not in columns:
        raise UserError(f"{path}: no column {label_column!r} for --label_column (found: {found})")
    folder, rows, check = path.parent.absolute(), [], _Check(path)
    for number, values in lines:
        line = dict(zip(columns, values, strict=False))
        name, label, subject, split = (
            line.get(column, "") for column in ("path", label_column, "subject", "split")
        )
        check.lengths(number, name, label, subject, split)
        # Stripped: 'bob ' is no other subject than 'bob'. Interned: many rows have the same.
        row = Row(
            folder=_ROOT if name.startswith("/") else folder,
            name=name,
            label=sys.intern(";".join(filter(None, map(str.strip, label.split(";"))))),
            subject=sys.intern(subject.strip()) or name,
            split=sys.intern(split.strip()),
            alone=not subject.strip(),
        )
        check.row(number, row)
        rows.append(row)
    check.all(rows)
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
        for folder in (str(pathlib.Path(manifest).parent), *allowed)
    ]
    for row in rows:
        file = pathlib.Path(os.path.realpath(row.path))
        if not any(file.is_relative_to(folder) for folder in folders):
            raise UserError(
                f"{manifest}: {row.name!r} leads to {str(file.parent)!r}, outside the manifest's "
                f"folder; if that is meant, allow it with --allow_dir={file.parent}"
            )


class _Check:
    """Of a manifest's rows, in order. Raises UserError, naming the line."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._folder = os.path.normpath(path.parent.absolute())
        self._seen: set[str] = set()
        self._split_of: dict[str, str] = {}

    def lengths(self, number: int, *values: str) -> None:
        for column, value in zip(_KEPT, values, strict=True):
            if len(value) > VALUE_CHARACTERS:
                raise UserError(
                    f"{self._path}: line {number} has a {column} of {len(value)} characters; "
                    f"shorten it to {VALUE_CHARACTERS} at most"
                )

    def row(self, number: int, row: Row) -> None:
        path = self._path
        if not row.name:
            raise UserError(f"{path}: line {number} has an empty path; fill it in or delete it")
        # Not by Path, which takes longer.
        file = os.path.normpath(os.path.join(row.folder, row.name))  # noqa: PTH118
        file = file.removeprefix(f"{self._folder}/")
        if file in self._seen:
            raise UserError(f"{path}: line {number} repeats {row.name!r}; keep one of the rows")
        if len(self._seen) >= MAXIMUM_ROWS:
            raise UserError(
                f"{path}: more than {MAXIMUM_ROWS} rows; make several manifests of it, and datasets"
            )
        # The row's own text where it is the same: millions of others would take much memory.
        self._seen.add(row.name if file == row.name else file)
        if row.split and not is_split_name(row.split):
            raise UserError(
                f"{path}: line {number} has the split {row.split!r}; name it by {SPLIT_NAMES}"
            )
        if row.alone:
            return
        split = self._split_of.setdefault(row.subject, row.split)
        if split != row.split:
            raise UserError(
                f"{path}: subject {row.subject!r} is in split {split!r} and, on line {number}, in "
                f"{row.split!r}; a subject belongs to one split"
            )

    def all(self, rows: list[Row]) -> None:
        path = self._path
        if not rows:
            raise UserError(f"{path}: no rows under the header; add one a recording")
        if any(row.split for row in rows) and not all(row.split for row in rows):
            raise UserError(f"{path}: some rows have a split and some none; fill in all or none")
