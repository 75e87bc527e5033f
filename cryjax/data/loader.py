"""Batches for training: a pure function of (seed, step), whatever the number of hosts.

Clips stay int16 and leave the host unaugmented; a clip longer than the window is cut at a random
place, a shorter one is padded with zeros and its true length carried along.
"""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np


class Labelled:
    """Random access to examples with 'target', float32 [classes]: 1 where one has the label."""

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


_WINDOW = 1024


@dataclasses.dataclass(frozen=True)
class Window(grain.transforms.RandomMap):
    """Cuts or pads an example's audio to `samples`: {'audio': int16 [samples], 'length': int32}.

    A 'target' stays; all else, which is text, goes.
    """

    samples: int

    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        audio = element["audio"]
        start = int(rng.integers(max(len(audio) - self.samples, 0) + 1))
        # Copied here, not by batching: until then a view would keep its whole record.
        window = audio[start : start + self.samples].copy()
        length = len(window)
        if length < self.samples:
            window = np.pad(window, (0, self.samples - length))
        kept = {name: element[name] for name in ("target",) if name in element}
        return {"audio": window, "length": np.int32(length), **kept}


class _Of:
    """Random access to examples with 'source', the place of theirs among the sources."""

    def __init__(self, source: Any, place: int):
        self._source = source
        self._place = place

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {**self._source[place], "source": self._place}


def order(sources: Sequence[tuple[Any, float]], *, seed: int) -> grain.MapDataset:
    """An endless dataset of examples, shuffled each epoch: element i depends on (seed, i) alone.

    Args:
      sources: (random-access source, weight); a batch holds examples of each by its weight.
      seed: of the order.
    """
    parts = [
        grain.MapDataset.source(_Of(source, place)).seed(seed + 7919 * place).shuffle().repeat()
        for place, (source, _) in enumerate(sources)
    ]
    weights = [weight for _, weight in sources]
    mixed = parts[0]
    if len(parts) > 1:
        # Mixed, sources take turns; shuffled, an example's neighbours are of any of them.
        mixed = grain.experimental.WindowShuffleMapDataset(
            grain.MapDataset.mix(parts, weights), window_size=_WINDOW, seed=seed
        )
    return mixed


def examples(sources: Sequence[tuple[Any, float]], *, samples: int, seed: int) -> grain.MapDataset:
    """`order`, each example cut or padded to a window of `samples` at a random place."""
    return order(sources, seed=seed).random_map(Window(samples), seed=seed)


def recordings(
    sources: Sequence[tuple[Any, float]],
    names: Sequence[str],
    *,
    seed: int,
    batch_size: int,
    step: int,
) -> str:
    """What the global batch at `step`, from 0, is made of, in words, as '3, 17 of DATA'.

    Args:
      sources: as of `examples`.
      names: of the sources.
      seed: as of `examples`.
      batch_size: global.
      step: from 0.
    """
    dataset, found = order(sources, seed=seed), collections.defaultdict(set)
    for place in range(step * batch_size, (step + 1) * batch_size):
        example = dataset[place]
        found[names[example["source"]]].add(example["recording"])
    return "; ".join(
        f"{', '.join(map(str, sorted(numbers)))} of {name}" for name, numbers in found.items()
    )


def batches(
    dataset: grain.MapDataset,
    *,
    batch_size: int,
    start: int = 0,
    process: int = 0,
    processes: int = 1,
    threads: int = 4,
    buffer: int = 8,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's share of each global batch, from step `start` on, read ahead on threads.

    The global batch at step n is elements n * batch_size up to (n + 1) * batch_size; process p has
    the p-th of `processes` equal stretches of it.

    Args:
      dataset: of `examples`.
      batch_size: global; a multiple of `processes`.
      start: the first step.
      process: index of this process.
      processes: how many there are.
      threads: that read.
      buffer: batches to read ahead.

    Yields:
      {'audio': int16 [local batch, samples], 'length': int32 [local batch]}, and 'target' float32
      [local batch, classes] of `Labelled` sources.
    """
    local = dataset.batch(batch_size // processes, drop_remainder=True)
    mine = local[start * processes + process :: processes]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
    return iter(mine.to_iter_dataset(options))
