"""What is written is what is read, bit for bit; what is counted is what is there."""

import collections
import csv
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds

from cryjax.command.errors import UserError
from cryjax.data import preparing, records, writing
from cryjax.data.manifest import Row
from cryjax.data.recording import Recording
from cryjax.data.synthetic.clips import of_cries

RATE = 1_000


def audio(samples, seed=0):
    return np.random.default_rng(seed).integers(-32768, 32768, samples).astype(np.int16)


# By 2 s segments: exactly one; one and a tail that stays; one and a tail that goes; short and
# alone; unusable; long.
RECORDINGS = {
    "train": [
        Recording(0, audio(2_000, 1), "pain", "ä"),
        Recording(1, audio(3_000, 2), "pain;hunger", "ä"),
        Recording(2, audio(2_999, 3), "hunger", "s2"),
        Recording(3, None, "pain", "s9", "silent"),
        Recording(4, audio(60, 4), "", "s3"),
    ],
    "test": [
        Recording(5, None, "rare", "s8", "no such file"),
        Recording(6, audio(10_500, 5), "hunger", "s4"),
    ],
}


def run(directory, streams=RECORDINGS, segment_seconds=2.0, rate=RATE, shards=None):
    preparation = preparing.Preparation(
        rate, segment_seconds, inputs={"of": "a test"}, synthetic=False, shards=shards
    )
    return preparation.run(
        directory, {split: iter(part) for split, part in streams.items()}, total=None
    )


def read(prepared, split):
    source = prepared.source(split)
    return [source[i] for i in range(len(source))]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prepared") / "data"
    assert run(directory) == json.loads((directory / "prepared.json").read_text("utf-8"))
    return directory


@pytest.fixture(scope="module")
def prepared(directory):
    return records.open_prepared(directory)


@pytest.mark.parametrize("split", RECORDINGS)
def test_what_is_read_is_what_was_written(prepared, split):
    written = [recording for recording in RECORDINGS[split] if recording.audio is not None]
    pieces = collections.defaultdict(dict)
    for example in read(prepared, split):
        assert example["audio"].dtype == np.int16
        pieces[example["recording"]][example["segment"]] = example
    assert len(pieces) == len(written)
    # TFDS shuffles what it writes, so a recording is found by its first segment.
    for of_one in pieces.values():
        assert sorted(of_one) == list(range(len(of_one)))
        joined = np.concatenate([of_one[i]["audio"] for i in sorted(of_one)])
        (source,) = [r for r in written if np.array_equal(r.audio[: len(joined)], joined)]
        assert 0 <= len(source.audio) - len(joined) < RATE
        for example in of_one.values():
            assert (example["label"], example["subject"]) == (source.label, source.subject)


def test_a_recording_keeps_its_number(prepared):
    numbers = [{example["recording"] for example in read(prepared, s)} for s in RECORDINGS]
    assert numbers == [{0, 1, 2, 4}, {6}]


def test_any_example_can_be_read_at_any_time(prepared):
    source = prepared.source("test")
    forwards = [source[i]["audio"] for i in range(len(source))]
    for i in (3, 0, len(source) - 1, 3, 1):
        np.testing.assert_array_equal(source[i]["audio"], forwards[i])
    with pytest.raises(IndexError):
        source[len(source)]
    assert len(list(source)) == len(source)


def test_counts_are_true(directory, prepared):
    assert prepared.sample_rate == RATE and prepared.segment_seconds == 2.0
    assert prepared.label_names == ("hunger", "pain") and not prepared.synthetic
    assert prepared.splits == {"train": 5, "test": 5}
    train = prepared.counts["train"]
    assert (train["recordings"], train["subjects"]) == (4, 3)
    assert train["labels"] == {"hunger": 2, "pain": 2}
    for split, examples in prepared.splits.items():
        found = read(prepared, split)
        counts = prepared.counts[split]
        assert len(found) == examples == counts["examples"]
        assert counts["recordings"] == len({example["recording"] for example in found})
        assert counts["subjects"] == len({example["subject"] for example in found})
        hours = sum(len(example["audio"]) for example in found) / RATE / 3600
        assert counts["hours"] == pytest.approx(hours, abs=1e-4)
    assert json.loads((directory / "prepared.json").read_text("utf-8"))["skipped"] == 2


def test_a_table_shows_the_start_of_a_long_label():
    counts = {"recordings": 2, "examples": 2, "subjects": 1, "hours": 0.1}
    counts["labels"] = {"x" * 3_000: 1, "y" * 40: 1}
    row = preparing.summary_table({"splits": {"train": counts}}).splitlines()[1]
    assert row.endswith(f"  {'x' * 37}... 1, {'y' * 40} 1")


