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
_SPLITS = ("train", "validation", "test")  # that programs look for, in this case
_ROOT = pathlib.Path("/")


@dataclasses.dataclass(frozen=True)
class Columns:
    """What the columns of a manifest are called. Each but `path` may be missing by its own name."""

    path: str = "path"
    label: str = "label"
    subject: str = "subject"
    split: str = "split"


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One recording of a manifest. There may be millions: what rows share, they share.

    Attributes:
      folder: absolute, the manifest's; the root for an absolute name.
      name: as the manifest has it, without blanks around.
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


def _separator(header: str, path: str) -> str:
    """What divides columns: spreadsheets take ';' where the comma is the decimal sign.

    Args:
      header: the line.
      path: the column to be found in it.
    """
    start = header[:VALUE_CHARACTERS]  # all of it, but for one that nobody wrote
    for mark in ",;\t":
        if path in map(_column, next(csv.reader([start], delimiter=mark), [])):
            return mark
    return ","


def _lines(file: TextIO, path: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file but for blank ones, each with the line that it ends on.

    Args:
      file: from its start.
      path: the column by which it is known what divides columns.

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
    reader = csv.reader(itertools.chain([header], lines), delimiter=_separator(header, path))
    for values in reader:
        taken = 0
        if any(map(str.strip, values)):
            yield reader.line_num, values


def read_manifest(path: str | pathlib.Path, columns: Columns = Columns()) -> list[Row]:
    """Reads a manifest.

    Args:
      path: of a CSV file in UTF-8, divided by commas or, as its header is, by ';' or tabs, with a
        column of paths (relative to the manifest, or absolute) and, if wanted, of labels, subjects
        and splits; other columns are ignored.
      columns: what these are called.

    Raises:
      UserError: for a file or a column that is not there, one that is there twice, no rows, more or
        longer ones than a manifest may have or than its header, an empty or repeated path, or a
        subject in two splits.
    """
    columns = Columns(*map(_column, dataclasses.astuple(columns)))
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such manifest; give the path of a CSV file")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _read(path, _lines(file, columns.path), columns)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path}: not a CSV file in UTF-8 ({error}); export it as CSV UTF-8"
        ) from error


def _places(path: pathlib.Path, header: list[str], columns: Columns) -> list[int]:
    """Where in a row each of the columns is; behind its end where it is missing."""
    names = [_column(name) for name in header]
    found = ", ".join(names[:30])[:1000]
    for field, wanted in dataclasses.asdict(columns).items():
        count = names.count(wanted)
        if count > 1:
            raise UserError(f"{path}: {count} columns {wanted!r}; rename all but one")
        if not count and field == "path":
            raise UserError(
                f"{path}: no column {wanted!r} (found: {found}); add one, or name that of files by "
                "--path_column"
            )
        if not count and field != wanted:
            raise UserError(f"{path}: no column {wanted!r} for --{field}_column (found: {found})")
    wanted = dataclasses.astuple(columns)
    return [names.index(name) if name in names else len(names) for name in wanted]


def _read(
    path: pathlib.Path, lines: Iterator[tuple[int, list[str]]], columns: Columns
) -> list[Row]:
    header = next(lines, (0, []))[1]
    places = _places(path, header, columns)
    folder, rows, check = path.parent.absolute(), [], _Check(path)
    for number, values in lines:
        check.cells(number, values, len(header))
        # A row may be short, and a column missing.
        values += [""] * (len(header) + 1 - len(values))
        name, label, subject, split = (values[place].strip() for place in places)
        check.lengths(number, name, label, subject, split)
        # Stripped: 'bob ' is no other subject than 'bob'. Interned: many rows have the same.
        row = Row(
            folder=_ROOT if name.startswith("/") else folder,
            name=name,
            label=sys.intern(";".join(filter(None, map(str.strip, label.split(";"))))),
            subject=sys.intern(subject) or name,
            split=sys.intern(split.lower() if split.lower() in _SPLITS else split),
            alone=not subject,
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
        self._split: bool | None = None  # whether rows have one

    def lengths(self, number: int, *values: str) -> None:
        for column, value in zip(_KEPT, values, strict=True):
            if len(value) > VALUE_CHARACTERS:
                raise UserError(
                    f"{self._path}: line {number} has a {column} of {len(value)} characters; "
                    f"shorten it to {VALUE_CHARACTERS} at most"
                )

    def cells(self, number: int, values: list[str], columns: int) -> None:
        """A comma in a text without quotes shifts what follows: a name would be a label."""
        if any(map(str.strip, values[columns:])):
            raise UserError(
                f"{self._path}: line {number} has {len(values)} cells and the header {columns}; "
                "put quotes around the text that has a separator in it"
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
        if self._split is None:
            self._split = bool(row.split)
        if self._split != bool(row.split):
            raise UserError(
                f"{path}: line {number} has {'a' if row.split else 'no'} split, unlike the lines "
                "above; fill in all or none"
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
        if not rows:
            raise UserError(f"{self._path}: no rows under the header; add one a recording")
