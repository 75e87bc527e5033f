"""Computes probabilities or embeddings of recordings, with a run or an export of one.

    python -m cryjax.predict --model=TUNED --out=predictions.csv RECORDING...
    python -m cryjax.predict --model=TUNED --out=predictions.jsonl --windows=windows.csv FOLDER
    python -m cryjax.predict --model=RUN --out=list.csv --embeddings=embeddings.npy 'cries/*.wav'
    cat cry.wav | python -m cryjax.predict --model=model.onnx --out=predictions.csv -

A recording is a file, '-' (standard input), a folder (all audio under it) or a pattern. It is read
block by block, so its length (up to 24 hours) does not matter, cut as in `prepare`, and scored by
the mean over its windows. An unusable one becomes a row with the reason, and the exit status is
then 1. Until all are scored, the rows are in NAME.partial.csv, where an interruption leaves them.

Probabilities apply if classes are as common as in training, where `finetune` balances them by
default (config.balance): if a class is rarer, its probabilities are too high. They are not a
patient's risk.
"""

import csv
import glob
import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags, logging

from cryjax import load
from cryjax.command import program, progress
from cryjax.command.errors import UserError
from cryjax.command.files import claim, complete, whole
from cryjax.data import decode
from cryjax.interop.model import Model
from cryjax.interop.scoring import Predictor, Score

PREVALENCE = (
    "probabilities apply if classes are as common as in training, where finetune balances them by "
    "default:\nif a class is rarer, its probabilities are too high. They are not a patient's risk"
)

# The first columns of --out and of --windows, and how rows of theirs begin in JSON.
_COLUMNS, _WINDOW_COLUMNS = ("recording", "seconds", "windows"), ("recording", "start", "end")
_OWN = (*(",".join(names).encode() for names in (_COLUMNS, _WINDOW_COLUMNS)), b'{"recording": ')

