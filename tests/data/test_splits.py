"""Splits partition the recordings by subject, near their shares, with labels spread evenly."""

import collections

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cryjax.command.errors import UserError
from cryjax.data.splits import assign_splits, is_split_name, parse_fractions


@st.composite
def recordings(draw):
    """Subjects and labels of recordings, in any order and of any imbalance."""
    subjects = draw(st.integers(1, 12))
    labels = draw(st.integers(1, 12))
    pairs = st.tuples(st.integers(0, subjects - 1), st.integers(0, labels - 1))
    chosen = draw(st.lists(pairs, min_size=1, max_size=60))
    return [f"s{s}" for s, _ in chosen], [f"l{x}" for _, x in chosen]


@st.composite
def shares(draw):
    parts = draw(st.lists(st.integers(1, 100), min_size=1, max_size=4))
    return {f"split{i}": part / sum(parts) for i, part in enumerate(parts)}


@settings(max_examples=300, deadline=None)
@given(recordings(), shares(), st.integers(0, 2**32 - 1))
def test_splits_partition_by_subject_and_none_is_empty(given_recordings, fractions, seed):
    subjects, labels = given_recordings
    assume(len(set(subjects)) >= len(fractions))
    chosen = assign_splits(subjects, labels, fractions, seed)
    assert len(chosen) == len(subjects)
    assert set(chosen) == set(fractions)
    assert len(set(zip(subjects, chosen, strict=True))) == len(set(subjects))
    assert chosen == assign_splits(subjects, labels, fractions, seed)


@settings(max_examples=50, deadline=None)
@given(recordings(), shares(), st.integers(0, 10))
def test_too_few_subjects(given_recordings, fractions, seed):
    subjects, labels = given_recordings
    assume(len(set(subjects)) < len(fractions))
    with pytest.raises(UserError, match="never divided: ask for fewer"):
        assign_splits(subjects, labels, fractions, seed)


def cohort(subjects, seed, largest=1):
    """Each subject has 1 to `largest` recordings; one in four of the recordings is 'rare'."""
    rng = np.random.default_rng(seed)
    names = np.repeat(np.arange(subjects), rng.integers(1, largest + 1, subjects))
    labels = np.where(rng.random(len(names)) < 0.25, "rare", "common")
    order = rng.permutation(len(names))
    return [f"s{i}" for i in names[order]], labels[order].tolist()


@pytest.mark.parametrize("largest", [1, 20])
@pytest.mark.parametrize(
    "fractions",
    [
        {"train": 0.8, "test": 0.2},
        {"train": 0.7, "valid": 0.15, "test": 0.15},
        {"b": 0.03, "a": 0.97},
    ],
)
def test_shares_and_labels_with_many_subjects(fractions, largest):
    for seed in range(5):
        subjects, labels = cohort(300, seed, largest)
        chosen = assign_splits(subjects, labels, fractions, seed)
        counts = collections.Counter(zip(chosen, labels, strict=True))
        for split, share in fractions.items():
            # To within about a subject.
            both = counts[split, "rare"] + counts[split, "common"]
            assert abs(both - share * len(subjects)) <= largest
            assert abs(counts[split, "rare"] - share * labels.count("rare")) <= 3 + largest / 4


def test_labels_that_go_with_the_subject_are_spread():
    # As a diagnosis does: 20 subjects of 10 recordings, 5 of them ill.
    subjects = [f"s{i:02d}" for i in range(20) for _ in range(10)]
    labels = ["ill" if i < 5 else "well" for i in range(20) for _ in range(10)]
    for seed in range(20):
        chosen = assign_splits(subjects, labels, {"train": 0.8, "test": 0.2}, seed)
        ill = {s for s, x, split in zip(subjects, labels, chosen, strict=True) if x == "ill"}
        tested = {s for s, split in zip(subjects, chosen, strict=True) if split == "test"}
        assert len(tested) == 4 and len(tested & ill) == 1


def test_a_label_of_each_recording_is_no_obstacle():
    chosen = assign_splits(list("abcdefghij"), list("klmnopqrst"), {"train": 0.8, "test": 0.2}, 0)
    assert collections.Counter(chosen) == {"train": 8, "test": 2}


@pytest.mark.parametrize("largest", [1, 50])
def test_seeds_deal_differently(largest):
    subjects, labels = cohort(60, 0, largest)
    dealt = {
        tuple(assign_splits(subjects, labels, {"train": 0.8, "test": 0.2}, seed))
        for seed in range(10)
    }
    assert len(dealt) == 10


def test_order_of_the_rows_does_not_matter():
    subjects, labels = cohort(40, 1, 5)
    fractions = {"train": 0.6, "test": 0.4}
    first = assign_splits(subjects, labels, fractions, 3)
    back = assign_splits(subjects[::-1], labels[::-1], fractions, 3)
    assert back[::-1] == first


def test_fractions():
    assert parse_fractions("train=0.8,test=0.2") == {"train": 0.8, "test": 0.2}
    assert parse_fractions(" a = 0.5 , b=0.25,c=.25") == {"a": 0.5, "b": 0.25, "c": 0.25}
    assert parse_fractions("train=1") == {"train": 1.0}
    thirds = parse_fractions("a=0.3333333,b=0.3333333,c=0.3333334")
    assert sum(thirds.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "train",
        "train=",
        "train=x",
        "train=0.8",
        "train=0.8,test=0.3",
        "train=0.8,test=0.2,",
        "train=1.2,test=-0.2",
        "train=1,test=0",
        "train=nan",
        "train=inf",
        "a=0.5,a=0.5",
        "a=b=1",
        "=1",
        "all=1",
        "my set=1",
        "a/b=1",
    ],
)
def test_wrong_fractions(text):
    with pytest.raises(UserError) as caught:
        parse_fractions(text)
    assert f"--splits={text!r}" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["train", "dev-clean", "fold_1", "é", "1"])
def test_names_of_splits(name):
    assert is_split_name(name) and parse_fractions(f"{name}=1") == {name: 1.0}
