"""Embeddings of whole recordings: windows of the length the encoder was trained on, averaged."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import tqdm

from cryjax.audio.frontend import FrontEnd
from cryjax.data.records import Prepared
from cryjax.models.encoders import Encoder
from cryjax.training import steps
from cryjax.training.parallel import Parallel


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """One row a recording.

    Attributes:
      features: float32 [recordings, features].
      labels: [recordings] label names, '' where there is none.
      subjects: [recordings].
    """

    features: np.ndarray
    labels: np.ndarray
    subjects: np.ndarray


def windows(audio: np.ndarray, samples: int) -> np.ndarray:
    """Evenly spaced windows that cover a segment: int16 [n] -> int16 [windows, samples].

    As few as cover it, so that neighbours overlap by less than a window. A segment shorter than a
    window is repeated to fill it, as the crops of training are.
    """
    if len(audio) <= samples:
        return np.resize(audio, samples)[None]
    count = -(-len(audio) // samples)
    starts = np.linspace(0, len(audio) - samples, count).round().astype(int)
    return np.stack([audio[start : start + samples] for start in starts])


class Embedder:
    """Embeds recordings with a frozen encoder, over all local devices; compiled once."""

    def __init__(self, encoder: Encoder, settings: FrontEnd, samples: int, batch_size: int = 64):
        """Windows of `samples`, `batch_size` at a time, rounded up to suit the devices."""
        self._parallel = Parallel("jit", jax.local_devices())
        self._batch_size = -(-batch_size // self._parallel.devices) * self._parallel.devices
        self._samples = samples
        self._embed = jax.jit(functools.partial(steps.embed, encoder=encoder, settings=settings))

    def __call__(
        self, variables: Any, prepared: Prepared, split: str, *, most: int = 0, shown: bool = False
    ) -> Embeddings:
        """Embeds the recordings of a split; windows are averaged, those of all segments alike.

        Args:
          variables: {'params', 'batch_stats'} of the encoder.
          prepared: dataset at the front end's sample rate.
          split: of it.
          most: examples to embed, spread over the split; 0 is all.
          shown: whether to show progress.
        """
        source = prepared.source(split)
        rows = np.arange(len(source))
        if 0 < most < len(rows):
            rows = np.linspace(0, len(source) - 1, most).round().astype(int)
        variables = self._parallel.replicate(variables)

        described: dict[int, tuple[str, str]] = {}  # recording -> label, subject
        recordings: list[int] = []  # of each window
        features: list[np.ndarray] = []
        pending: list[np.ndarray] = []
        for row in tqdm.tqdm(rows, unit="segment", desc="embed", disable=not shown):
            example = source[int(row)]
            described[example["recording"]] = (example["label"], example["subject"])
            for window in windows(example["audio"], self._samples):
                recordings.append(example["recording"])
                pending.append(window)
                if len(pending) == self._batch_size:
                    features.append(self._run(variables, pending))
                    pending = []
        if pending:
            features.append(self._run(variables, pending))

        names, group = np.unique(np.array(recordings), return_inverse=True)
        sums = np.zeros((len(names), features[0].shape[1]))
        np.add.at(sums, group, np.concatenate(features).astype(np.float64))
        means = sums / np.bincount(group)[:, None]
        labels, subjects = zip(*(described[int(name)] for name in names), strict=True)
        return Embeddings(means.astype(np.float32), np.array(labels), np.array(subjects))

    def _run(self, variables: Any, pending: list[np.ndarray]) -> np.ndarray:
        """[n, samples] -> [n, features], the batch filled up so that one program serves all."""
        batch = np.zeros((self._batch_size, self._samples), np.int16)
        batch[: len(pending)] = pending
        placed = self._parallel.shard({"audio": batch})["audio"]
        return np.asarray(self._embed(variables, placed))[: len(pending)]
