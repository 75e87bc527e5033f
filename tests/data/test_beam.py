"""On Apache Beam's direct runner the same dataset comes out as without Beam."""

import csv
import dataclasses
import json
import pathlib

import numpy as np
import pytest
import soundfile

import programs
from cryjax.command.errors import UserError
from cryjax.data import preparing, records
from cryjax.data.manifest import Row
from cryjax.data.recording import Account, Recording
from cryjax.data.synthetic.clips import of_cries

pytest.importorskip("apache_beam", reason='Apache Beam is missing: pip install "cryjax[beam]"')

from cryjax.data import beam

RATE = 8_000
# What the direct runner is in Python: it looks for no other to download.
RUNNER = "FnApiRunner"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """24 recordings in two splits, one of them long; an unusable one in each and in a third.

    And copies: one of the same subject, two that contradict each other in two splits.
    """
    folder = tmp_path_factory.mktemp("recordings")
    # The first has a name that CSV and JSON have to escape.
    rows = [('no\n"ä".wav', "pain", "s9", "train"), ("silent.wav", "pain", "s0", "test")]
    soundfile.write(folder / "silent.wav", np.zeros(RATE), RATE)
    for i in range(24):
        samples = np.random.default_rng(i).normal(size=RATE // 2 * (9 if i == 5 else 1) + i) * 0.1
        soundfile.write(folder / f"{i}.wav", samples, RATE)
        label, split = ("pain;ä", "")[i % 2], "test" if i < 8 else "train"
        rows.append((f"{i}.wav", label, f"s{i // 2}", split))
    rows.append(("gone.wav", "other", "s99", "valid"))
    for name, split in (("one", "train"), ("other", "test")):
        soundfile.write(folder / f"{name}.flac", samples[:4_000], RATE)
        rows.append((f"{name}.flac", "pain", name, split))
    soundfile.write(folder / "copy.flac", soundfile.read(folder / "23.wav", dtype="int16")[0], RATE)
    rows.append(("copy.flac", *rows[-4][1:]))
    with (folder / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label", "subject", "split"), *rows])
    return folder / "manifest.csv"


def read(directory):
    """Split -> its examples in order, the audio as bytes."""
    prepared = records.open_prepared(directory)
    return {
        split: [example | {"audio": example["audio"].tobytes()} for example in source]
        for split in prepared.splits
        for source in [prepared.source(split)]
    }


def assert_same(one, other):
    assert read(one) == read(other)
    for file in ("prepared.json", "skipped.csv", "features.json"):
        assert (one / file).read_bytes() == (other / file).read_bytes()
    names = [sorted(path.name for path in folder.iterdir()) for folder in (one, other)]
    assert names[0] == names[1]


def test_the_program_makes_the_same_dataset(manifest, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # Beam keeps things there
    common = (
        f"--manifest={manifest}",
        f"--sample_rate={RATE}",
        "--segment_seconds=1",
        "--shards=2",
    )
    programs.succeed("prepare", *common, f"--out={tmp_path / 'local'}", "--workers=1")
    done = programs.succeed(
        "prepare",
        *common,
        f"--out={tmp_path / 'beam'}",
        "--beam_runner=DirectRunner",
        # Otherwise it tries to download Prism, and where it can it runs on that.
        f"--beam_options=direct_num_workers=1,prism_location={tmp_path / 'none'}",
    )
    assert_same(tmp_path / "local", tmp_path / "beam")
    prepared = records.open_prepared(tmp_path / "beam")
    # 4.5 s by 1 s, of which the rest is dropped.
    assert prepared.splits == {"train": 16, "test": 7 + 4}
    assert prepared.label_names == ("pain", "ä")
    assert len(list((tmp_path / "beam").glob("*array_record*-of-00002"))) == 4
    assert "skipped 6 recordings" in done.stdout and "of these, 2 are" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} - {"home"} == {"local", "beam"}


def prepare(directory, items, runner=None):
    """Without Beam where there is no runner."""
    preparation = preparing.Preparation(RATE, 1.5, inputs={"of": "a test"}, synthetic=True)
    if runner is None:
        streams = {split: preparing.recordings(part, RATE, 1) for split, part in items.items()}
        return preparation.run(directory, streams, total=None)
    return beam.run(preparation, directory, items, beam.open_runner(runner, []))


def test_synthetic_clips(tmp_path):
    items = list(enumerate(of_cries(6, 0)))
    assert prepare(tmp_path / "local", {"a": items}) == prepare(
        tmp_path / "beam", {"a": items}, RUNNER
    )
    assert_same(tmp_path / "local", tmp_path / "beam")


def test_nothing_usable_is_refused_and_leaves_nothing(tmp_path):
    rows = [Row(tmp_path, name, "", name, "") for name in ("a.wav", "b.wav")]
    with pytest.raises(UserError, match=r"none of 2 recordings can be used \(2 x no such file\)"):
        prepare(tmp_path / "data", {"train": list(enumerate(rows))}, RUNNER)
    assert not list(tmp_path.iterdir())


def test_a_worker_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def make(item, sample_rate, make=preparing.make):
        if item[0] == 2:
            raise RuntimeError("a worker fails")
        return make(item, sample_rate)

    monkeypatch.setattr(preparing, "make", make)
    with pytest.raises(RuntimeError, match="a worker fails"):
        prepare(tmp_path / "data", {"train": list(enumerate(of_cries(3, 0)))}, RUNNER)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "source",
    [
        Row(pathlib.Path("/a b/\udcff\n.wav"), "ä\r\n\u2028.wav", "x;y", '"', "train"),
        of_cries(3, 5)[2],
    ],
)
def test_an_item_is_a_line(source):
    line = beam.to_line((7, source))
    assert line.isascii() and line.splitlines() == [line]
    assert beam.from_line(line) == (7, source)


def test_an_unknown_runner_or_a_wrong_option(capfd):
    with pytest.raises(UserError, match="--beam_runner=NoSuch: Unexpected pipeline runner"):
        beam.open_runner("NoSuch", [])
    with pytest.raises(UserError, match=r"--beam_options=direct_num_workers=two: .*invalid int"):
        beam.open_runner(RUNNER, ["direct_num_workers=two"])
    assert "usage" not in capfd.readouterr().err


def test_counts_survive_the_way_through_a_line():
    recording = Recording(3, np.ones(20, np.int16), "a;b", "s")
    account = Account.of(recording, preparing.cut(recording, 10, 1.0))
    assert (account.examples, account.samples) == (2, 20)
    assert account == Account(*json.loads(json.dumps(dataclasses.astuple(account))))
