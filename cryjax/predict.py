"""Computes probabilities or embeddings of recordings, with a run or an export of one.

    python -m cryjax.predict --model=TUNED --out=predictions.csv RECORDING...
    python -m cryjax.predict --model=TUNED --out=predictions.jsonl --windows=windows.csv FOLDER
    python -m cryjax.predict --model=RUN --out=list.csv --embeddings=embeddings.npy 'cries/*.wav'
    cat cry.wav | python -m cryjax.predict --model=model.onnx --out=predictions.csv -

A recording is a file, '-' (standard input), a folder (all audio under it) or a pattern. It is read
block by block, so its length (up to 24 hours) does not matter, cut as in `prepare`, and scored by
the mean over its windows. An unusable one becomes a row with the reason, and the exit status is
then 1.

Probabilities apply if classes are as common as in training, where `finetune` balances them by
default (config.balance): if a class is rarer, its probabilities are too high. They are not a
patient's risk.
"""

import collections
import contextlib
import csv
import dataclasses
import glob
import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags

from cryjax import load
from cryjax.command import program, progress
from cryjax.command.errors import UserError
from cryjax.command.files import whole
from cryjax.data import cutting, decode, guard
from cryjax.interop.model import Model

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


@dataclasses.dataclass
class Score:
    """What is known about a recording so far.

    Attributes:
      name: as it was given.
      windows: how many were cut from it.
      starts: in seconds, of the windows that have outputs.
      probabilities: of those, [classes] each.
      totals: sums over those, {output name: float64 [n]}.
      samples: how many were decoded.
      error: why it cannot be used; '' if it can.
      read: whether its end was reached.
      spectrum: log-mel columns, [frames, mels] each, if a figure is wanted.
    """

    name: str
    windows: int = 0
    starts: list[float] = dataclasses.field(default_factory=list)
    probabilities: list[np.ndarray] = dataclasses.field(default_factory=list)
    totals: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    samples: int = 0
    error: str = ""
    read: bool = False
    spectrum: list[np.ndarray] = dataclasses.field(default_factory=list)

    @property
    def complete(self) -> bool:
        return self.read and len(self.starts) == self.windows

    def add(self, start: float, outputs: dict[str, np.ndarray]) -> None:
        """Adds a window; only the sum of embeddings is kept, as a recording may be long."""
        self.starts.append(start)
        for name, values in outputs.items():
            self.totals[name] = self.totals.get(name, 0.0) + values.astype(np.float64)
        if "probabilities" in outputs:
            self.probabilities.append(outputs["probabilities"])

    def mean(self, output: str) -> np.ndarray:
        return (self.totals[output] / len(self.starts)).astype(np.float32)


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
        if argument == "-":
            kept = folder / "standard-input"
            with kept.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
            found.append(("-", kept))
        elif path.is_dir():
            audio = sorted(filter(decode.is_audio, path.rglob("*")))
            if not audio:
                raise UserError(f"{argument}: no audio files under it")
            found += [(str(p), p) for p in audio]
        elif not path.exists() and (matches := _matches(argument)):
            found += [(match, pathlib.Path(match)) for match in matches]
        else:
            found.append((argument, path))
    return found


class Table:
    """Writes rows to a .csv or .jsonl file."""

    def __init__(self, files: contextlib.ExitStack, path: pathlib.Path, columns: Sequence[str]):
        """Opens a file, which gets its name, with all rows, when `files` closes."""
        self._columns = columns
        # Names of recordings may contain bytes that are not text.
        how = {"errors": "backslashreplace", "newline": ""}
        self._file = files.enter_context(whole(path, **how))
        self._csv = csv.writer(self._file) if path.suffix == ".csv" else None
        if self._csv:
            self._csv.writerow(columns)

    def add(self, *values: Any) -> None:
        if self._csv:
            self._csv.writerow(["" if value is None else value for value in values])
        else:
            row = dict(zip(self._columns, values, strict=True))
            self._file.write(json.dumps(row) + "\n")


def _numbers(values: np.ndarray) -> list[float]:
    """float32 as the shortest decimals that round-trip."""
    return [float(str(value)) for value in values.astype(np.float32)]