def test_what_was_skipped_is_listed(directory):
    with (directory / "skipped.csv").open(encoding="utf-8", newline="") as file:
        header, *listed = csv.reader(file)
    assert header == ["recording", "reason"]
    assert listed == [["3", "silent"], ["5", "no such file"]]


def test_nothing_else_is_left(directory):
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]
    suffixes = {path.suffix for path in directory.rglob("*.*") if "array_record" not in path.name}
    assert suffixes == {".json", ".csv"}


def test_a_split_without_a_usable_recording_is_not_there(tmp_path):
    streams = RECORDINGS | {"valid": [Recording(7, None, "x", "s", "silent")], "none": []}
    run(tmp_path / "data", streams)
    prepared = records.open_prepared(tmp_path / "data")
    assert set(prepared.splits) == {"train", "test"} and "x" not in prepared.label_names


def test_what_is_there_twice_might_as_well_not_have_been(tmp_path, directory):
    first, second, _, *_ = RECORDINGS["train"]
    last = RECORDINGS["test"][1]
    copies = {
        "train": [
            *RECORDINGS["train"],
            dataclasses.replace(first, number=10),
            # With one that disagrees in the other split.
            Recording(11, audio(2_500, 9), "pain", "s5"),
        ],
        "test": [
            *RECORDINGS["test"],
            dataclasses.replace(last, number=12, subject="12.wav", alone=True),
            Recording(13, audio(2_500, 9), "pain", "s6"),
        ],
        # Which holds nothing else.
        "valid": [Recording(14, second.audio, second.label, second.subject)],
    }
    info = run(tmp_path / "data", copies)
    assert by_recording(tmp_path / "data") == by_recording(directory)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert info["contradicting"] == 2 and info["skipped"] == 2 + 5
    with (tmp_path / "data" / "skipped.csv").open(newline="") as file:
        assert list(csv.reader(file))[3:] == [
            ["10", "the same audio as recording 0"],
            ["11", "the same audio as recording 13, with another subject"],
            ["12", "the same audio as recording 6"],
            ["13", "the same audio as recording 11, with another subject"],
            ["14", "the same audio as recording 1"],
        ]
    prepared = records.open_prepared(tmp_path / "data")
    wanted = json.loads((directory / "prepared.json").read_text("utf-8"))
    assert prepared.splits == {"train": 5, "test": 5} and prepared.counts == wanted["splits"]


def test_nothing_but_contradictions_is_refused_and_leaves_nothing(tmp_path):
    stream = [Recording(number, audio(500), "x", f"s{number}") for number in range(2)]
    with pytest.raises(UserError, match=r"none of 2 recordings.*1 x the same audio as recording 1"):
        run(tmp_path / "data", {"train": stream})
    assert not list(tmp_path.iterdir())


def test_nothing_usable_is_refused_and_leaves_nothing(tmp_path):
    bad = [Recording(i, None, reason="silent") for i in range(3)]
    bad.append(Recording(3, None, reason="no such file"))
    with pytest.raises(UserError, match=r"none of 4 recordings.*3 x silent; 1 x no such file"):
        run(tmp_path / "data", {"train": bad})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("after", [0, 1, 6])
def test_an_interrupted_preparation_leaves_nothing_and_can_be_repeated(tmp_path, after):
    def stream():
        for i in range(after):
            yield Recording(i, audio(2_000, i), "x", f"s{i}")
        raise KeyboardInterrupt

    streams = {"test": [Recording(9, audio(2_000), "x", "s")], "train": stream()}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "data", streams)
    assert not list(tmp_path.iterdir())
    # What a killed process leaves does not matter either.
    (tmp_path / ".data.partial").mkdir()
    (tmp_path / ".data.partial" / "half").write_text("x")
    run(tmp_path / "data")
    assert records.open_prepared(tmp_path / "data").splits == {"train": 5, "test": 5}
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("shards", [1, 3, 100])
def test_shards_are_as_many_as_asked_for_or_as_examples(tmp_path, directory, shards):
    run(tmp_path / "data", shards=shards)
    for split, examples in records.open_prepared(directory).splits.items():
        files = list((tmp_path / "data").glob(f"recordings-{split}.array_record-*"))
        assert len(files) == min(shards, examples)
    assert by_recording(tmp_path / "data") == by_recording(directory)


