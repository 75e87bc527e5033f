"""The batch at a step is a function of (seed, step), however many hosts there are."""

import itertools
import re

import numpy as np
import pytest

from cryjax.data import loader, preparing, records
from cryjax.data.recording import Recording


class Source:
    """`count` clips; clip i is filled with base + i and 5 to 11 samples long."""

    def __init__(self, count, base=0):
        self._count, self._base = count, base

    def __len__(self):
        return self._count

    def __getitem__(self, i):
        return {"audio": np.full(5 + i % 7, self._base + i, np.int16)}


class Watched:
    """A source that remembers what was read."""

    def __init__(self, source):
        self._source, self.read = source, []

    def __len__(self):
        return len(self._source)

    def __getitem__(self, i):
        self.read.append(i)
        return self._source[i]


def take(clips, count, *, batch_size, start=0, process=0, processes=1, **reading):
    batches = loader.Batches(clips, batch_size, **reading).since(start, process, processes)
    return list(itertools.islice(batches, count))


@pytest.fixture
def clips():
    return loader.Clips([(Source(10), 1.0), (Source(20, 100), 3.0)], samples=8, seed=1)


def test_starting_late_gives_the_same_batches(clips):
    whole = take(clips, 6, batch_size=8)
    late = take(clips, 3, batch_size=8, start=3)
    for mine, theirs in zip(late, whole[3:], strict=True):
        np.testing.assert_array_equal(mine["audio"], theirs["audio"])
        np.testing.assert_array_equal(mine["length"], theirs["length"])


def test_a_disk_that_answers_again_loses_nothing(monkeypatch):
    class Ill(Source):
        bad = 2

        def __getitem__(self, i):
            if i == 3 and self.bad:
                self.bad -= 1
                raise OSError(116, "Stale file handle")
            return super().__getitem__(i)

    monkeypatch.setattr(loader, "_PAUSES_SECONDS", (0.0, 0.0))
    for source in (Source(10), Ill(10)):
        (batch,) = take(loader.Clips([(source, 1.0)], samples=8, seed=1), 1, batch_size=10)
        assert sorted(batch["audio"][:, 0]) == list(range(10))
    source.bad = 10**9  # by several threads, that read ahead
    with pytest.raises(OSError, match="Stale"):
        take(loader.Clips([(source, 1.0)], samples=8, seed=1), 1, batch_size=10)


@pytest.mark.parametrize("error", [OSError, RuntimeError])
def test_a_disk_that_is_away_for_a_while_changes_no_share(monkeypatch, error):
    waited = []

    class Ill(Source):
        def __getitem__(self, i):
            if sum(waited) < 25:
                raise error("Stale file handle")
            return super().__getitem__(i)

    monkeypatch.setattr(loader.time, "sleep", waited.append)
    share = {"batch_size": 10, "process": 2, "processes": 5, "threads": 0, "buffer": 0}
    ours, theirs = (
        take(loader.Clips([(source, 1.0)], samples=8, seed=1), 1, **share)[0]["audio"]
        for source in (Ill(10), Source(10))
    )
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_global_batch(clips, processes):
    whole = take(clips, 4, batch_size=8, start=1)
    parts = [
        take(clips, 4, batch_size=8, start=1, process=p, processes=processes)
        for p in range(processes)
    ]
    for n, batch in enumerate(whole):
        joined = np.concatenate([part[n]["audio"] for part in parts])
        np.testing.assert_array_equal(joined, batch["audio"])


