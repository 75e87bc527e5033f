"""Cutting loses nothing but a short rest, however a recording comes in blocks."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cryjax.data.cutting import segments, window_starts, windows


@settings(deadline=None)
@given(st.lists(st.integers(0, 90), max_size=6), st.integers(1, 50), st.integers(0, 60))
def test_segments(lengths, samples, shortest):
    length = sum(lengths)
    whole = np.arange(length, dtype=np.int16)
    blocks = np.split(whole, np.cumsum(lengths)[:-1]) if lengths else []
    pieces = list(segments(blocks, samples, shortest))
    joined = np.concatenate(pieces) if pieces else whole[:0]
    np.testing.assert_array_equal(joined, whole[: len(joined)])
    assert all(len(piece) == samples for piece in pieces[:-1])
    assert all(0 < len(piece) <= samples for piece in pieces)
    tail = length % samples
    drops = 0 < tail < shortest and length > samples
    assert length - len(joined) == (tail if drops else 0)


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(1, 100))
def test_windows_cover_a_segment(length, samples):
    audio = np.arange(length, dtype=np.int16)
    found, starts = windows(audio, samples), window_starts(length, samples)
    assert found[:, 0].tolist() == audio[starts].tolist()
    assert found.shape[1] == samples
    assert set(found.ravel()) == set(audio)
    if length >= samples:
        assert np.all(np.diff(found, axis=1) == 1)  # uninterrupted
        assert (len(found) - 1) * samples < length  # no more than needed
    else:
        np.testing.assert_array_equal(found[0], np.tile(audio, samples)[:samples])
