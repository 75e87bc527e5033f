"""Turns recordings into a prepared dataset: decodes, cuts, counts and writes."""

import collections
import concurrent.futures
import csv
import dataclasses
import functools
import hashlib
import itertools
import json
import multiprocessing
import pathlib
import re
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from cryjax import __version__
from cryjax.command.errors import UserError
from cryjax.command.progress import Progress
from cryjax.data import cutting, duplicates, guard, records, writing
from cryjax.data.decode import Unusable, to_int16
from cryjax.data.manifest import Row
from cryjax.data.recording import Account, Recording, Tally
from cryjax.data.synthetic import Clip

_AHEAD = 4  # files in flight per worker
_SHOWN = 6  # labels per split
_SHOWN_CHARACTERS = 40  # of each


class NoneUsable(UserError):
    """No recording can be used."""


# A recording's number in the input, and what to make it from.
Item = tuple[int, Row | Clip]


def cut(
    recording: Recording, sample_rate: int, segment_seconds: float
) -> list[tuple[str, dict[str, Any]]]:
    """The examples of a recording, one per segment, each with the key that TFDS sorts by."""
    if recording.audio is None:
        return []
    pieces = cutting.segments(
        [recording.audio],
        round(segment_seconds * sample_rate),
        round(cutting.SHORTEST_TAIL_SECONDS * sample_rate),
    )
    return [
        writing.keyed(
            {
                "audio": audio,
                "label": recording.label,
                "subject": recording.subject_id,
                "recording": recording.number,
                "segment": segment,
            }
        )
        for segment, audio in enumerate(pieces)
    ]


_own = threading.local()


def _decoder() -> guard.Decoder:
    """This thread's decoder; its process exits when the pipe closes."""
    if not hasattr(_own, "decoder"):
        _own.decoder = guard.Decoder()
    return _own.decoder


def make(item: Item, sample_rate: int) -> Recording:
    """Decodes the file of a manifest's row, or renders a synthetic clip."""
    number, source = item
    if isinstance(source, Clip):
        audio = to_int16(source.render(sample_rate))
        return Recording(number, audio, source.label, source.subject)
    recording = Recording(number, None, source.label, source.subject, alone=source.alone)
    try:
        audio = _decoder().decode(source.path, sample_rate)
    except Unusable as error:
        return dataclasses.replace(recording, reason=str(error))
    return dataclasses.replace(recording, audio=audio, rate=_decoder().own_rate)


def _pool(items: Sequence[Item], workers: int) -> concurrent.futures.Executor:
    """Threads for files, which are decoded in separate processes; processes for synthesis."""
    if isinstance(items[0][1], Clip):
        # Not forked: the parent has threads.
        context = multiprocessing.get_context("spawn")
        # Ctrl-C is for the parent to report.
        return concurrent.futures.ProcessPoolExecutor(
            workers, context, signal.signal, (signal.SIGINT, signal.SIG_IGN)
        )
    return concurrent.futures.ThreadPoolExecutor(workers)


def recordings(items: Sequence[Item], sample_rate: int, workers: int) -> Iterator[Recording]:
    """Makes recordings in parallel, in order, a bounded number ahead of the reader."""
    work = functools.partial(make, sample_rate=sample_rate)
    if workers <= 1:
        yield from map(work, items)
        return
    with _pool(items, workers) as pool:
        waiting: collections.deque = collections.deque()
        remaining = iter(items)
        for item in itertools.islice(remaining, workers * _AHEAD):
            waiting.append(pool.submit(work, item))
        while waiting:
            yield waiting.popleft().result()
            for item in itertools.islice(remaining, 1):
                waiting.append(pool.submit(work, item))