def test_no_temporary_folder_is_left_behind(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    run(tmp_path / "data")
    read(records.open_prepared(tmp_path / "data"), "test")
    assert not list((tmp_path / "tmp").iterdir())


def test_two_at_once_do_not_write_one_dataset(tmp_path):
    with writing.Writer(tmp_path / "data") as first:
        (first.partial / "record").touch()
        with (
            pytest.raises(UserError, match="data: another process is writing it"),
            writing.Writer(tmp_path / "data"),
        ):
            pass
        assert (first.partial / "record").exists()
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be created.*another --out"):
        run(tmp_path / "file" / "data")


def test_unknown_split_lists_the_known(prepared):
    with pytest.raises(UserError, match="no split 'valid'; it has test, train"):
        prepared.source("valid")


def test_a_folder_that_is_none(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(
            UserError, match=r"is not a prepared dataset; make one.*cryjax\.prepare"
        ):
            records.open_prepared(folder)


def test_it_can_be_moved_and_is_plain_tfds(directory, tmp_path):
    moved = pathlib.Path(shutil.copytree(directory, tmp_path / "elsewhere"))
    source = records.open_prepared(moved).source("test")
    plain = tfds.builder_from_directory(str(moved)).as_data_source(split="test")
    assert len(source) == len(plain)
    np.testing.assert_array_equal(source[2]["audio"], plain[2]["audio"])


@pytest.fixture
def rows(tmp_path):
    """Rows of a manifest over files, one of which is not there."""
    rows = []
    for i in range(3):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, audio(16_000 + i, i), 16_000)
        rows.append(Row(tmp_path, path.name, f"l{i}", f"s{i}", "train"))
    return [*rows, Row(tmp_path, "none.wav", "", "none.wav", "train")]


def test_a_fingerprint_changes_with_anything_that_matters(tmp_path, rows):
    first = preparing.fingerprint(rows)
    assert preparing.fingerprint(list(rows)) == first
    changed = [
        [dataclasses.replace(rows[0], **{field: "new"}), *rows[1:]]
        for field in ("name", "label", "subject", "split")
    ]
    changed += [rows[:-1], rows[::-1]]
    prints = {first, *map(preparing.fingerprint, changed)}
    soundfile.write(rows[0].path, audio(16_001), 16_000)
    prints.add(preparing.fingerprint(rows))
    soundfile.write(rows[-1].path, audio(16_000), 16_000)
    prints.add(preparing.fingerprint(rows))
    assert len(prints) == 1 + len(changed) + 2
    assert preparing.fingerprint([Row(tmp_path, "nul\0", "", "", "")]) not in prints
    # A file of another time, or only of another size, may hold something else.
    path, before = rows[1].path, preparing.fingerprint(rows)
    time = path.stat().st_mtime_ns
    os.utime(path, ns=(time, time + 1))
    touched = preparing.fingerprint(rows)
    os.truncate(path, 999)
    os.utime(path, ns=(time, time + 1))
    assert len({before, touched, preparing.fingerprint(rows)}) == 3
    # One file under two names is two recordings.
    os.link(path, tmp_path / "link.wav")
    linked = dataclasses.replace(rows[1], name="link.wav")
    assert preparing.fingerprint([linked]) != preparing.fingerprint(rows[1:2])


def test_a_dataset_is_known_by_what_it_holds(directory, tmp_path):
    """Where counts and inputs are the same, too; made again of the same, it is the same."""
    whole = records.open_prepared(directory).fingerprint
    run(tmp_path / "again")
    assert records.open_prepared(tmp_path / "again").fingerprint == whole
    first = RECORDINGS["train"][0]
    others = [dataclasses.replace(first, audio=audio(2_000, 7)), RECORDINGS["train"][2]]
    swapped = [
        dataclasses.replace(first, subject="s2"),
        *RECORDINGS["train"][1:2],
        dataclasses.replace(RECORDINGS["train"][2], subject="ä"),
    ]
    relabelled = [
        dataclasses.replace(one, label=label)
        for one, label in zip(
            RECORDINGS["train"][:3], ("hunger", "pain;hunger", "pain"), strict=True
        )
    ]
    for name, changed in (
        ("audio", others[:1]), ("subjects", swapped), ("labels", relabelled),
    ):  # fmt: skip
        kept = RECORDINGS["train"][len(changed) :]
        run(tmp_path / name, RECORDINGS | {"train": [*changed, *kept]})
        other = records.open_prepared(tmp_path / name)
        assert other.counts == records.open_prepared(directory).counts
        assert other.fingerprint != whole


def test_a_split_is_decoded_when_its_turn_to_be_written_comes(tmp_path):
    """Not all at once: each has a pool of decoders, and benchmarks have ten folds."""
    order = []

    def told(split):
        for recording in RECORDINGS[split]:
            order.append(split)
            yield recording

    preparing.Preparation(RATE, 2.0, inputs={}, synthetic=False).run(
        tmp_path / "data", {split: told(split) for split in RECORDINGS}, total=None
    )
    assert order == ["train"] * 5 + ["test"] * 2


def test_a_dataset_is_known_by_its_inputs(directory, tmp_path):
    assert preparing.already_done(tmp_path / "none", {"of": "a test"}) is None
    assert preparing.already_done(tmp_path, {"of": "a test"}) is None  # empty
    assert preparing.already_done(directory, {"of": "a test"})["sample_rate"] == RATE
    for inputs in ({"of": "another"}, {}, {"of": "a test", "seed": 1}):
        changed = "of" if "seed" not in inputs else "seed"
        with pytest.raises(UserError, match=rf"inputs \(different: {changed}\).*another folder"):
            preparing.already_done(directory, inputs)
    (tmp_path / "mine.txt").touch()
    for taken in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(UserError, match="not a prepared dataset; use another folder"):
            preparing.already_done(taken, {})
    assert (tmp_path / "mine.txt").exists()


def by_recording(directory):
    prepared = records.open_prepared(directory)
    found = [example for split in prepared.splits for example in read(prepared, split)]
    found.sort(key=lambda example: (example["recording"], example["segment"]))
    return [{**example, "audio": example["audio"].tobytes()} for example in found]


def test_workers_do_not_change_what_is_written(tmp_path, rows):
    soundfile.write(rows[1].path, np.zeros(16_000), 16_000)  # silent
    items = list(enumerate([*rows, *of_cries(12, 0)]))
    for workers in (1, 2):
        streams = {
            "train": preparing.recordings(items[:4], 16_000, workers),
            "test": preparing.recordings(items[4:], 16_000, workers),
        }
        run(tmp_path / f"by{workers}", streams, rate=16_000)
    one, two = by_recording(tmp_path / "by1"), by_recording(tmp_path / "by2")
    assert one == two and len(one) >= 14
    skipped = [(tmp_path / f"by{n}" / "skipped.csv").read_bytes() for n in (1, 2)]
    assert skipped[0] == skipped[1] and skipped[0].count(b"\n") == 3
    files = [
        {
            path.name: path.read_bytes()
            for path in (tmp_path / f"by{n}").iterdir()
            if "array_record" in path.name
        }
        for n in (1, 2)
    ]
    assert files[0] == files[1] and len(files[0]) == 2


def test_neither_writing_nor_reading_imports_tensorflow(tmp_path):
    program = """
import sys
import numpy as np
from cryjax.data import loader, preparing, recording, records
audio = np.arange(1000, dtype=np.int16)
recordings = [recording.Recording(i, audio + np.int16(i), "x", "s") for i in range(2)]
preparation = preparing.Preparation(1000, 1.0, inputs={}, synthetic=False)
preparation.run(__import__("pathlib").Path(sys.argv[1]), {"train": recordings}, total=None)
source = records.open_prepared(sys.argv[1]).source("train")
assert sorted(example["audio"].sum() - audio.sum() for example in source) == [0, 1000]
clips = loader.Clips([(source, 1.0)], samples=8, seed=0)
assert next(loader.Batches(clips, 2).since(0))["audio"].shape == (2, 8)
print(*(name for name in ("tensorflow", "torch") if name in sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "data"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_recordings_that_change_splits_make_another_dataset(tmp_path):
    """Of the same counts: who is tested now was trained on before."""
    made = []
    for order in (1, -1):
        pair = [Recording(n, audio(2_000, n), "x", f"s{n}") for n in range(2)][::order]
        run(tmp_path / str(order), {"train": pair[:1], "test": pair[1:]})
        made.append(records.open_prepared(tmp_path / str(order)))
    assert made[0].counts == made[1].counts and made[0].fingerprint != made[1].fingerprint


def test_only_recordings_that_are_used_count_as_of_unknown_subjects(tmp_path):
    stream = [
        Recording(0, audio(2_000), "x", "0.wav", alone=True),
        Recording(1, None, "x", "1.wav", "silent", alone=True),
    ]
    assert run(tmp_path / "data", {"train": stream})["alone"] == 1
