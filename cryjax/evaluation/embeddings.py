"""Embeddings and probabilities of whole recordings.

Each is the mean over windows of the length that the encoder was trained on.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from cryjax.audio.frontend import FrontEnd
from cryjax.command import progress
from cryjax.data.cutting import windows
from cryjax.models.encoders import Encoder
from cryjax.training import steps
from cryjax.training.parallel import Parallel


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """One row per recording.

    Attributes:
      features: float32 [recordings, features], or probabilities [recordings, classes].
      recordings: [recordings] their numbers in the dataset.
      labels: [recordings] label names, '' where there is none.
      subjects: [recordings].
    """

    features: np.ndarray
    recordings: np.ndarray
    labels: np.ndarray
    subjects: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> "Embeddings":
        """The recordings that a mask, or indices, select."""
        fields = dataclasses.fields(self)
        return Embeddings(**{field.name: getattr(self, field.name)[chosen] for field in fields})


class Embedder:
    """Embeds or classifies recordings on local devices; jitted once."""

    def __init__(
        self,
        function: Callable[[Any, jax.Array], jax.Array],
        samples: int,
        *,
        batch_size: int = 64,
        devices: list[jax.Device] | None = None,
    ):
        """Prepares for windows of `samples`.

        Args:
          function: (variables, int16 [batch, samples]) -> [batch, features]; pure, in eval mode.
          samples: per window.
          batch_size: windows at a time, rounded up to suit the devices; fewer for few examples.
          devices: of this process; all of them if None.
        """
        self._parallel = Parallel("jit", devices or jax.local_devices())
        self._batch_size = batch_size
        self._samples = samples
        self._embed = self._parallel.map(function)

    @classmethod
    def of(cls, encoder: Encoder, settings: FrontEnd, samples: int, **how: Any) -> "Embedder":
        """One that embeds with an encoder; arguments as in `__init__`."""
        function = functools.partial(steps.embed, encoder=encoder, settings=settings)
        return cls(function, samples, **how)

    def __call__(
        self, variables: Any, source: Any, *, most: int = 0, shown: bool = False
    ) -> Embeddings:
        """Embeds recordings; the windows of all segments are averaged with equal weight.

        Args:
          variables: for the function.
          source: random access to examples, at the front end's sample rate.
          most: examples at most, spread over the source; 0 for all.
          shown: whether to show progress.
        """
        rows = np.arange(len(source))
        if 0 < most < len(rows):
            rows = np.linspace(0, len(source) - 1, most).round().astype(int)
        variables = self._parallel.replicate(variables)
        # A power of two, so that few programs are compiled.
        together = min(self._batch_size, 1 << (len(rows) - 1).bit_length())
        together = -(-together // self._parallel.devices) * self._parallel.devices

        described: dict[int, tuple[str, str]] = {}  # recording -> label, subject
        recordings: list[int] = []  # of each window
        features: list[np.ndarray] = []
        pending: list[np.ndarray] = []
        for row in progress.over(rows, "embed", unit="segments", shown=shown):
            example = source[int(row)]
            described[example["recording"]] = (example["label"], example["subject"])
            for window in windows(example["audio"], self._samples):
                recordings.append(example["recording"])
                pending.append(window)
                if len(pending) == together:
                    features.append(self._run(variables, pending, together))
                    pending = []
        if pending:
            features.append(self._run(variables, pending, together))

        names, group = np.unique(np.array(recordings), return_inverse=True)
        sums = np.zeros((len(names), features[0].shape[1]))
        np.add.at(sums, group, np.concatenate(features).astype(np.float64))
        means = sums / np.bincount(group)[:, None]
        labels, subjects = zip(*(described[int(name)] for name in names), strict=True)
        return Embeddings(means.astype(np.float32), names, np.array(labels), np.array(subjects))

    def _run(self, variables: Any, pending: list[np.ndarray], together: int) -> np.ndarray:
        """[n, samples] -> [n, features], the batch padded so that one program serves all."""
        batch = np.zeros((together, self._samples), np.int16)
        batch[: len(pending)] = pending
        placed = self._parallel.shard({"audio": batch})["audio"]
        return np.asarray(self._embed(variables, placed))[: len(pending)]
