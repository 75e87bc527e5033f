"""Scores recordings of any length with a model, block by block."""

import collections
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from cryjax.audio import frontend
from cryjax.data import cutting, decode, guard
from cryjax.interop.model import Model


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
