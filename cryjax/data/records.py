"""Prepared datasets: TFDS datasets in ArrayRecord files, with random access and no TensorFlow.

The audio is an int16 tensor with byte encoding, not TFDS's `Audio` feature, which imports
TensorFlow and reads twenty times slower. `prepared.json` lies beside TFDS's own files.
`data/writing.py` writes all of it.
"""

import contextlib
import dataclasses
import json
import pathlib
import uuid
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from cryjax.command import progress
from cryjax.command.errors import Unavailable, UserError, away, one_line, passes
from cryjax.command.files import complete
from cryjax.data import remarks, tf_example

INFO_FILE = "prepared.json"
_BLOCK = 1 << 16  # ArrayRecord pads files to whole ones

FEATURES = tfds.features.FeaturesDict(
    {
        "audio": tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding="bytes"),
        "label": tfds.features.Text(),  # several separated by ';', '' for none
        "subject": tfds.features.Text(),
        "recording": np.int64,  # which recording it is a segment of
        "segment": np.int64,  # which segment
    }
)


@dataclasses.dataclass(frozen=True)
class Index:
    """Metadata of examples, without their audio, in order; all fields are [examples].

    Attributes:
      splits: name of the split.
      rows: place in the split.
      recordings: number of the recording, over all splits.
      labels: several separated by ';', '' for none.
      subjects: the group that is never divided.
    """

    splits: np.ndarray
    rows: np.ndarray
    recordings: np.ndarray
    labels: np.ndarray
    subjects: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: np.ndarray) -> "Index":
        """Selects examples by a mask or by places."""
        return Index(**{f.name: getattr(self, f.name)[chosen] for f in dataclasses.fields(self)})

    @property
    def by_recording(self) -> "Index":
        """The first example of each recording, in the order of the recordings' numbers."""
        return self[np.unique(self.recordings, return_index=True)[1]]


def _damaged(what: str | pathlib.Path, error: Exception | str) -> UserError | Unavailable:
    if isinstance(error, Exception) and passes(error):
        return away(what, error)
    return UserError(f"{what}: damaged ({one_line(error)}); prepare the dataset again")


class Source:
    """Random access to the examples of a split; text is `str`, and audio is read-only."""

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        self._records = builder.as_data_source(split=split, deserialize_method=raw)
        self._shards = builder.info.splits[split].file_instructions

    def check(self) -> None:
        """Raises UserError for a missing or cut file, Unavailable if its file server is away."""
        first = 0
        for shard in self._shards:
            try:
                size = pathlib.Path(shard.filename).stat().st_size
            except FileNotFoundError:
                size = 0
            # Opened only if its size is suspicious: there may be thousands.
            if not size or size % _BLOCK:
                try:
                    self._records[first]
                except RuntimeError as error:
                    raise _damaged(shard.filename, error) from error
            first += shard.examples_in_shard

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


def _kept(file: pathlib.Path) -> Index | None:
    """A cached index, or None if there is none that can be read."""
    try:
        with np.load(file, allow_pickle=False) as kept:
            index = Index(**kept)
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error):
        return None
    lengths = {np.shape(part) for part in vars(index).values()}
    return index if lengths == {(len(index.rows),)} else None


def _described(example: dict[str, Any]) -> tuple[int, str, str]:
    return example["recording"], example["label"], example["subject"]


