"""Prepared datasets: TFDS datasets in ArrayRecord files, read at random without TensorFlow.

The audio is an int16 tensor with byte encoding, not TFDS's `Audio` feature: that one imports
TensorFlow and reads twenty times slower. Beside TFDS's own files lies `prepared.json`.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import hashing
from tensorflow_datasets.core.utils import shard_utils

from cryjax.command import progress
from cryjax.command.errors import UserError
from cryjax.data import tf_example

INFO_FILE = "prepared.json"

FEATURES = tfds.features.FeaturesDict(
    {
        "audio": tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding="bytes"),
        "label": tfds.features.Text(),  # several separated by ';', '' is none
        "subject": tfds.features.Text(),
        "recording": np.int64,  # which recording it is a segment of
        "segment": np.int64,  # which segment
    }
)


def keyed(example: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """An example with the key by which TFDS orders it."""
    return f"{example['recording']}-{example['segment']}", example


class _Info(tfds.core.DatasetInfo):
    """Not looked for in TFDS's bucket, which would leave a temporary folder behind."""

    def initialize_from_bucket(self) -> None:
        pass


def _write_shard(path: os.PathLike[str], examples: Iterable[bytes]) -> None:
    """Writes records as they are.

    TFDS compresses them, which makes audio a tenth smaller and reading it four times slower.
    """
    writer = array_record_module.ArrayRecordWriter(os.fspath(path), "group_size:1,uncompressed")
    for record in examples:
        writer.write(record)
    writer.close()


class _ExampleWriter(tfds.core.ExampleWriter):
    """`_write_shard` on Beam's workers."""

    def write(self, path: os.PathLike[str], examples: Iterable[tuple[Any, bytes]]) -> None:
        _write_shard(path, (record for _, record in examples))


