"""The index of a prepared dataset, and the examples that it chooses."""

import json

import numpy as np

from cryjax.data.records import open_prepared, read_info


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


def test_a_dataset_is_the_same_when_it_is_prepared_again_of_a_copy_of_the_files(prepared, tmp_path):
    def changed(**parts):
        info = read_info(prepared)
        info["inputs"] |= parts.pop("inputs", {})
        (tmp_path / "prepared.json").write_text(json.dumps(info | parts))
        return open_prepared(tmp_path).fingerprint

    whole = open_prepared(prepared).fingerprint
    assert whole == changed(version="9.9", inputs={"manifest": "other times of change"})
    assert whole != changed(inputs={"seed": 1})
    assert whole != changed(splits={"train": {"examples": 59}})
