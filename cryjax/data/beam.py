"""Preparation on Apache Beam: the same dataset, made by the workers of a cluster.

The launching process lists the recordings, a line each, in the folder in which the dataset grows;
workers read the lines, so the job itself stays small whatever the manifest. They write the examples
through TFDS and, a line a recording, what became of it; from these lines the launching process
counts. The audio itself is never read back.

Launcher and workers must see that folder and the recordings by the same paths, and workers need
cryjax. A worker holds one recording, and one shard when it writes that; the direct runner is for
tests and small jobs: it holds everything.
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
    """An item as a line of JSON, in ASCII."""
    number, source = item
    return json.dumps([number, dataclasses.asdict(source)], default=str)


def from_line(line: str) -> Item:
    number, fields = json.loads(line)
    if "corpus" in fields:
        return number, Clip(**fields)
    return number, Row(**fields | {"folder": pathlib.Path(fields["folder"])})


class _Make(beam.DoFn):
    """A line -> the examples of its recording and, beside them, its account."""

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
    """The examples of a split with their keys, from the lines of a file; accounts are written."""

    def __init__(self, items: pathlib.Path, accounts: pathlib.Path, make: _Make):
        super().__init__()
        self._items, self._accounts, self._make = str(items), str(accounts), make

    def expand(self, pipeline: Any) -> beam.PCollection:
        made = (
            pipeline
            | "Read" >> beam.io.ReadFromText(self._items)
            | "Spread" >> beam.Reshuffle()  # else the worker that reads the lines makes it all
            | "Make" >> beam.ParDo(self._make).with_outputs("accounts", main="examples")
        )
        _ = made.accounts | "Account" >> beam.io.WriteToText(self._accounts)
        return made.examples


def open_runner(name: str, options: Sequence[str]) -> dict[str, Any]:
    """A runner and its options, as TFDS takes them.

    Args:
      name: as Beam has it, or the full name of a class.
      options: 'key=value' or 'key' each.

    Raises:
      UserError: for one that Beam does not know or that lacks a package.
    """
    parsed = PipelineOptions([f"--{option}" for option in options])
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed.get_all_options()
    except SystemExit:
        reason = said.getvalue().strip().rpartition("error: ")[2]
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
      preparation: of it.
      directory: to make.
      items: split -> what to make recordings of.
      runner: of `open_runner`.

    Returns:
      The content of `prepared.json`.

    Raises:
      UserError: if no recording can be used.
    """
    make = _Make(preparation.sample_rate, preparation.segment_seconds)
    with writing.Writer(directory) as writer:
        splits = {}
        for split, part in items.items():
            # TFDS refuses an empty split, and does so on a worker.
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
    """Whether a split has a recording that can be used; those before it are counted as skipped."""
    for item in items:
        recording = preparing.make(item, preparation.sample_rate)
        if recording.audio is not None:
            return True
        preparation.count(split, Account.of(recording, []))
    return False