class Chosen:
    """Random access to the examples of an index, over one or more splits."""

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
      segment_seconds: maximum length of an example.
      label_names: sorted; empty if nothing is labelled.
      splits: split -> number of examples.
      synthetic: whether the audio was generated rather than recorded.
      counts: split -> examples, recordings, subjects, hours, labels.
      subject_key: fingerprint of the key that subjects are renamed with; '' for their own names.
      cautions: what to know when reading any result on the dataset.
    """

    directory: pathlib.Path
    sample_rate: int
    segment_seconds: float
    label_names: tuple[str, ...]
    splits: dict[str, int]
    synthetic: bool
    counts: dict[str, Any]
    subject_key: str
    cautions: tuple[str, ...]
    # Splits whose files were found whole: there may be thousands, on a file server.
    _checked: set[str] = dataclasses.field(default_factory=set, repr=False, compare=False)

    def require_rate(self, rate: int, of: str, otherwise: str = "") -> None:
        """Raises UserError if the dataset has another sample rate than it must have.

        Args:
          rate: in hertz.
          of: what has that rate.
          otherwise: a remedy besides preparing the dataset again.
        """
        if self.sample_rate != rate:
            raise UserError(
                f"{self.directory} is at {self.sample_rate} Hz and {of} at {rate} Hz; prepare it "
                f"again with --sample_rate={rate}{otherwise}"
            )

    def source(self, split: str) -> Source:
        """Random access to a split. Raises UserError if there is none, otherwise as `check`."""
        if split not in self.splits:
            raise UserError(
                f"{self.directory} has no split {split!r}; it has {', '.join(self.splits)}"
            )
        try:
            builder = tfds.builder_from_directory(str(self.directory))
        except OSError:
            raise
        except Exception as error:  # of TFDS, JSON or protobuf, which have no class in common
            raise _damaged(self.directory, error) from error
        source = Source(builder, split)
        if split not in self._checked:
            source.check()
            self._checked.add(split)
        return source

    def index(self, *splits: str) -> Index:
        """Indexes all examples of the given splits, or of all.

        The first call reads every example; if the folder is writable, the index is cached there.
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
        if (kept := _kept(file)) is not None and len(kept) == len(source):
            return kept
        rows = np.arange(len(source))
        try:
            found = [
                _described(source[int(row)])
                for row in progress.over(rows, "index", unit="segments", stays=False)
            ]
        except RuntimeError as error:  # ArrayRecord's
            raise _damaged(self.directory, error) from error
        index = Index(
            np.full(len(rows), split),
            rows,
            *map(np.array, zip(*found, strict=True)),
        )
        partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
        with contextlib.suppress(OSError), partial.open("wb") as stream:
            np.savez_compressed(stream, **dataclasses.asdict(index))
            complete(stream, file)
        return index

    @property
    def fingerprint(self) -> str:
        """Its inputs and contents as JSON; the same if prepared again from the same inputs."""
        info = read_info(self.directory) or {}
        # A manifest's fingerprint includes modification times, which differ between copies.
        inputs = {name: value for name, value in info["inputs"].items() if name != "manifest"}
        held = self.sample_rate, self.segment_seconds, self.label_names, self.counts
        # Datasets of earlier versions have no content digest.
        return json.dumps([inputs, held, *filter(None, [info.get("content")])], sort_keys=True)

    def at(self, index: Index) -> Chosen:
        """Random access to the examples of an index."""
        return Chosen({str(split): self.source(str(split)) for split in set(index.splits)}, index)


def read_info(directory: pathlib.Path) -> dict[str, Any] | None:
    """A folder's `prepared.json`, or None. Raises UserError if it is damaged."""
    file = directory / INFO_FILE
    if not file.is_file():
        return None
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(file, error) from error
    if not isinstance(info, dict) or not {"inputs", "splits"} <= info.keys():
        raise _damaged(file, "no description of a dataset")
    return info


def open_prepared(directory: str | pathlib.Path) -> Prepared:
    """Opens a prepared dataset. Raises UserError if the folder is not one, or damaged."""
    directory = pathlib.Path(directory)
    info = read_info(directory)
    if info is None:
        raise UserError(
            f"{directory} is not a prepared dataset; make one with "
            f"python -m cryjax.prepare --manifest=FILE.csv --out={directory}"
        )
    try:
        return Prepared(
            directory,
            info["sample_rate"],
            info["segment_seconds"],
            tuple(info["labels"]),
            {split: counts["examples"] for split, counts in info["splits"].items()},
            info["synthetic"],
            info["splits"],
            info.get("subject_key", ""),
            tuple(remarks.cautions(info)),
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise _damaged(directory / INFO_FILE, repr(error)) from error
