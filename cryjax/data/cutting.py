"""Cuts recordings into segments, which a dataset stores, and segments into windows.

A window has the length that the encoder was trained on. Outputs for a recording are means over the
same windows, whether it comes from a dataset or a file.
"""

from collections.abc import Iterable, Iterator

import numpy as np

# A last segment shorter than this is dropped, unless it is all there is.
SHORTEST_TAIL_SECONDS = 1.0


def segments(blocks: Iterable[np.ndarray], samples: int, shortest: int) -> Iterator[np.ndarray]:
    """Cuts a recording, given in blocks of any length, into segments of `samples`.

    Args:
      blocks: [n] each, in order.
      samples: of a segment.
      shortest: a remainder under this is dropped, unless it is all there is.
    """
    rest, alone = [], True
    for block in blocks:
        rest.append(block)
        if sum(map(len, rest)) >= samples:
            whole = np.concatenate(rest)
            end = len(whole) // samples * samples
            yield from whole[:end].reshape(-1, samples)
            rest, alone = [whole[end:]], False
    last = np.concatenate(rest) if rest else np.zeros(0, np.int16)
    if len(last) and (alone or len(last) >= min(samples, shortest)):
        yield last


def window_starts(length: int, samples: int) -> np.ndarray:
    """Starts of the `windows` of a segment of `length` samples, int [windows]."""
    if length <= samples:
        return np.zeros(1, int)
    return np.linspace(0, length - samples, -(-length // samples)).round().astype(int)


def windows(audio: np.ndarray, samples: int) -> np.ndarray:
    """Evenly spaced windows that cover a segment: [n] -> [windows, samples].

    As few as cover it, so that neighbours overlap by less than a window. A segment shorter than a
    window is repeated to fill it, as training crops are.
    """
    if len(audio) <= samples:
        return np.resize(audio, samples)[None]
    starts = window_starts(len(audio), samples)
    return np.stack([audio[start : start + samples] for start in starts])
