"""The order of training examples: the i-th is a function of (seed, i) alone.

Not taken from grain, which computes places one by one, under Python's lock, and more slowly the
fewer there are: for few examples, this takes longer than reading the clip.
"""

import functools
import itertools
import threading
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

# Number of examples of several sources that are shuffled together.
WINDOW = 1024

# Purposes of random numbers. Changing one changes the order, and no run could resume.
CUTS, WINDOWS, EPOCHS = range(3)


def stream(seed: int, *purpose: int) -> np.random.Philox:
    """An independent random stream per seed and purpose, the same in every version of NumPy."""
    return np.random.Philox(np.random.SeedSequence(seed, spawn_key=purpose))


def _permutation(length: int, seed: int, *purpose: int) -> np.ndarray:
    """0 to `length` - 1 in random order, uint32 [length]."""
    # Not a `Generator`, whose output for the same stream may change with NumPy.
    drawn = stream(seed, *purpose).random_raw(length)
    return np.argsort(drawn, kind="stable").astype(np.uint32)


class Order:
    """An endless order of the examples of one or more sources.

    Each source is reshuffled in each of its own epochs. Each of several sources has its share of
    every window of `WINDOW` examples, which are shuffled so that neighbours may be of any source;
    there the end of an epoch mixes with the start of the next.

    Two epochs per source are held, more if they are short, at four bytes per example.
    """

    def __init__(self, lengths: Sequence[int], weights: Sequence[float], *, seed: int):
        """Sets up the order of the sources.

        Args:
          lengths: examples of each source, at least one and under 2 ** 32.
          weights: relative share of a batch for each source; positive.
          seed: of the order, non-negative.
        """
        if not lengths or not all(0 < length < 2**32 for length in lengths):
            raise ValueError(f"sources of {[*lengths]} examples: each needs 1 to 2 ** 32 - 1")
        if len(weights) != len(lengths) or not all(0 < weight < np.inf for weight in weights):
            raise ValueError(f"weights {[*weights]}: give one per source, positive and finite")
        self._lengths, self._seed = lengths, seed
        exact = [Fraction(float(weight)) for weight in weights]
        # The fraction that each takes of what those before it leave; the last takes all.
        rests = [*itertools.accumulate(reversed(exact))][::-1]
        self._takes = [weight / rest for weight, rest in zip(exact, rests, strict=True)]
        # Threads read neighbouring batches; what one of them makes, the others wait for.
        self._lock = threading.Lock()
        self._window = functools.lru_cache(16)(self._mixed)
        # Per source, the epochs that concurrently read batches need: two, or many short ones.
        self._epochs = [
            functools.lru_cache(2 + 64 * WINDOW // length)(
                functools.partial(_permutation, length, seed, EPOCHS, number)
            )
            for number, length in enumerate(lengths)
        ]

    def _taken(self, count: int) -> np.ndarray:
        """How many of the first `count` are of each source, int [sources].

        Each takes its rounded share of what those before it leave: no number decreases as `count`
        grows, and their sum is `count`.
        """
        taken = []
        for share in self._takes:
            above, below = share.numerator, share.denominator
            taken.append((2 * count * above + below) // (2 * below))
            count -= taken[-1]
        return np.array(taken)

    def _mixed(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        """The source of each example of a window, and its index within that source, from 0."""
        before, after = self._taken(window * WINDOW), self._taken((window + 1) * WINDOW)
        numbers = np.repeat(np.arange(len(before)), after - before)
        nth = np.concatenate([*map(np.arange, before, after)])
        places = _permutation(WINDOW, self._seed, WINDOWS, window)
        return numbers[places], nth[places]

    def _unmixed(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Same as `_mixed`, for examples `first` up to `first + count`."""
        if len(self._lengths) == 1:
            return np.zeros(count, int), np.arange(first, first + count)
        begin, end = first // WINDOW, -(-(first + count) // WINDOW)
        windows = [self._window(window) for window in range(begin, end)]
        inside = slice(first - begin * WINDOW, first - begin * WINDOW + count)
        numbers, nth = (np.concatenate(parts)[inside] for parts in zip(*windows, strict=True))
        return numbers, nth

    def places(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Sources and places of examples `first` up to `first + count`, at least one.

        Args:
          first: from 0.
          count: number of examples.

        Returns:
          int [count], source numbers; int [count], places within the sources.
        """
        with self._lock:
            numbers, nth = self._unmixed(first, count)
            places = np.empty(count, int)
            for number in np.unique(numbers):
                epochs, inside = np.divmod(nth, self._lengths[number])
                for epoch in np.unique(epochs[numbers == number]):
                    here = (numbers == number) & (epochs == epoch)
                    places[here] = self._epochs[number](int(epoch))[inside[here]]
        return numbers, places
