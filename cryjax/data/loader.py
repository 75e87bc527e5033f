"""Batches for training: a pure function of (seed, step), whatever the number of hosts.

Clips stay int16 and leave the host unaugmented; an example longer than a clip is cut at a random
place, a shorter one is zero-padded and comes with its true length.
"""

import collections
import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import logging

from cryjax.command.errors import one_line
from cryjax.data.order import CUTS, Order, stream

# A brief outage of a file server must not end a run on many machines.
_PAUSES_SECONDS = (1, 5, 20)


class Labelled:
    """Random access to examples with a multi-hot 'target' of their labels, float32 [classes]."""

    def __init__(self, source: Any, classes: Sequence[str]):
        self._source = source
        self._places = {name: place for place, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, place: int) -> dict[str, Any]:
        example = self._source[place]
        target = np.zeros(len(self._places), np.float32)
        target[[self._places[name] for name in example["label"].split(";") if name]] = 1.0
        return {**example, "target": target}


class Clips:
    """Endless clips of one length; the i-th and its cut depend on (seed, i) alone."""

    def __init__(self, sources: Sequence[tuple[Any, float]], *, samples: int, seed: int):
        """Cuts clips from several sources.

        Args:
          sources: (random access to examples, weight); weights are relative shares of a batch.
          samples: length of a clip.
          seed: for the order and the cuts.
        """
        self._sources = [source for source, _ in sources]
        self._samples, self._seed = samples, seed
        lengths = [len(source) for source in self._sources]
        self._order = Order(lengths, [weight for _, weight in sources], seed=seed)

    def examples(self, first: int, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields examples `first` up to `first + count`, each with its source number."""
        numbers, places = self._order.places(first, count)
        for number, place in zip(numbers.tolist(), places.tolist(), strict=True):
            yield number, self._sources[number][place]

    def batch(self, first: int, count: int) -> dict[str, np.ndarray]:
        """Clips `first` up to `first + count`.

        Longer examples are cut at a random place, shorter ones are zero-padded.

        Args:
          first: from 0.
          count: number of clips.

        Returns:
          {'audio': int16 [count, samples], 'length': int32 [count]}, and 'target', float32
          [count, classes], for `Labelled` sources.
        """
        # Philox yields four numbers per counter state; each clip has one state.
        draws = stream(self._seed, CUTS).advance(first).random_raw(4 * count)
        where = (draws[::4] >> np.uint64(11)) / 2**53
        batch: dict[str, np.ndarray] = {
            "audio": np.empty((count, self._samples), np.int16),
            "length": np.empty(count, np.int32),
        }
        targets = []
        for row, (_, example) in enumerate(self.examples(first, count)):
            whole = example["audio"]
            start = int(where[row] * (max(len(whole) - self._samples, 0) + 1))
            clip = whole[start : start + self._samples]
            # Copied one by one: all whole examples together would not fit the processor's cache.
            batch["audio"][row, : len(clip)] = clip
            batch["audio"][row, len(clip) :] = 0
            batch["length"][row] = len(clip)
            if "target" in example:
                targets.append(example["target"])
        if targets:
            batch["target"] = np.stack(targets)
            if len(targets) < count:
                raise ValueError("some sources of a batch are labelled and some are not")
        return batch


@dataclasses.dataclass(frozen=True)
class Batches:
    """A run's batches: the global one at step n is clips n * size up to (n + 1) * size.

    Attributes:
      clips: to batch.
      size: of the global batch.
      names: of the clips' sources, for `recordings`.
      threads: number of reading threads.
      buffer: batches to prefetch.
    """

    clips: Clips
    size: int
    names: Sequence[str] = ()
    threads: int = 4
    buffer: int = 8

    def since(
        self, step: int, process: int = 0, processes: int = 1
    ) -> Iterator[dict[str, np.ndarray]]:
        """A process's share of each batch from `step` on, prefetched by threads.

        Args:
          step: the first, from 0.
          process: gets this one of equal slices.
          processes: number of slices; divides `size`.

        Yields:
          As `Clips.batch`, with size / processes clips.
        """
        if self.size % processes:
            raise ValueError(f"size={self.size} is not a multiple of {processes} processes")
        local = self.size // processes

        def read(step: int) -> dict[str, np.ndarray]:
            for pause in _PAUSES_SECONDS:
                try:
                    return self.clips.batch(step * self.size + process * local, local)
                except (OSError, RuntimeError) as error:  # RuntimeError: ArrayRecord's I/O errors
                    logging.warning(
                        "batch %d cannot be read (%s); retrying in %d s",
                        step, one_line(error), pause,
                    )  # fmt: skip
                    time.sleep(pause)
            return self.clips.batch(step * self.size + process * local, local)

        mine = grain.MapDataset.range(step, sys.maxsize).map(read)
        options = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=self.buffer)
        return iter(mine.to_iter_dataset(options))

    def recordings(self, step: int) -> str:
        """Names the recordings in the batch at `step`, such as '3, 17 of DATA'.

        The sources' examples must have a 'recording'.
        """
        found = collections.defaultdict(set)
        for number, example in self.clips.examples(step * self.size, self.size):
            found[self.names[number]].add(example["recording"])
        return "; ".join(
            f"{', '.join(map(str, sorted(numbers)))} of {name}" for name, numbers in found.items()
        )
