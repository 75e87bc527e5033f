"""The index of a prepared dataset, and the examples that it chooses."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from cryjax.command.errors import Unavailable, UserError
from cryjax.data.records import Source, open_prepared, read_info


@pytest.fixture
def copied(prepared, tmp_path):
    """A copy of the dataset, to damage."""
    return pathlib.Path(shutil.copytree(prepared, tmp_path / "copied"))


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


@pytest.mark.parametrize("content", ["", "junk", "PK\3\4 junk", "cut", "keys", "lengths"])
def test_a_damaged_index_is_made_anew(copied, content):
    dataset, file = open_prepared(copied), copied / "index-train.npz"
    whole = dataset.index("train")
    if content == "cut":
        file.write_bytes(file.read_bytes()[:-300])
    elif content == "keys":
        np.savez(file, rows=whole.rows)
    elif content == "lengths":
        np.savez(file, **vars(whole) | {"labels": whole.labels[:3]})
    else:
        file.write_text(content)
    np.testing.assert_array_equal(dataset.index("train").labels, whole.labels)
    with np.load(file) as kept:
        np.testing.assert_array_equal(kept["labels"], whole.labels)


@pytest.mark.parametrize("content", ["", '{"a": 1}', "[]", "\xff", "splits", "labels"])
def test_a_damaged_description_is_named(copied, content):
    if content == "splits":
        content = json.dumps(read_info(copied) | {"splits": {"train": 1}})
    elif content == "labels":
        content = json.dumps({**read_info(copied), "labels": None})
    (copied / "prepared.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"copied/prepared\.json: damaged \(.*\); prepare .* again"):
        open_prepared(copied)


@pytest.mark.parametrize("size", [None, 0, 5_000, -10])
def test_a_file_of_records_that_is_missing_or_cut_short_is_named(copied, size):
    (file,) = copied.glob("*.array_record-*")
    if size is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match=rf"{file.name}: damaged \(.*\); prepare .* again"):
        open_prepared(copied).source("train")


def test_damage_that_reading_finds_is_named(copied):
    (copied / "index-train.npz").unlink(missing_ok=True)
    (file,) = copied.glob("*.array_record-*")
    content = bytearray(file.read_bytes())
    content[1_000:3_000] = bytes(2_000)
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"copied: damaged \(.*\); prepare .* again"):
        open_prepared(copied).index()
    (copied / "dataset_info.json").write_text("")
    with pytest.raises(UserError, match=r"copied: damaged \(.*\); prepare .* again"):
        open_prepared(copied).source("train")


def test_a_file_server_that_is_away_is_no_damage(copied, monkeypatch):
    def away(*_):  # as ArrayRecord says it
        raise RuntimeError("read() failed: Stale file handle; reading train.array_record")

    (copied / "index-train.npz").unlink(missing_ok=True)
    monkeypatch.setattr(Source, "__getitem__", away)
    with pytest.raises(Unavailable, match=r"copied: cannot be read \(.*Stale file handle"):
        open_prepared(copied).index()


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
