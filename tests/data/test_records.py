"""The index of a prepared dataset, and the examples that it chooses."""

import numpy as np

from cryjax.data.records import open_prepared


def test_index_says_what_the_examples_are(prepared):
    dataset = open_prepared(prepared)
    index, source = dataset.index(), dataset.source("train")
    assert len(index) == len(source) == 60
    for place in (0, 7, 59):
        example = source[place]
        assert index.labels[place] == example["label"]
        assert index.subjects[place] == example["subject"]
        assert index.recordings[place] == example["recording"]
    chosen = index[index.labels == "pain"]
    picked = dataset.at(chosen)
    assert len(picked) == np.sum(index.labels == "pain")
    assert {picked[place]["label"] for place in range(len(picked))} == {"pain"}


def test_index_is_kept_where_it_can_be_and_made_anew_where_it_does_not_fit(prepared):
    dataset = open_prepared(prepared)
    first = dataset.index("train")
    file = prepared / "index-train.npz"
    assert file.is_file()
    stamp = file.stat().st_mtime_ns
    again = dataset.index("train")
    assert file.stat().st_mtime_ns == stamp
    np.testing.assert_array_equal(again.subjects, first.subjects)
    with np.load(file) as kept:
        parts = dict(kept)
    np.savez(file, **{name: x[:10] for name, x in parts.items()})
    assert len(dataset.index("train")) == 60
