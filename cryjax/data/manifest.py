"""Manifests: CSV files, one row per recording, read row by row in bounded memory."""

import csv
import dataclasses
import itertools
import os
import pathlib
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from typing import TextIO

from cryjax.command.errors import UserError
from cryjax.data.splits import SPLIT_NAMES, is_split_name

# Limits on what a file can make the reader hold: a row with all its columns, a value that is kept,
# and the number of rows, each of which takes about 250 bytes besides its name.
ROW_CHARACTERS = 1_000_000
VALUE_CHARACTERS = 4096  # the longest possible path
MAXIMUM_ROWS = 10_000_000
_KEPT = ("path", "label", "subject", "split")
_SPLITS = ("train", "validation", "test")  # that programs look for, in lower case
_ROOT = pathlib.Path("/")


@dataclasses.dataclass(frozen=True)
class Columns:
    """Column names of a manifest. All but `path` may be missing, unless given another name."""

    path: str = "path"
    label: str = "label"
    subject: str = "subject"
    split: str = "split"


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One recording of a manifest. There may be millions, so rows share equal values.

    Attributes:
      folder: the manifest's, absolute; the root for an absolute name.
      name: as in the manifest, without surrounding blanks.
      label: '' for none; several are separated by ';'.
      subject: the group that a split never divides; the name where the manifest gives no subject.
      split: '' for none.
      alone: whether the manifest gives no subject.
    """

    folder: pathlib.Path
    name: str
    label: str
    subject: str
    split: str
    alone: bool = False

    @property
    def path(self) -> pathlib.Path:
        """The absolute path."""
        return self.folder / self.name

    @property
    def subject_id(self) -> str:
        """Identifies the subject across manifests.

        Without a subject, the normalised path: 'a.wav' in another folder is another subject.
        """
        return os.path.normpath(self.path) if self.alone else self.subject


def _column(name: str) -> str:
    """Maps 'Subject ' to 'subject': if it were missed, splits would divide its subjects."""
    name = name.strip()
    return name.lower() if name.lower() in _KEPT else name


def _separator(header: str, path: str) -> str:
    """Finds the column separator: spreadsheets use ';' where the comma is the decimal sign.

    Args:
      header: the header line.
      path: the column to find in it.
    """
    start = header[:VALUE_CHARACTERS]  # all of it, if it is a real header
    for mark in ",;\t":
        if path in map(_column, next(csv.reader([start], delimiter=mark), [])):
            return mark
    return ","


def _lines(file: TextIO, path: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the non-blank rows of a CSV file, each with the number of its last line.

    Args:
      file: from its start.
      path: the column by which the separator is recognised.

    Raises:
      csv.Error: naming the line where a row starts that never ends (reading stops after
        `ROW_CHARACTERS`) or whose quotation marks do not match.
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
    header, before = next(lines, ""), 0
    if header.lower().startswith("sep="):  # a hint for Excel
        header, before = next(lines, ""), 1
    # Strict: else a stray quotation mark makes one value of all rows up to the next.
    rows = itertools.chain([header], lines)
    reader = csv.reader(rows, delimiter=_separator(header, path), strict=True)
    number = before
    try:
        for values in reader:
            taken, number = 0, before + reader.line_num
            if any(map(str.strip, values)):
                yield number, values
    except csv.Error as error:
        raise csv.Error(f"the row on line {number + 1}: {error}") from error


def read_manifest(path: str | pathlib.Path, columns: Columns = Columns()) -> list[Row]:
    """Reads a manifest.

    Args:
      path: of a UTF-8 CSV file, separated by commas or, if its header is, by ';' or tabs, with a
        column of paths (relative to the manifest, or absolute) and optional columns of labels,
        subjects and splits; other columns are ignored.
      columns: names of these columns.

    Raises:
      UserError: for a missing file, a missing or duplicate column, no rows, too many or too long
        rows, quotation marks that do not match, a row with more cells than the header, a control
        character, an empty or repeated path, or a subject in two splits.
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
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not a CSV file in UTF-8 ({error}); export it as CSV UTF-8"
        ) from error
    except csv.Error as error:
        raise UserError(
            f"{path}: {error}; check the quotation marks there, or export it as CSV UTF-8"
        ) from error