_MODEL = flags.DEFINE_string(
    "model", None, "A run's --workdir, or a .onnx file, .stablehlo file or folder of cryjax.export."
)
_OUT = flags.DEFINE_string("out", None, "File to write, .csv or .jsonl: one row per recording.")
_WINDOWS = flags.DEFINE_string(
    "windows", None, "File to write, .csv or .jsonl: one row per window of each recording."
)
_EMBEDDINGS = flags.DEFINE_string(
    "embeddings", None, "File to write, .npy: [usable recordings, features], in order."
)
_FIGURES = flags.DEFINE_string(
    "figures", None, "Folder for a figure of each recording: its spectrogram and its scores."
)
_UPSAMPLE = flags.DEFINE_bool(
    "upsample",
    False,
    "Score recordings below the model's rate too; higher frequencies are missing.",
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Windows per batch.", lower_bound=1)


def _matches(pattern: str) -> list[str]:
    """Files of a pattern, which may be absolute, unlike in pathlib's globs."""
    return sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207


def recordings(arguments: Sequence[str], folder: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    """What the arguments name: (name, file), sorted within a folder or pattern.

    Args:
      arguments: of the command line.
      folder: where standard input is saved.
    """
    found = []
    for argument in arguments:
        path = pathlib.Path(argument)
        if not argument:
            raise UserError("an empty recording: '' would be the current folder; give '.' for that")
        if argument == "-":
            if sys.stdin is None:
                raise UserError("'-' is standard input, which is closed")
            kept = folder / "standard-input"
            with kept.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
            found.append(("-", kept))
        elif os.path.isdir(path):  # noqa: PTH112 (a name may be too long for a file)
            audio = sorted(filter(decode.is_audio, path.rglob("*")))
            if not audio:
                raise UserError(f"{argument}: no audio files under it")
            found += [(str(p), p) for p in audio]
        elif not os.path.lexists(path) and (matches := _matches(argument)):
            found += [(match, pathlib.Path(match)) for match in matches]
        else:
            found.append((argument, path))
    return found


def partial(path: pathlib.Path) -> pathlib.Path:
    """Where an output is until it is complete: 'a.csv' -> 'a.partial.csv'."""
    return path.with_suffix(f".partial{path.suffix}")


class Table:
    """Writes rows to a .csv or .jsonl file, which gets its name when it is closed.

    Attributes:
      partial: where the rows are until then.
    """

    def __init__(self, path: pathlib.Path, columns: Sequence[str]):
        self._path, self.partial = path, partial(path)
        self._columns = columns
        try:
            # Rows are written one by one; names of recordings may contain bytes that are not text.
            self._file = claim(self.partial, buffering=1, errors="backslashreplace", newline="")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from error
        self._csv = csv.writer(self._file) if path.suffix == ".csv" else None
        if self._csv:
            self._csv.writerow(columns)

    def add(self, *values: Any) -> None:
        if self._csv:
            self._csv.writerow(["" if value is None else value for value in values])
        else:
            row = dict(zip(self._columns, values, strict=True))
            self._file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        complete(self._file, self._path)
        self._file.close()


def _numbers(values: np.ndarray) -> list[float]:
    """float32 as the shortest decimals that round-trip."""
    return [float(str(value)) for value in values.astype(np.float32)]


def check_replaceable(path: pathlib.Path) -> None:
    """Raises UserError if a table of somebody else's would be replaced."""
    if not path.is_file():
        return
    try:
        with path.open("rb") as file:
            begin = file.read(max(map(len, _OWN)))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give another") from error
    if begin and not begin.startswith(_OWN):
        raise UserError(f"{path}: exists, and is not from predict; give another, or delete it")


def check_places(out: str) -> None:
    """Checks the output paths and makes their folders. Raises UserError if unusable."""
    for file in filter(None, (out, _WINDOWS.value)):
        if pathlib.Path(file).suffix not in (".csv", ".jsonl"):
            raise UserError(f"{file}: name it .csv or .jsonl")
        for path in (pathlib.Path(file), partial(pathlib.Path(file))):
            check_replaceable(path)
    if _EMBEDDINGS.value and pathlib.Path(_EMBEDDINGS.value).suffix != ".npy":
        raise UserError(  # perhaps a recording, or the model, after a forgotten file name
            f"--embeddings={_EMBEDDINGS.value}: would be overwritten; name a file that ends in .npy"
        )
    given = [x for x in (out, _WINDOWS.value, _EMBEDDINGS.value, _FIGURES.value) if x]
    if len({pathlib.Path(x).absolute() for x in given}) < len(given):
        raise UserError("--out, --windows, --embeddings and --figures must be different paths")
    for file in given:  # before hours of scoring
        if file != _FIGURES.value and pathlib.Path(file).is_dir():
            raise UserError(f"{file}: is a folder; give a file in it")
        folder = pathlib.Path(file) if file == _FIGURES.value else pathlib.Path(file).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be made ({error.strerror})") from error
        if not os.access(folder, os.W_OK):
            raise UserError(f"{folder}: cannot be written to; give another folder")


class Outputs:
    """The files that the flags ask for.

    Attributes:
      scored: how many recordings could be used.
    """

    def __init__(self, model: Model):
        """Opens the tables."""
        chances = [f"p({label})" for label in model.labels]
        self._model = model
        self._table = Table(pathlib.Path(program.required(_OUT)), [*_COLUMNS, *chances, "error"])
        self._windows = (
            Table(pathlib.Path(_WINDOWS.value), [*_WINDOW_COLUMNS, *chances])
            if _WINDOWS.value
            else None
        )
        self._embeddings: list[np.ndarray] = []
        self._added = self.scored = 0

    def add(self, score: Score) -> None:
        """Adds a complete recording."""
        model, none = self._model, [None] * len(self._model.labels)
        self._added += 1
        seconds = round(score.samples / model.sample_rate, 3)
        if score.error:
            self._table.add(score.name, seconds, 0, *none, score.error)
            return
        self.scored += 1
        found = _numbers(score.mean("probabilities")) if model.labels else []
        self._table.add(score.name, seconds, score.windows, *found, "")
        if self._windows:
            write_windows(self._windows, score, model)
        if _EMBEDDINGS.value:
            self._embeddings.append(score.mean("embedding"))
        if _FIGURES.value:
            draw(score, model, pathlib.Path(_FIGURES.value), self._added)

    def _write_embeddings(self) -> pathlib.Path:
        """Writes [recordings, features] as .npy, under the name of what is incomplete."""
        none = np.zeros((0, self._model.description.features), np.float32)
        stacked = np.stack(self._embeddings) if self._embeddings else none
        path = partial(pathlib.Path(program.required(_EMBEDDINGS)))
        with whole(path, "wb") as file:
            np.save(file, stacked, allow_pickle=False)
        return path

    def close(self) -> None:
        """Gives the files their names."""
        self._table.close()
        if self._windows:
            self._windows.close()
        if _EMBEDDINGS.value:
            self._write_embeddings().replace(program.required(_EMBEDDINGS))

    def leave(self, total: int) -> None:
        """Keeps what there is, under the names of what is incomplete."""
        if _EMBEDDINGS.value:
            self._write_embeddings()
        logging.warning(
            "the first %d of %d recordings are in %s", self._added, total, self._table.partial
        )


def main(argv: list[str]) -> None:
    path, out = program.required(_MODEL), program.required(_OUT)
    check_places(out)
    if argv[1:].count("-") > 1:
        raise UserError("'-' is given more than once, but standard input is one recording")
    if not argv[1:]:
        raise UserError("no recordings; name files, folders or patterns after the flags, or '-'")
    model = load(path)
    if not model.labels and not (_EMBEDDINGS.value or _FIGURES.value):
        raise UserError(
            f"{path} has no classifier, so there are no probabilities; give --embeddings=FILE.npy"
        )
    with tempfile.TemporaryDirectory() as folder:
        named = recordings(argv[1:], pathlib.Path(folder))
        outputs = Outputs(model)
        predictor = Predictor(
            model, _BATCH_SIZE.value, upsample=_UPSAMPLE.value, spectra=bool(_FIGURES.value)
        )
        scores = predictor.scores(named)
        try:
            for score in progress.over(scores, "recording", len(named), unit="recordings"):
                outputs.add(score)
        except KeyboardInterrupt:
            outputs.leave(len(named))
            raise
        outputs.close()
    print(f"{out}: {outputs.scored} of {len(named)} recordings")
    if model.labels:
        print(PREVALENCE)
    if broken := len(named) - outputs.scored:
        print(f"predict: {broken} recordings cannot be used; see 'error' in {out}", file=sys.stderr)
        sys.exit(1)


def write_windows(table: Table, score: Score, model: Model) -> None:
    """Writes one row per window."""
    length = model.description.window_samples / model.sample_rate
    end = score.samples / model.sample_rate
    for place, start in enumerate(score.starts):
        found = _numbers(score.probabilities[place]) if model.labels else []
        table.add(score.name, round(start, 3), round(min(start + length, end), 3), *found)


def draw(score: Score, model: Model, folder: pathlib.Path, place: int) -> None:
    """Draws FOLDER/0001-NAME.png."""
    from cryjax.evaluation.figures.spectrograms import scores_figure

    folder.mkdir(parents=True, exist_ok=True)
    stem = "".join(c if c.isalnum() or c in "-_" else "_" for c in pathlib.Path(score.name).stem)
    scores_figure(
        folder / f"{place:04d}-{stem[:80] or 'recording'}.png",
        np.concatenate(score.spectrum),
        seconds=score.samples / model.sample_rate,
        centres=np.array(score.starts) + 0.5 * model.description.window_samples / model.sample_rate,
        scores=np.array(score.probabilities) if model.labels else None,
        labels=model.labels,
        highest_hz=model.description.front_end.highest_hz,
        title=pathlib.Path(score.name).name if score.name != "-" else "standard input",
        note="trained on synthetic data" if model.description.synthetic else "",
    )


if __name__ == "__main__":
    program.run(main, positional=True)
