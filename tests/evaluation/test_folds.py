"""Folds and fractions: nobody is divided, every class is there, the smaller lies in the larger."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import programs
from cryjax.command import config as config_lib
from cryjax.command.errors import TooFewLabels, UserError
from cryjax.data import subjects
from cryjax.data.records import open_prepared
from cryjax.evaluation import folds, probes, tasks


def draw(seed: int, recordings: int = 200, people: int = 30):
    rng = np.random.default_rng(seed)
    subjects = np.array([f"s{n}" for n in rng.integers(people, size=recordings)])
    labels = rng.choice(["a", "b", "c;a"], p=[0.8, 0.15, 0.05], size=recordings)
    return labels, subjects


@given(st.integers(0, 50), st.lists(st.floats(0.01, 1.0), min_size=2, max_size=5))
def test_fractions_are_nested_and_hold_every_class(seed, fractions):
    labels, subjects = draw(seed)
    classes = {name for label in labels for name in label.split(";")}
    before = np.zeros(len(labels), bool)
    for fraction in sorted(fractions):
        taken = folds.take_fraction(labels, subjects, fraction, seed=3)
        assert {name for label in labels[taken] for name in label.split(";")} == classes
        assert not set(subjects[taken]) & set(subjects[~taken])
        assert not np.any(before & ~taken)
        people = len(set(subjects))
        share = len(set(subjects[taken])) / people
        assert share == pytest.approx(fraction, abs=0.51 / people) or share <= len(classes) / people
        before = taken


def test_no_fold_is_empty_and_each_recording_is_tested_once():
    """Of these five subjects the splitter puts two into one fold and nobody into another."""
    subjects = np.repeat(np.arange(5), [22, 2, 12, 12, 18])
    labels = np.array([0, 0, 1, 2, 3])[subjects]
    parts = folds.grouped_folds(labels, subjects, 5, seed=0)
    assert len(parts) == 4 and all(len(train) and len(test) for train, test in parts)
    assert sorted(np.concatenate([test for _, test in parts])) == list(range(len(labels)))


def test_all_is_all_and_another_seed_takes_others():
    labels, subjects = draw(0)
    assert folds.take_fraction(labels, subjects, 1.0, seed=0).all()
    taken = [folds.take_fraction(labels, subjects, 0.3, seed=seed) for seed in range(2)]
    assert not np.array_equal(*taken)


def test_fractions_keep_the_shares_of_the_kinds():
    """One subject in ten is ill: so it is of any tenth of them."""
    subjects = np.array([f"s{n}" for n in range(200)])
    labels = np.array(["ill" if n % 10 == 0 else "well" for n in range(200)])
    for fraction in (0.1, 0.2, 0.5):
        taken = folds.take_fraction(labels, subjects, fraction, seed=1)
        assert abs(np.sum(labels[taken] == "ill") - 20 * fraction) <= 1


def test_a_held_out_part_divides_nobody():
    labels, subjects = draw(1)
    stay, held = folds.hold_out(labels, subjects, 0.2, seed=0)
    assert not set(subjects[stay]) & set(subjects[held])
    assert sorted([*stay, *held]) == list(range(len(labels)))
    assert 0.1 < len(held) / len(labels) < 0.3
    with pytest.raises(UserError, match="1 subject"):
        folds.hold_out(labels, np.full(len(labels), "one"), 0.2, seed=0)


@given(
    st.integers(0, 10_000),
    st.lists(st.integers(0, 40), min_size=2, max_size=4).filter(lambda n: sum(n) > len(n)),
    st.floats(0.01, 0.9),
)
def test_of_each_kind_its_share_is_held_out(seed, counts, share):
    """But for a remainder, and for those whom a class needs; and the same again for a seed."""
    labels = np.repeat(list("abcd")[: len(counts)], counts)
    subjects = np.random.default_rng(seed).permutation(len(labels))
    stay, held = folds.hold_out(labels, subjects, share, seed)
    spare = sum(max(count - 1, 0) for count in counts)
    wanted = min(max(round(share * len(labels)), 1), spare)
    assert len(held) == wanted and set(labels[stay]) == set(labels)
    shares = zip("abcd", counts, strict=False)
    exact = {name: wanted * count / len(labels) for name, count in shares}
    found = {name: np.sum(labels[held] == name) for name in exact}
    if all(np.ceil(exact[name]) <= max(np.sum(labels == name) - 1, 0) for name in exact):
        assert all(int(exact[name]) <= found[name] <= np.ceil(exact[name]) for name in exact)
        low, high = ([exact[n] % 1 for n in exact if (found[n] > exact[n]) == up] for up in (0, 1))
        assert not low or not high or max(low) <= min(high) + 1e-9  # largest remainders
    np.testing.assert_array_equal(folds.hold_out(labels, subjects, share, seed)[1], held)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_nobody_is_held_out_whom_a_class_needs(share):
    everyone = np.array(list("abcde"))
    with pytest.raises(TooFewLabels, match="5 subject"):
        folds.hold_out(everyone, everyone, share, seed=0)
    # One of seven can be spared for each of two classes.
    labels, subjects = np.array(list("abcdeab")), np.arange(7).astype(str)
    for seed in range(20):
        stay, held = folds.hold_out(labels, subjects, share, seed)
        assert set(labels[stay]) == set("abcde") and len(held) == (1 if share < 0.2 else 2)


def test_names_subjects_in_all_their_ways(prepared, tmp_path):
    everybody = set(open_prepared(prepared).index().subjects)
    assert len(everybody) == 6
    assert folds.subjects_of("") == set()
    key = subjects.read_key()
    named = {"anna", "ben", *(subjects.pseudonym(name, key) for name in ("anna", "ben"))}
    assert folds.subjects_of("anna, ben") == named
    assert folds.subjects_of(str(prepared)) == everybody
    assert folds.subjects_of(f"{prepared}:train") == everybody
    parts = [folds.subjects_of(f"{prepared}:{fold}/3") for fold in range(3)]
    assert set.union(*parts) == everybody and sum(map(len, parts)) == 6
    assert [folds.subjects_of(f"{prepared}:{fold}/3@5") for fold in range(3)] != parts
    manifest = tmp_path / "some.csv"
    manifest.write_text("path,subject\na.wav,carl\n")
    named = {"carl", "dora", *(subjects.pseudonym(name, key) for name in ("carl", "dora"))}
    assert folds.subjects_of(f"{manifest},dora") == named
    manifest.with_name("blank.csv").write_text("path,subject\na.wav,carl\nb.wav,\n")
    with pytest.raises(UserError, match="1 of its 2 rows have no 'subject'"):
        folds.subjects_of(str(manifest.with_name("blank.csv")))
    # What a config keeps names nobody, and means the same.
    kept = folds.renamed_entries(f"{manifest},dora,{prepared}:train")
    assert "dora" not in kept and folds.renamed_entries(kept) == kept
    assert folds.subjects_of(kept) >= {"carl", subjects.pseudonym("dora", key)} | everybody
    with pytest.raises(UserError, match="no split 'test'"):
        folds.subjects_of(f"{prepared}:test")
    with pytest.raises(UserError, match="allow 3 folds"):
        folds.subjects_of(f"{prepared}:3/3")


@pytest.mark.parametrize("seed", [0, 5])
def test_a_fold_is_the_same_for_probe_and_fine_tuning_and_by_name(prepared, seed):
    """Or what is pre-trained without `DATA:k/3` would have heard who is tested in fold k."""
    index = open_prepared(prepared).index()
    config = config_lib.load(programs.ROOT / "configs" / "finetune.py")
    config.update({"folds": 3, "fold_seed": seed, "validation": 0.0})
    _, first = np.unique(index.recordings, return_index=True)
    labels = np.unique(index.labels[first], return_inverse=True)[1]
    probed, _ = probes._divide(labels, index.subjects[first], 3, None, seed)
    for fold, (_, test) in enumerate(probed):
        config.fold = fold
        tuned = set(tasks.divide(index, config).test.subjects)
        named = folds.subjects_of(f"{prepared}:{fold}/3@{seed}")
        assert tuned == named == set(index.subjects[first][test])


def test_own_splits_and_own_folds():
    subjects = np.array(list("aabbccdd"))
    splits = np.array(["train", "train", "test", "test", "validation", "validation", "x", "x"])
    ((train, test),) = folds.own_split(subjects, splits)
    assert train.tolist() == [0, 1, 4, 5] and test.tolist() == [2, 3]
    splits = np.array([f"fold{n}" for n in (1, 1, 2, 2, 10, 10, 2, 2)])
    parts = folds.own_split(subjects, splits)
    assert [test.tolist() for _, test in parts] == [[0, 1], [2, 3, 6, 7], [4, 5]]
    for train, test in parts:
        assert sorted([*train, *test]) == list(range(8))
    with pytest.raises(UserError, match="as 'a'"):
        folds.own_split(np.array(list("abbaccdd")), splits)
