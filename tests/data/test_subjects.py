"""Subjects get other names, the same under one key; what is dealt depends on no name."""

import stat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryjax.command.errors import UserError
from cryjax.data import subjects
from cryjax.evaluation import bootstrap, folds

KEY = bytes(range(32))


def test_a_pseudonym_is_the_keys():
    name = subjects.pseudonym("Ana B.", KEY)
    assert name == subjects.pseudonym("Ana B.", KEY) and len(name) == 18
    others = {subjects.pseudonym(other, KEY) for other in ("Ana B", "ana b.", "", "\udcff")}
    assert len(others | {name}) == 5
    assert name != subjects.pseudonym("Ana B.", KEY[::-1])
    assert subjects.fingerprint(KEY) != subjects.fingerprint(KEY[::-1])
    assert KEY.hex()[:8] not in subjects.fingerprint(KEY)


def test_the_key_is_made_once_for_its_owner(tmp_path, monkeypatch):
    file = tmp_path / "deep" / "key"
    monkeypatch.setenv(subjects.VARIABLE, str(file))
    assert subjects.read_key() is None
    key, made = subjects.read_or_make_key()
    assert made and subjects.read_or_make_key() == (key, False) and subjects.read_key() == key
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text("nonsense")
    with pytest.raises(UserError, match="not a subject key"):
        subjects.read_key()
    file.write_text("00ff")
    with pytest.raises(UserError, match="not a subject key"):
        subjects.read_key()
    monkeypatch.setenv(subjects.VARIABLE, str(file / "below"))
    with pytest.raises(UserError, match="cannot be"):
        subjects.read_or_make_key()


def test_two_keys_are_not_compared():
    subjects.check_one_key({"a": "1", "b": "", "c": "1"})
    with pytest.raises(UserError, match="a and d were prepared with different keys"):
        subjects.check_one_key({"a": "1", "b": "", "d": "2"})


NAMES = st.lists(st.integers(0, 9), min_size=1, max_size=40)


@settings(deadline=None)
@given(NAMES, st.integers(0, 5), st.randoms(use_true_random=False))
def test_nothing_is_dealt_by_name(places, seed, random):
    names = list("abcdefghij")
    one = np.array([names[place] for place in places])
    random.shuffle(names)
    other = np.array([names[place] for place in places])
    numbers, count = subjects.numbered(one)
    assert count == len(set(one)) and set(numbers) == set(range(count))
    # The first to come is 0, the next new one 1.
    assert list(dict.fromkeys(numbers)) == list(range(count))
    np.testing.assert_array_equal(numbers, subjects.numbered(other)[0])
    labels = np.array(["x", "y", "z"])[np.array(places) % 3]
    for deal in (
        lambda s: folds.grouped_folds(labels, s, 3, seed),
        lambda s: [(folds.take_fraction(labels, s, 0.4, seed),) * 2],
        lambda s: [(bootstrap.subject_weights(s, 5, seed),) * 2],
    ):
        for ours, theirs in zip(deal(one), deal(other), strict=True):
            np.testing.assert_array_equal(ours[0], theirs[0])
            np.testing.assert_array_equal(ours[1], theirs[1])
