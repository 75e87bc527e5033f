"""The order that examples come in: the i-th is a function of (seed, i) alone.

Written here, not taken from grain: there the place of an example takes 8 us among a million, 36
among a thousand and 4000 among six, under Python's lock, where a clip takes 80 us to read.
"""

import functools
import itertools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

# So many examples of several sources are shuffled together.
WINDOW = 1024


# What numbers are drawn for.
CUTS, _WINDOWS, _EPOCHS = range(3)


def stream(seed: int, *purpose: int) -> np.random.Philox:
    """Random numbers of their own for each seed and purpose, the same in every version of NumPy."""
    return np.random.Philox(np.random.SeedSequence(seed, spawn_key=purpose))


def _permutation(length: int, seed: int, *purpose: int) -> np.ndarray:
    """0 to `length` - 1 in random order, int [length]."""
    # Not by a `Generator`: what it makes of a stream's numbers may change with NumPy.
    return np.argsort(stream(seed, *purpose).random_raw(length), kind="stable")


class Order:
    """An endless order of the examples of one source or several, each shuffled anew every epoch.

    Of several, each has its share of any `WINDOW` examples, to within one, and these are shuffled,
    so that an example's neighbours are of any of them.
    """

    def __init__(self, lengths: Sequence[int], weights: Sequence[float], *, seed: int):
        """Takes examples of several sources.

        Args:
          lengths: examples of each source; none is 0.
          weights: how many of a batch are of each, in proportion; positive.
          seed: of the order, not negative.
        """
        self._lengths, self._seed = [*lengths], seed
        exact = [Fraction(weight) for weight in weights]
        # Of what the sources before leave, each takes this; the last takes all.
        rests = [*itertools.accumulate(reversed(exact))][::-1]
        self._takes = [weight / rest for weight, rest in zip(exact, rests, strict=True)]
        # What a window's examples may be of, or a batch's that reaches over the end of an epoch.
        most = sum(WINDOW // length + 2 for length in self._lengths)
        self._epoch = functools.lru_cache(most)(self._shuffled)
        self._window = functools.lru_cache(4)(self._mixed)

    def _shuffled(self, number: int, epoch: int) -> np.ndarray:
        """A source's examples in an epoch."""
        return _permutation(self._lengths[number], self._seed, _EPOCHS, number, epoch)

    def _taken(self, count: int) -> np.ndarray:
        """How many of the first `count` are of each source, int [sources].

        Each takes, rounded, its share of what those before it leave: none of these numbers falls
        while `count` grows, and their sum is `count`.
        """
        taken = []
        for share in self._takes:
            taken.append(
                (2 * count * share.numerator + share.denominator) // (2 * share.denominator)
            )
            count -= taken[-1]
        return np.array(taken)

    def _mixed(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        """The source of each example of a window, and which of its source it is, from 0."""
        before, after = self._taken(window * WINDOW), self._taken((window + 1) * WINDOW)
        numbers = np.repeat(np.arange(len(before)), after - before)
        nth = np.concatenate([*map(np.arange, before, after)])
        places = _permutation(WINDOW, self._seed, _WINDOWS, window)
        return numbers[places], nth[places]

    def __getitem__(self, i: int) -> tuple[int, int]:
        """The number of the i-th example's source, and its place in it."""
        number, nth = 0, i
        if len(self._lengths) > 1:
            window, place = divmod(i, WINDOW)
            numbers, nths = self._window(window)
            number, nth = int(numbers[place]), int(nths[place])
        epoch, place = divmod(nth, self._lengths[number])
        return number, int(self._epoch(number, epoch)[place])
