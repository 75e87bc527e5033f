"""Writes prepared datasets, in this process or on Beam's workers."""

import contextlib
import itertools
import os
import pathlib
import shutil
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import hashing
from tensorflow_datasets.core.utils import shard_utils

from cryjax.command import files, progress
from cryjax.command.errors import UserError
from cryjax.data.records import FEATURES, INFO_FILE, Source


def keyed(example: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """An example and the key by which TFDS orders it."""
    return f"{example['recording']}-{example['segment']}", example


class _Info(tfds.core.DatasetInfo):
    """Skips the lookup in TFDS's bucket, which would leave a temporary folder behind."""

    def initialize_from_bucket(self) -> None:
        pass


def _write_shard(path: os.PathLike[str], examples: Iterable[bytes]) -> None:
    """Writes records uncompressed.

    TFDS's compression makes audio a tenth smaller and reading it four times slower.
    """
    writer = array_record_module.ArrayRecordWriter(os.fspath(path), "group_size:1,uncompressed")
    for record in examples:
        writer.write(record)
    writer.close()


class _ExampleWriter(tfds.core.ExampleWriter):
    """Uses `_write_shard` on Beam workers."""

    def write(self, path: os.PathLike[str], examples: Iterable[tuple[Any, bytes]]) -> None:
        _write_shard(path, (record for _, record in examples))


class Recordings(tfds.core.GeneratorBasedBuilder):
    """Describes a dataset, and lets Beam write examples made elsewhere."""

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
    """Never more shards than examples: TFDS rejects that, but only after all decoding."""

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
) -> tfds.core.SplitInfo | None:
    """Writes the shards of a split, ordered by a hash of the keys, as TFDS orders them.

    TFDS would keep up to a gigabyte in memory, and needs TensorFlow for larger splits. Here records
    go to an intermediate file, and memory only holds their places in it.

    Args:
      template: for the shards' names.
      examples: with their keys.
      shards: as in `Writer.write`.
      spill: the intermediate file, as large as the split.

    Returns:
      The split's info for TFDS, or None if it has no example, which TFDS rejects.
    """
    hasher, places, size = hashing.Hasher(template.split), [], 0
    with spill.open("w+b") as file:
        for key, example in examples:
            record = FEATURES.serialize_example(example)
            places.append((hasher.hash_key(key), size, len(record)))
            size += len(record)
            file.write(record)
        if not places:
            return None
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
    """Writes a prepared dataset beside its final place and moves it there when complete.

    Attributes:
      directory: the final place.
      partial: folder for all that is written on the way; removed at exit.
    """

    def __init__(self, directory: pathlib.Path):
        self.directory = directory.absolute()
        self.partial = self.directory.with_name(f".{self.directory.name}.partial")

    def __enter__(self) -> "Writer":
        lock = self.directory.with_name(f".{self.directory.name}.lock")
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            self._lock = files.claim(lock, str(self.directory))
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir()
        except OSError as error:
            raise UserError(
                f"{self.directory} cannot be created ({error.strerror}); give another --out"
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
          shards: files per split, at most one per example; None lets TFDS choose.
          part: subfolder of `partial` to write to.
          **beam: `beam_runner` and `beam_options` of TFDS's DownloadConfig.

        Returns:
          The dataset's folder, to which other files may be added.
        """
        tfds.disable_progress_bar()
        builder = Recordings(splits, data_dir=str(self.partial / part))
        written = pathlib.Path(builder.data_dir)
        if beam:
            config = _Config(num_shards=shards, **beam)
            with contextlib.redirect_stdout(None):  # TFDS reports on a temporary folder
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
        builder.info.set_splits(tfds.core.splits.SplitDict(filter(None, infos)))
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
        """Rewrites the dataset as if some recordings had never been there.

        Args:
          written: from `write`.
          splits: those in which anything is left.
          without: numbers of recordings.
          shards: as in `write`.

        Returns:
          The new folder.
        """
        builder = tfds.builder_from_directory(str(written))

        def kept(split: str) -> Iterator[tuple[str, dict[str, Any]]]:
            source = Source(builder, split)
            examples = (source[row] for row in range(len(source)))
            for example in progress.over(
                examples, f"removing copies from {split}:", len(source), unit="segments"
            ):
                if example["recording"] not in without:
                    yield keyed(example)

        return self.write({split: kept(split) for split in splits}, shards=shards, part="again")

    def finish(self, written: pathlib.Path, info: Mapping[str, Any]) -> None:
        """Adds `prepared.json`, and moves the dataset to its final place."""
        files.write_json(written / INFO_FILE, info)
        if self.directory.exists():
            self.directory.rmdir()  # fails unless empty
        written.rename(self.directory)

    def __exit__(self, *_: Any) -> None:
        shutil.rmtree(self.partial, ignore_errors=True)
        pathlib.Path(self._lock.name).unlink()
        self._lock.close()