class Preparation:
    """Turns recordings into a prepared dataset and counts them.

    Args:
      sample_rate: in hertz.
      segment_seconds: maximum length of an example.
      inputs: what the dataset is made from, to recognise it by.
      synthetic: whether the audio is generated rather than recorded.
      subject_key: fingerprint of the key of `data.subjects`; '' if subjects keep their names.
      alike: number of subjects whose names differ from another's in spelling only.
      shards: files per split; None lets TFDS choose by size.
    """

    def __init__(
        self,
        sample_rate: int,
        segment_seconds: float,
        *,
        inputs: Mapping[str, Any],
        synthetic: bool,
        subject_key: str = "",
        alike: int = 0,
        shards: int | None = None,
    ):
        self.sample_rate = sample_rate
        self.segment_seconds = segment_seconds
        self._inputs = inputs
        self._synthetic = synthetic
        self._subject_key = subject_key
        self._alike = alike
        self._shards = shards
        self._accounts: dict[int, tuple[str, Account]] = {}  # number -> split and account

    def count(self, split: str, account: Account) -> None:
        """Counts a recording of a split; a repeat replaces the entry."""
        self._accounts[account.number] = split, account

    def _examples(
        self, split: str, recordings: Iterable[Recording], progress: Progress
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for recording in recordings:
            progress.update()
            examples = cut(recording, self.sample_rate, self.segment_seconds)
            self.count(split, Account.of(recording, examples))
            yield from examples

    def run(
        self,
        directory: pathlib.Path,
        streams: Mapping[str, Iterable[Recording]],
        *,
        total: int | None,
    ) -> dict[str, Any]:
        """Writes the dataset.

        Args:
          directory: to create.
          streams: split -> recordings.
          total: how many recordings there are, for the progress bar.

        Returns:
          The content of `prepared.json`.

        Raises:
          NoneUsable: if no recording can be used.
        """
        with (
            writing.Writer(directory) as writer,
            Progress("recording", total, unit="recordings") as progress,
        ):
            examples = {
                split: self._examples(split, recordings, progress)
                for split, recordings in streams.items()
            }
            return self.finish(writer, self.write(writer, examples))

    def write(self, writer: writing.Writer, splits: Mapping[str, Any], **beam: Any) -> pathlib.Path:
        """Writes the examples of splits by `writing.Writer.write`."""
        if not splits:
            raise self._none(account.reason for _, account in self._accounts.values())
        return writer.write(splits, shards=self._shards, **beam)

    def _none(self, reasons: Iterable[str]) -> NoneUsable:
        common = collections.Counter(reasons).most_common(3)
        reasons = "; ".join(f"{n} x {reason}" for reason, n in common)
        return NoneUsable(f"none of {len(self._accounts)} recordings can be used ({reasons})")

    def finish(self, writer: writing.Writer, written: pathlib.Path) -> dict[str, Any]:
        """Removes duplicates, adds the counts, and moves the dataset to its final place.

        Raises:
          NoneUsable: if no recording is left.
        """
        counted = [self._accounts[number] for number in sorted(self._accounts)]
        copies, contradicting = duplicates.find(account for _, account in counted)
        skipped = {account.number: account.reason for _, account in counted if account.reason}
        skipped |= copies
        used = [(split, account) for split, account in counted if account.number not in skipped]
        if not used:
            raise self._none(skipped.values())
        tallies: dict[str, Tally] = collections.defaultdict(Tally)
        content = hashlib.sha256()
        for split, account in used:
            tallies[split].add(account)
            held = account.number, split, account.label, account.subject, account.digest
            content.update(json.dumps(held).encode() + b"\n")
        low = collections.Counter(
            account.rate for _, account in used if 0 < account.rate < self.sample_rate
        )
        if copies:
            # Copies are known only now, across all splits and workers. Reading and writing the
            # records again takes little time compared with decoding.
            written = writer.write_again(written, tallies, copies, shards=self._shards)
        info = {
            "version": __version__,
            "sample_rate": self.sample_rate,
            "segment_seconds": self.segment_seconds,
            "synthetic": self._synthetic,
            "subject_key": self._subject_key,
            "inputs": self._inputs,
            "skipped": len(skipped),
            "reasons": dict(collections.Counter(map(_kind, skipped.values())).most_common()),
            "low_rates": {str(rate): count for rate, count in sorted(low.items())},
            "contradicting": contradicting,
            "content": content.hexdigest(),
            "alike": self._alike,
            "alone": sum(account.alone for _, account in used),
            "labels": sorted(set().union(*(tally.labels for tally in tallies.values()))),
            "splits": {s: tally.summary(self.sample_rate) for s, tally in tallies.items()},
        }
        with (written / "skipped.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(["recording", "reason"])  # no path: it may name the subject
            table.writerows(sorted(skipped.items()))
        writer.finish(written, info)
        return info


def _kind(reason: str) -> str:
    """Replaces the numbers in a reason by 'N', as they differ between recordings."""
    return re.sub(r"[0-9]+(\.[0-9]+)?", "N", reason)


def fingerprint(rows: Sequence[Row]) -> str:
    """sha256 over the rows and, where files exist, their sizes and modification times."""
    digest, separator = hashlib.sha256(b"["), b""  # same digest as of the whole JSON list
    for row in rows:
        try:
            status = row.path.stat()
            file = [status.st_size, status.st_mtime_ns]
        except (OSError, ValueError):  # ValueError for a path that no file can have
            file = None
        described = [row.name, row.label, row.subject, row.split, file]
        digest.update(separator + json.dumps(described).encode())
        separator = b", "
    digest.update(b"]")
    return digest.hexdigest()


def already_done(directory: pathlib.Path, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the info of a dataset made from the same inputs, or None if there is none yet.

    Raises:
      UserError: if the folder holds something else.
    """
    info = records.read_info(directory)
    if info is None:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise UserError(f"{directory} exists and is not a prepared dataset; use another folder")
        return None
    inputs = json.loads(json.dumps(inputs))
    changed = [k for k in sorted(inputs | info["inputs"]) if inputs.get(k) != info["inputs"].get(k)]
    if changed:
        raise UserError(
            f"{directory} was prepared from other inputs (different: {', '.join(changed)}); "
            "use another folder, or delete it"
        )
    return info


def _short(label: str) -> str:
    return label if len(label) <= _SHOWN_CHARACTERS else f"{label[: _SHOWN_CHARACTERS - 3]}..."


def summary_table(info: Mapping[str, Any]) -> str:
    """A dataset's contents as a readable table."""
    lines = [f"{'split':<12}{'recordings':>11}{'examples':>10}{'subjects':>10}{'hours':>8}  labels"]
    for split, counts in info["splits"].items():
        labels = sorted(counts["labels"].items(), key=lambda item: -item[1])
        shown = ", ".join(f"{_short(name)} {count}" for name, count in labels[:_SHOWN])
        more = f", and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
        lines.append(
            f"{split:<12}{counts['recordings']:>11}{counts['examples']:>10}"
            f"{counts['subjects']:>10}{counts['hours']:>8.2f}  {shown}{more}"
        )
    return "\n".join(lines)
