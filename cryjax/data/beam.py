"""Preparation on Apache Beam: builds the same dataset on the workers of a cluster.

The launching process lists the recordings, one per line, in the folder where the dataset is built;
workers read these lines, so the job stays small for any manifest. They write the examples through
TFDS, and one account per recording, from which the launching process computes the counts. It reads
audio back only to remove duplicates.

Launcher and workers must see that folder and the recordings under the same paths, and workers need
cryjax. A worker holds one recording, and one shard while writing it; the direct runner holds
everything, so it is for tests and small jobs.
"""

import contextlib
import dataclasses
import io
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners import create_runner

from cryjax.command.errors import UserError
from cryjax.data import preparing, writing
from cryjax.data.manifest import Row
from cryjax.data.preparing import Item, Preparation
from cryjax.data.recording import Account
from cryjax.data.synthetic import Clip


def to_line(item: Item) -> str:
    """An item as a line of ASCII JSON."""
    number, source = item
    return json.dumps([number, dataclasses.asdict(source)], default=str)


def from_line(line: str) -> Item:
    number, fields = json.loads(line)
    if "corpus" in fields:
        return number, Clip(**fields)
    return number, Row(**fields | {"folder": pathlib.Path(fields["folder"])})


class _Make(beam.DoFn):
    """Maps a line to its recording's examples and, as a side output, its account."""

    def __init__(self, sample_rate: int, segment_seconds: float):
        self._sample_rate = sample_rate
        self._segment_seconds = segment_seconds

    def process(self, line: str) -> Iterator[Any]:
        recording = preparing.make(from_line(line), self._sample_rate)
        examples = preparing.cut(recording, self._sample_rate, self._segment_seconds)
        yield from examples
        account = dataclasses.astuple(Account.of(recording, examples))
        yield beam.pvalue.TaggedOutput("accounts", json.dumps(account))


class _Split(beam.PTransform):
    """Makes the keyed examples of a split from a file of lines, and writes the accounts."""

    def __init__(self, items: pathlib.Path, accounts: pathlib.Path, make: _Make):
        super().__init__()
        self._items, self._accounts, self._make = str(items), str(accounts), make

    def expand(self, pipeline: Any) -> beam.PCollection:
        made = (
            pipeline
            | "Read" >> beam.io.ReadFromText(self._items)
            | "Spread" >> beam.Reshuffle()  # else the worker that reads the lines does it all
            | "Make" >> beam.ParDo(self._make).with_outputs("accounts", main="examples")
        )
        _ = made.accounts | "Account" >> beam.io.WriteToText(self._accounts)
        return made.examples


def open_runner(name: str, options: Sequence[str]) -> dict[str, Any]:
    """Returns a runner and its options as TFDS expects them.

    Args:
      name: Beam's name for it, or a full class name.
      options: each 'key=value' or 'key'.

    Raises:
      UserError: if Beam rejects either, or a package is missing.
    """
    parsed = PipelineOptions([f"--{option}" for option in options])
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            parsed.get_all_options()
    except SystemExit:
        reason = printed.getvalue().strip().rpartition("error: ")[2]
        raise UserError(f"--beam_options={','.join(options)}: {reason}") from None
    try:
        runner = create_runner(name)
    except (AttributeError, ImportError, ValueError) as error:
        raise UserError(f"--beam_runner={name}: {error}") from error
    return {"beam_runner": runner, "beam_options": parsed}


def run(
    preparation: Preparation,
    directory: pathlib.Path,
    items: Mapping[str, Sequence[Item]],
    runner: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes the dataset.

    Args:
      preparation: of the dataset.
      directory: to create.
      items: split -> items to make recordings from.
      runner: from `open_runner`.

    Returns:
      The content of `prepared.json`.

    Raises:
      preparing.NoneUsable: if no recording can be used.
    """
    make = _Make(preparation.sample_rate, preparation.segment_seconds)
    with writing.Writer(directory) as writer:
        splits = {}
        for split, part in items.items():
            # TFDS rejects an empty split, but only on a worker.
            if not _any_usable(preparation, split, part):
                continue
            listed = writer.partial / f"{split}.items"
            with listed.open("w", encoding="ascii") as lines:
                lines.writelines(f"{to_line(item)}\n" for item in part)
            splits[split] = _Split(listed, writer.partial / f"{split}.accounts", make)
        written = preparation.write(writer, splits, **runner)
        for split in splits:
            for file in writer.partial.glob(f"{split}.accounts-*"):
                with file.open(encoding="ascii") as lines:
                    for line in lines:
                        preparation.count(split, Account(*json.loads(line)))
        return preparation.finish(writer, written)


def _any_usable(preparation: Preparation, split: str, items: Sequence[Item]) -> bool:
    """Whether a split has a usable recording; any before the first are counted as skipped."""
    for item in items:
        recording = preparing.make(item, preparation.sample_rate)
        if recording.audio is not None:
            return True
        preparation.count(split, Account.of(recording, []))
    return False
