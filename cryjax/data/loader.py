"""Batches for training: a pure function of (seed, step), whatever the number of hosts.

Clips stay int16 and leave the host unaugmented; an example longer than a clip is cut at a random
place, a shorter one is zero-padded and comes with its true length.
"""

import collections
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import logging

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


def recordings(clips: Clips, names: Sequence[str], *, batch_size: int, step: int) -> str:
    """Names the recordings in the global batch at `step`, such as '3, 17 of DATA'.

    Args:
      clips: from sources whose examples have a 'recording'.
      names: of the sources.
      batch_size: global.
      step: from 0.
    """
    found = collections.defaultdict(set)
    for number, example in clips.examples(step * batch_size, batch_size):
        found[names[number]].add(example["recording"])
    return "; ".join(
        f"{', '.join(map(str, sorted(numbers)))} of {name}" for name, numbers in found.items()
    )


def batches(
    clips: Clips,
    *,
    batch_size: int,
    start: int = 0,
    process: int = 0,
    processes: int = 1,
    threads: int = 4,
    buffer: int = 8,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's share of each global batch from step `start`, prefetched by threads.

    The global batch at step n is clips n * batch_size up to (n + 1) * batch_size; process p gets
    the p-th of `processes` equal slices.

    Args:
      clips: to batch.
      batch_size: global; a multiple of `processes`.
      start: the first step.
      process: index of this process.
      processes: number of processes.
      threads: number of reading threads.
      buffer: batches to prefetch.

    Yields:
      As `Clips.batch`, with batch_size / processes clips.
    """
    if batch_size % processes:
        raise ValueError(f"batch_size={batch_size} is not a multiple of {processes} processes")
    local = batch_size // processes

    def read(step: int) -> dict[str, np.ndarray]:
        for pause in _PAUSES_SECONDS:
            try:
                return clips.batch(step * batch_size + process * local, local)
            except (OSError, RuntimeError) as error:  # RuntimeError: ArrayRecord's I/O errors
                logging.warning(
                    "batch %d cannot be read (%s); retrying in %d s",
                    step, " ".join(str(error).split())[:300], pause,
                )  # fmt: skip
                time.sleep(pause)
        return clips.batch(step * batch_size + process * local, local)

    mine = grain.MapDataset.range(start, sys.maxsize).map(read)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
    return iter(mine.to_iter_dataset(options))