def _places(path: pathlib.Path, header: list[str], columns: Columns) -> list[int]:
    """Index of each column in a row; past the header's end if it is missing."""
    names = [_column(name) for name in header]
    found = ", ".join(names[:30])[:1000]
    for field, wanted in dataclasses.asdict(columns).items():
        count = names.count(wanted)
        if count > 1:
            raise UserError(f"{path}: {count} columns {wanted!r}; rename all but one")
        if not count and field == "path":
            raise UserError(
                f"{path}: no column {wanted!r} (found: {found}); add one, or name the column of "
                "files with --path_column"
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
        check.values(number, name, label, subject, split)
        # Stripped: 'bob ' and 'bob' are one subject. Each label once, or it would count as several.
        # Interned: many rows share values.
        labels = dict.fromkeys(filter(None, map(str.strip, label.split(";"))))
        row = Row(
            folder=_ROOT if name.startswith("/") else folder,
            name=name,
            label=sys.intern(";".join(labels)),
            subject=sys.intern(subject) or name,
            split=sys.intern(split.lower() if split.lower() in _SPLITS else split),
            alone=not subject,
        )
        check.row(number, row)
        rows.append(row)
    check.all(rows)
    return rows


def check_inside(rows: list[Row], manifest: str | pathlib.Path, allowed: Iterable[str]) -> None:
    """Rejects files outside the manifest's folder, links resolved: the manifest may be untrusted.

    Args:
      rows: its rows.
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
    """Checks a manifest's rows in order; raises UserError naming the line."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._folder = os.path.normpath(path.parent.absolute())
        self._seen: set[str] = set()
        self._split_of: dict[str, str] = {}
        self._split: bool | None = None  # whether rows have one

    def values(self, number: int, *values: str) -> None:
        for column, value in zip(_KEPT, values, strict=True):
            if len(value) > VALUE_CHARACTERS:
                raise UserError(
                    f"{self._path}: line {number} has a {column} of {len(value)} characters; "
                    f"shorten it to at most {VALUE_CHARACTERS}"
                )
            # A file may have any but NUL in its name; elsewhere they break tables and terminals.
            odd = "\0" in value or (column != "path" and "Cc" in map(unicodedata.category, value))
            if not value.isprintable() and odd:
                raise UserError(
                    f"{self._path}: line {number} has a control character in its {column}, such "
                    "as a tab or line break; delete it"
                )

    def cells(self, number: int, values: list[str], columns: int) -> None:
        """Rejects extra cells: an unquoted comma shifts the rest, so a name becomes a label."""
        if any(map(str.strip, values[columns:])):
            raise UserError(
                f"{self._path}: line {number} has {len(values)} cells and the header {columns}; "
                "put quotes around text that contains a separator"
            )

    def row(self, number: int, row: Row) -> None:
        path = self._path
        if not row.name:
            raise UserError(
                f"{path}: line {number} has an empty path; fill it in or delete the line"
            )
        # Not by Path, which is slower.
        file = os.path.normpath(os.path.join(row.folder, row.name))  # noqa: PTH118
        file = file.removeprefix(f"{self._folder}/")
        if file in self._seen:
            raise UserError(f"{path}: line {number} repeats {row.name!r}; keep one of the rows")
        if len(self._seen) >= MAXIMUM_ROWS:
            raise UserError(
                f"{path}: more than {MAXIMUM_ROWS} rows; split it into several manifests and "
                "datasets"
            )
        # The row's own string where equal: millions of copies would take much memory.
        self._seen.add(row.name if file == row.name else file)
        if row.split and not is_split_name(row.split):
            raise UserError(f"{path}: line {number} has the split {row.split!r}; use {SPLIT_NAMES}")
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
            raise UserError(f"{self._path}: no rows under the header; add one per recording")
