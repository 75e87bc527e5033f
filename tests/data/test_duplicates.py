"""A copy is used once; copies that contradict each other are not used at all."""

import time

import numpy as np
import pytest

from cryjax.data import duplicates, recording
from cryjax.data.recording import Account


def known(number, label, subject, alone=False, digest="same"):
    return Account(number, label, subject, "", alone, 8000, digest, examples=1, samples=9)


def reasons(*recordings):
    return duplicates.find([known(number, *told) for number, told in enumerate(recordings)])


@pytest.mark.parametrize(
    ("copies", "left_out"),
    [
        ([("pain", "s"), ("pain", "s"), ("pain", "s")], [1, 2]),
        ([("a;b", "s"), ("b;a", "s")], [1]),
        ([("", "1.wav", True), ("", "2.wav", True)], [1]),  # nothing is said of either
        ([("", "1.wav", True), ("pain", "2.wav", True)], [0]),  # the label is kept,
        ([("pain", "1.wav", True), ("pain", "s")], [0]),  # the subject,
        ([("pain", "1.wav", True), ("", "s")], [0]),  # and the subject before the label
    ],
)
def test_a_copy_is_used_once(copies, left_out):
    found, contradicting = reasons(*copies)
    (kept,) = set(range(len(copies))) - set(left_out)
    assert found == dict.fromkeys(left_out, f"the same audio as recording {kept}")
    assert not contradicting


def test_contradicting_copies_are_all_left_out():
    assert reasons(("pain", "s"), ("hunger", "s")) == (
        {
            0: "the same audio as recording 1, with another label",
            1: "the same audio as recording 0, with another label",
        },
        2,
    )
    found, _ = reasons(("pain", "s"), ("pain", "t"), ("hunger", "t"))
    assert found == {
        0: "the same audio as recording 1, with another subject",
        1: "the same audio as recording 0, with another subject",
        2: "the same audio as recording 0, with another label and another subject",
    }
    # Of the one that claims nothing, too, nobody knows whose it is.
    found, contradicting = reasons(("", "1.wav", True), ("pain", "s"), ("pain", "t"))
    assert found[0] == "the same audio as recording 1, which others contradict"
    assert len(found) == contradicting == 3


def test_other_audio_and_none_is_no_copy():
    found = [known(0, "a", "s", digest="x"), known(1, "b", "t", digest="y")]
    found += [known(number, "a", f"s{number}", digest="") for number in (2, 3)]
    assert duplicates.find(found) == ({}, 0)


def test_a_digest_is_of_the_samples_and_of_nothing_else():
    audio = np.arange(-500, 500, dtype=np.int16)
    twice = np.repeat(audio, 2)[::2]  # the same, otherwise laid out
    assert recording.digest(audio) == recording.digest(twice)
    others = [audio[:-1], audio[::-1], np.append(audio, np.int16(0))]
    assert len({recording.digest(other) for other in (audio, *others)}) == 4


def test_very_many_copies_are_no_trouble():
    start = time.monotonic()
    found, contradicting = reasons(*(("", f"s{number}") for number in range(20_000)))
    assert len(found) == contradicting == 20_000
    assert time.monotonic() - start < 5