class Predictor:
    """Scores recordings one after another, batching windows across them."""

    def __init__(self, model: Model, batch_size: int, *, upsample: bool, spectra: bool):
        self._model = model
        self._batch_size = batch_size
        self._upsample = upsample
        self._spectra = spectra
        self._decoder = guard.Decoder()
        self._pending: list[tuple[Score, float, np.ndarray]] = []

    def _segments(self, path: pathlib.Path, score: Score) -> Iterator[np.ndarray]:
        rate = self._model.sample_rate
        lowest = 0 if self._upsample else rate

        def blocks() -> Iterator[np.ndarray]:
            for block in self._decoder.stream(path, rate, lowest_rate=lowest):
                score.samples += len(block)
                yield block

        seconds = self._model.description.segment_seconds
        shortest = round(cutting.SHORTEST_TAIL_SECONDS * rate)
        return cutting.segments(blocks(), round(seconds * rate), shortest)

    def scores(self, named: Sequence[tuple[str, pathlib.Path]]) -> Iterator[Score]:
        """Yields each recording's score, in order, as soon as it is complete."""
        rate, samples = self._model.sample_rate, self._model.description.window_samples
        waiting: collections.deque[Score] = collections.deque()
        for name, path in named:
            score, place = Score(name), 0
            waiting.append(score)
            try:
                for segment in self._segments(path, score):
                    starts = place + cutting.window_starts(len(segment), samples)
                    place += len(segment)
                    if self._spectra:
                        score.spectrum.append(spectrum(segment, self._model))
                    windows = cutting.windows(segment, samples)
                    score.windows += len(windows)
                    for start, window in zip(starts, windows, strict=True):
                        self._pending.append((score, start / rate, window))
                        if len(self._pending) == self._batch_size:
                            self._run()
            except decode.Unusable as error:
                score.error = str(error)
            score.read = True
            while waiting and waiting[0].complete:
                yield waiting.popleft()
        self._decoder.close()
        self._run()
        yield from waiting

    def _run(self) -> None:
        if not self._pending:
            return
        windows = np.stack([window for _, _, window in self._pending])
        found = self._model.outputs(windows, self._batch_size)
        for row, (score, start, _) in enumerate(self._pending):
            score.add(start, {name: values[row] for name, values in found.items()})
        self._pending = []


def spectrum(segment: np.ndarray, model: Model) -> np.ndarray:
    """Log-mel columns of a segment for a figure, float16 [columns, mels], about 50 per second."""
    import jax.numpy as jnp

    from cryjax.audio import frontend

    settings = model.description.front_end
    full = round(model.description.segment_seconds * settings.sample_rate)
    padded = np.zeros(full, np.int16)  # of one length, so that it compiles only once
    padded[: len(segment)] = segment
    power = np.asarray(frontend.mel_power(jnp.asarray(padded[None]), settings))[0]
    step = max(1, round(0.02 / settings.hop_seconds))
    power = power[: settings.frames(len(segment))]
    starts = np.arange(0, len(power), step)
    loudest = np.maximum(np.maximum.reduceat(power, starts), frontend.LEAST_POWER)
    return (10 * np.log10(loudest)).astype(np.float16)


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
        check_replaceable(pathlib.Path(file))
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
    chances = [f"p({label})" for label in model.labels]
    columns = [*_COLUMNS, *chances, "error"]
    rate, none = model.sample_rate, [None] * len(chances)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as files:
        named = recordings(argv[1:], pathlib.Path(folder))
        table = Table(files, pathlib.Path(out), columns)
        each = (
            Table(files, pathlib.Path(_WINDOWS.value), [*_WINDOW_COLUMNS, *chances])
            if _WINDOWS.value
            else None
        )
        predictor = Predictor(
            model, _BATCH_SIZE.value, upsample=_UPSAMPLE.value, spectra=bool(_FIGURES.value)
        )
        embeddings, broken = [], 0
        shown = progress.over(predictor.scores(named), "recording", len(named), unit="recordings")
        for place, score in enumerate(shown):
            seconds = round(score.samples / rate, 3)
            if score.error:
                broken += 1
                table.add(score.name, seconds, 0, *none, score.error)
                continue
            found = _numbers(score.mean("probabilities")) if model.labels else []
            table.add(score.name, seconds, score.windows, *found, "")
            if each:
                write_windows(each, score, model)
            if _EMBEDDINGS.value:
                embeddings.append(score.mean("embedding"))
            if _FIGURES.value:
                draw(score, model, pathlib.Path(_FIGURES.value), place)
        if _EMBEDDINGS.value:
            write_embeddings(pathlib.Path(_EMBEDDINGS.value), embeddings, model)
    print(f"{out}: {len(named) - broken} of {len(named)} recordings")
    if model.labels:
        print(PREVALENCE)
    if broken:
        print(f"predict: {broken} recordings cannot be used; see 'error' in {out}", file=sys.stderr)
        sys.exit(1)


def write_windows(table: Table, score: Score, model: Model) -> None:
    """Writes one row per window."""
    length = model.description.window_samples / model.sample_rate
    end = score.samples / model.sample_rate
    for place, start in enumerate(score.starts):
        found = _numbers(score.probabilities[place]) if model.labels else []
        table.add(score.name, round(start, 3), round(min(start + length, end), 3), *found)


def write_embeddings(path: pathlib.Path, rows: list[np.ndarray], model: Model) -> None:
    """Writes [recordings, features] as .npy."""
    stacked = np.stack(rows) if rows else np.zeros((0, model.description.features), np.float32)
    with whole(path, "wb") as file:
        np.save(file, stacked, allow_pickle=False)


def draw(score: Score, model: Model, folder: pathlib.Path, place: int) -> None:
    """Draws FOLDER/0001-NAME.png."""
    from cryjax.evaluation.figures.spectrograms import scores_figure

    folder.mkdir(parents=True, exist_ok=True)
    stem = "".join(c if c.isalnum() or c in "-_" else "_" for c in pathlib.Path(score.name).stem)
    scores_figure(
        folder / f"{place + 1:04d}-{stem[:80] or 'recording'}.png",
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