class Recordings(tfds.core.GeneratorBasedBuilder):
    """Describes a dataset, and has Beam write examples that are made elsewhere."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, splits: Mapping[str, Any], **options: Any):
        self._splits = splits
        super().__init__(file_format="array_record", **options)

    def _info(self) -> tfds.core.DatasetInfo:
        return _Info(builder=self, features=FEATURES)

    def _split_generators(self, _: Any) -> dict[str, Any]:
        return dict(self._splits)

    def _generate_examples(self) -> None:
        raise NotImplementedError("examples come with their splits")

    def _example_writer(self) -> _ExampleWriter:
        return _ExampleWriter(self.info.file_format)


class _Shards(shard_utils.ShardConfig):
    """Never more shards than examples, which TFDS refuses when all has been decoded."""

    def get_number_shards(
        self, total_size: int, num_examples: int, uses_precise_sharding: bool = True
    ) -> int:
        wanted = super().get_number_shards(total_size, num_examples, uses_precise_sharding)
        return min(wanted, num_examples)


class _Config(tfds.download.DownloadConfig):
    def get_shard_config(self) -> _Shards:
        return _Shards(num_shards=self.num_shards)


def _write_split(
    template: tfds.core.ShardedFileTemplate,
    examples: Iterable[tuple[str, dict[str, Any]]],
    shards: int | None,
    spill: pathlib.Path,
) -> tfds.core.SplitInfo:
    """Writes the shards of a split, ordered by a hash of the keys, as TFDS orders them.

    TFDS would keep up to a gigabyte in memory, and needs TensorFlow for a split of more. Here every
    record goes to a file on the way, and memory holds where in it.

    Args:
      template: of the shards' names.
      examples: with their keys.
      shards: as for `Writer.write`.
      spill: the file on the way, as large as the split.
    """
    hasher, places, size = hashing.Hasher(template.split), [], 0
    with spill.open("w+b") as file:
        for key, example in examples:
            record = FEATURES.serialize_example(example)
            places.append((hasher.hash_key(key), size, len(record)))
            size += len(record)
            file.write(record)
        places.sort()

        def read(start: int, end: int) -> Iterator[bytes]:
            for _, place, length in places[start:end]:
                file.seek(place)
                yield file.read(length)
                bar.update()

        count = _Shards(num_shards=shards).get_number_shards(size, len(places))
        ends = [0, *shard_utils.get_shard_boundaries(len(places), count)]
        named = zip(template.sharded_filepaths(count), itertools.pairwise(ends), strict=True)
        what = f"writing {template.split}:"
        with progress.Progress(what, len(places), unit="segments", stays=False) as bar:
            for path, stretch in named:
                _write_shard(path, read(*stretch))
    spill.unlink()
    lengths = [end - start for start, end in itertools.pairwise(ends)]
    return tfds.core.SplitInfo(
        name=template.split, shard_lengths=lengths, num_bytes=size, filename_template=template
    )


class Writer:
    """Writes a prepared dataset beside its final place and renames it there when it is whole.

    Attributes:
      directory: the final place.
      partial: a folder for anything else that is written on the way, and goes.
    """

    def __init__(self, directory: pathlib.Path):
        self.directory = directory.absolute()
        self.partial = self.directory.with_name(f".{self.directory.name}.partial")

    def __enter__(self) -> "Writer":
        shutil.rmtree(self.partial, ignore_errors=True)
        try:
            self.partial.mkdir(parents=True)
        except OSError as error:
            raise UserError(
                f"{self.directory} cannot be made ({error.strerror}); give another --out"
            ) from error
        return self

    def write(
        self,
        splits: Mapping[str, Any],
        *,
        shards: int | None = None,
        part: str = "first",
        **beam: Any,
    ) -> pathlib.Path:
        """Writes the examples of each split.

        Args:
          splits: split -> (key, example) pairs, or a Beam transform that makes them.
          shards: files of each split, or as many as it has examples; None lets TFDS choose.
          part: of `partial`, to write to.
          **beam: `beam_runner` and `beam_options` of TFDS's DownloadConfig.

        Returns:
          The folder to put other files into.
        """
        tfds.disable_progress_bar()
        builder = Recordings(splits, data_dir=str(self.partial / part))
        written = pathlib.Path(builder.data_dir)
        if beam:
            config = _Config(num_shards=shards, **beam)
            with contextlib.redirect_stdout(None):  # TFDS prints what it does, in a folder of ours
                builder.download_and_prepare(download_config=config)
            return written
        written.mkdir(parents=True)
        infos = []
        for split, examples in splits.items():
            template = tfds.core.ShardedFileTemplate(
                data_dir=written,
                dataset_name=builder.name,
                split=split,
                filetype_suffix=builder.info.file_format.file_suffix,
            )
            infos.append(_write_split(template, examples, shards, self.partial / "spill"))
        builder.info.set_splits(tfds.core.splits.SplitDict(infos))
        builder.info.write_to_directory(written)
        return written

    def write_again(
        self,
        written: pathlib.Path,
        splits: Iterable[str],
        without: Container[int],
        *,
        shards: int | None,
    ) -> pathlib.Path:
        """Writes what was written as if some of its recordings had never been there.

        Args:
          written: of `write`.
          splits: those in which anything is left.
          without: numbers of recordings.
          shards: as for `write`.

        Returns:
          The new folder.
        """
        builder = tfds.builder_from_directory(str(written))

        def kept(split: str) -> Iterator[tuple[str, dict[str, Any]]]:
            source = Source(builder, split)
            examples = (source[row] for row in range(len(source)))
            for example in progress.over(
                examples, f"without copies, {split}:", len(source), unit="segments"
            ):
                if example["recording"] not in without:
                    yield keyed(example)

        return self.write({split: kept(split) for split in splits}, shards=shards, part="again")

    def finish(self, written: pathlib.Path, info: Mapping[str, Any]) -> None:
        """Adds `prepared.json`, and puts the dataset in its place."""
        text = json.dumps(info, indent=2, sort_keys=True) + "\n"
        (written / INFO_FILE).write_text(text, encoding="utf-8")
        if self.directory.exists():
            self.directory.rmdir()  # only ever an empty one
        written.rename(self.directory)

    def __exit__(self, *_: Any) -> None:
        shutil.rmtree(self.partial, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class Index:
    """What there is to know of examples without their audio, in order; all [examples].

    Attributes:
      splits: name of the split.
      rows: place in it.
      recordings: number of the recording, over all splits.
      labels: several separated by ';', '' is none.
      subjects: the group that nothing divides.
    """

    splits: np.ndarray
    rows: np.ndarray
    recordings: np.ndarray
    labels: np.ndarray
    subjects: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: np.ndarray) -> "Index":
        """The examples that a mask, or places, choose."""
        return Index(**{f.name: getattr(self, f.name)[chosen] for f in dataclasses.fields(self)})


class Source:
    """Random access to the examples of a split, with text as `str`; the audio is read-only."""

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        self._records = builder.as_data_source(split=split, deserialize_method=raw)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        found = tf_example.parse(self._records[index])
        return {
            "audio": np.frombuffer(found["audio"], "<i2"),
            "label": str(found["label"], "utf-8"),
            "subject": str(found["subject"], "utf-8"),
            "recording": found["recording"],
            "segment": found["segment"],
        }


def _described(example: dict[str, Any]) -> tuple[int, str, str]:
    return example["recording"], example["label"], example["subject"]


class Chosen:
    """Random access to the examples of an index, of one split or several."""

    def __init__(self, sources: Mapping[str, Source], index: Index):
        self._sources = sources
        self._index = index

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, place: int) -> dict[str, Any]:
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self._sources[self._index.splits[place]][int(self._index.rows[place])]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared dataset.

    Attributes:
      directory: where it lies.
      sample_rate: in hertz.
      segment_seconds: the most that one example holds.
      label_names: in order; none if nothing is labelled.
      splits: split -> number of examples.
      synthetic: whether the audio was made rather than recorded.
      counts: split -> examples, recordings, subjects, hours, labels.
      subject_key: fingerprint of the key that its subjects are named by; '' for their own names.
    """

    directory: pathlib.Path
    sample_rate: int
    segment_seconds: float
    label_names: tuple[str, ...]
    splits: dict[str, int]
    synthetic: bool
    counts: dict[str, Any]
    subject_key: str

    def source(self, split: str) -> Source:
        """Random access to a split. Raises UserError where there is no such split."""
        if split not in self.splits:
            raise UserError(
                f"{self.directory} has no split {split!r}; it has {', '.join(self.splits)}"
            )
        return Source(tfds.builder_from_directory(str(self.directory)), split)

    def index(self, *splits: str) -> Index:
        """Labels and subjects of all examples of some splits, or of all.

        Every example is read for it the first time; where the folder can be written to, what was
        found is kept there.
        """
        parts = [self._index(split) for split in splits or self.splits]
        return Index(
            **{
                field.name: np.concatenate([getattr(part, field.name) for part in parts])
                for field in dataclasses.fields(Index)
            }
        )

    def _index(self, split: str) -> Index:
        source = self.source(split)
        file = self.directory / f"index-{split}.npz"
        if file.is_file():
            with np.load(file, allow_pickle=False) as kept:
                if len(kept["rows"]) == len(source):
                    return Index(**kept)
        rows = np.arange(len(source))
        found = [
            _described(source[int(row)])
            for row in progress.over(rows, "index", unit="segments", stays=False)
        ]
        index = Index(
            np.full(len(rows), split),
            rows,
            *map(np.array, zip(*found, strict=True)),
        )
        partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
        with contextlib.suppress(OSError):
            with partial.open("wb") as stream:
                np.savez_compressed(stream, **dataclasses.asdict(index))
            partial.replace(file)
        return index

    @property
    def fingerprint(self) -> str:
        """All that was written about it when it was made."""
        return (self.directory / INFO_FILE).read_text(encoding="utf-8")

    def at(self, index: Index) -> Chosen:
        """Random access to the examples of an index."""
        return Chosen({str(split): self.source(str(split)) for split in set(index.splits)}, index)


def read_info(directory: pathlib.Path) -> dict[str, Any] | None:
    """`prepared.json` of a folder, or None."""
    file = directory / INFO_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def open_prepared(directory: str | pathlib.Path) -> Prepared:
    """Opens a prepared dataset. Raises UserError where the folder is none."""
    directory = pathlib.Path(directory)
    info = read_info(directory)
    if info is None:
        raise UserError(
            f"{directory} is no prepared dataset; make one with "
            f"python -m cryjax.prepare --manifest=FILE.csv --out={directory}"
        )
    return Prepared(
        directory,
        info["sample_rate"],
        info["segment_seconds"],
        tuple(info["labels"]),
        {split: counts["examples"] for split, counts in info["splits"].items()},
        info["synthetic"],
        info["splits"],
        info.get("subject_key", ""),
    )