@pytest.mark.parametrize("processes", [2, 3])
def test_each_host_reads_only_its_share_of_a_dataset_in_shards(tmp_path, processes):
    audio = np.random.default_rng(0).integers(-999, 999, (24, 100)).astype(np.int16)
    recordings = [Recording(i, audio[i], subject=f"s{i}") for i in range(24)]
    preparing.Preparation(1_000, 1.0, inputs={}, synthetic=False, shards=4).run(
        tmp_path / "data", {"train": recordings}, total=None
    )
    source = records.open_prepared(tmp_path / "data").source("train")

    def epoch(**options):
        """The batches of an epoch, and the examples that were read for them."""
        watched = Watched(source)
        clips = loader.Clips([(watched, 1.0)], samples=50, seed=3)
        # Without reading ahead, into the next epoch.
        return take(clips, 4, batch_size=6, threads=0, buffer=0, **options), watched.read

    whole, read = epoch()
    assert sorted(read) == list(range(24))
    shares = [epoch(process=p, processes=processes) for p in range(processes)]
    parts, reads = zip(*shares, strict=True)
    assert [len(read) for read in reads] == [24 // processes] * processes
    assert sorted(index for read in reads for index in read) == list(range(24))
    for n, batch in enumerate(whole):
        joined = np.concatenate([part[n]["audio"] for part in parts])
        np.testing.assert_array_equal(joined, batch["audio"])


def test_an_epoch_holds_each_example_once_and_epochs_differ():
    clips = loader.Clips([(Source(24), 1.0)], samples=8, seed=0)
    seen = np.concatenate([batch["audio"][:, 0] for batch in take(clips, 6, batch_size=8)])
    for epoch in (seen[:24], seen[24:]):
        assert sorted(epoch) == list(range(24))
    assert not np.array_equal(seen[:24], seen[24:])


def test_weights(clips):
    seen = np.concatenate([batch["audio"][:, 0] for batch in take(clips, 128, batch_size=8)])
    assert abs(np.mean(seen >= 100) - 0.75) < 0.002
    # Shuffled, not in turns: the next is of the same as often as chance has it.
    same = np.mean((seen[1:] >= 100) == (seen[:-1] >= 100))
    assert abs(same - (0.75**2 + 0.25**2)) < 0.06


def test_seeds_differ():
    orders = [
        np.concatenate(
            [
                batch["audio"][:, 0]
                for batch in take(
                    loader.Clips([(Source(24), 1.0)], samples=8, seed=seed), 3, batch_size=8
                )
            ]
        )
        for seed in (0, 1)
    ]
    assert not np.array_equal(*orders)


class Ramps:
    """Clips that count from 0, all of one length."""

    def __init__(self, length, count=6):
        self._clip, self._count = np.arange(length, dtype=np.int16), count

    def __len__(self):
        return self._count

    def __getitem__(self, i):
        return {"audio": self._clip}


def test_short_clips_are_padded():
    batch = loader.Clips([(Ramps(5), 1.0)], samples=8, seed=0).batch(3, 4)
    np.testing.assert_array_equal(batch["audio"], [[0, 1, 2, 3, 4, 0, 0, 0]] * 4)
    assert batch["length"].tolist() == [5] * 4
    assert batch["audio"].dtype == np.int16 and batch["length"].dtype == np.int32


def test_long_clips_are_cut_at_places_of_equal_chance():
    batch = loader.Clips([(Ramps(12), 1.0)], samples=8, seed=0).batch(0, 5000)
    assert set(batch["length"]) == {8}
    starts = batch["audio"][:, 0]
    np.testing.assert_array_equal(batch["audio"], starts[:, None] + np.arange(8))
    # Each of five places a thousand times, to five standard deviations.
    assert np.abs(np.bincount(starts, minlength=5) - 1000).max() < 5 * (1000 * 0.8) ** 0.5
    # An example is cut elsewhere each time, and neighbours are not cut alike.
    assert abs(np.corrcoef(starts[:-1], starts[1:])[0, 1]) < 5 / 5000**0.5


@pytest.mark.parametrize("parts", [(8,), (3, 5), (1,) * 8])
def test_a_clip_is_the_same_in_batches_of_any_size(parts):
    clips = loader.Clips([(Ramps(99), 1.0), (Source(20, 100), 1.0)], samples=8, seed=7)
    whole = clips.batch(40, 8)["audio"]
    firsts = 40 + np.cumsum((0, *parts[:-1]))
    pieces = [
        clips.batch(int(first), size)["audio"] for first, size in zip(firsts, parts, strict=True)
    ]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_cuts_depend_on_the_seed_and_do_not_come_again():
    cuts = {
        (seed, first): tuple(
            loader.Clips([(Ramps(999), 1.0)], samples=8, seed=seed).batch(first, 64)["audio"][:, 0]
        )
        for seed in (0, 1, 8, 2**32)
        for first in (0, 64, 1000, 4096, 2**32)
    }
    assert len(set(cuts.values())) == len(cuts)


def test_cuts_are_those_of_runs_under_way():
    batch = loader.Clips([(Ramps(999), 1.0)], samples=8, seed=5).batch(10**9, 4)
    assert batch["audio"][:, 0].tolist() == [457, 842, 56, 223]


@pytest.mark.parametrize(("threads", "buffer"), [(0, 0), (1, 1), (4, 8), (16, 16)])
def test_threads_do_not_change_batches(clips, threads, buffer):
    for n, batch in enumerate(take(clips, 20, batch_size=8, threads=threads, buffer=buffer)):
        for name, expected in clips.batch(8 * n, 8).items():
            np.testing.assert_array_equal(batch[name], expected)


def test_impossible_batches_are_named(clips):
    with pytest.raises(ValueError, match="size=8 is not a multiple of 3"):
        loader.Batches(clips, 8).since(0, processes=3)

    class Named(Source):
        def __getitem__(self, i):
            return {**super().__getitem__(i), "label": "a"}

    mixed = [(loader.Labelled(Named(4), ("a",)), 1.0), (Source(4), 1.0)]
    with pytest.raises(ValueError, match="some sources of a batch are labelled and some are not"):
        loader.Clips(mixed, samples=8, seed=0).batch(0, 64)


def test_targets_travel_with_their_clips():
    class Named(Source):
        def __getitem__(self, i):
            return {**super().__getitem__(i), "label": ["", "b", "a;c", "c"][i % 4]}

    source = loader.Labelled(Named(40), ("a", "b", "c"))
    batch = take(loader.Clips([(source, 1.0)], samples=12, seed=0), 5, batch_size=8)
    expected = np.array([[0, 0, 0], [0, 1, 0], [1, 0, 1], [0, 0, 1]], np.float32)
    for part in batch:
        assert set(part) == {"audio", "length", "target"}
        np.testing.assert_array_equal(part["target"], expected[part["audio"][:, 0] % 4])


def test_a_batch_is_told_by_its_recordings():
    """As the samples of `batches` at that step say: clip i of a source is filled with base + i."""

    class Numbered(Source):
        def __getitem__(self, i):
            return super().__getitem__(i) | {"recording": self._base + i}

    sources = [(Numbered(10), 1.0), (Numbered(20, 100), 3.0)]
    clips = loader.Clips(sources, samples=5, seed=1)
    batches = take(clips, 3, batch_size=8)
    for step, batch in enumerate(batches):
        said = loader.Batches(clips, 8, ["A", "B:2"]).recordings(step)
        found = {
            name: {int(n) for n in numbers.split(", ")}
            for numbers, name in re.findall(r"([0-9, ]+) of (A|B:2)", said)
        }
        held = set(batch["audio"][:, 0].tolist())
        parts = {"A": {n for n in held if n < 100}, "B:2": {n for n in held if n >= 100}}
        assert found == {name: part for name, part in parts.items() if part}
