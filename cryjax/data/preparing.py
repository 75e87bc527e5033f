"""How recordings become a prepared dataset: decoded, cut, counted and written."""

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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from cryjax import __version__
from cryjax.command.program import UserError
from cryjax.data import records
from cryjax.data.decode import Unusable, check_usable, decode, to_int16
from cryjax.data.manifest import Row
from cryjax.data.synthetic import Clip

# A last piece shorter than this is dropped, unless it is all there is.
SHORTEST_TAIL_SECONDS = 1.0
_AHEAD = 4  # files in flight a worker


@dataclasses.dataclass(frozen=True)
class Recording:
    """One decoded recording: int16 [samples] at the dataset's rate, or why there is none."""

    audio: np.ndarray | None
    label: str = ""
    subject: str = ""
    name: str = ""
    reason: str = ""


def segments(audio: np.ndarray, samples: int, shortest: int) -> list[np.ndarray]:
    """Cuts [n] into pieces of `samples`; a rest under `shortest` is dropped, if not alone."""
    pieces = [audio[start : start + samples] for start in range(0, len(audio), samples)]
    if len(pieces) > 1 and len(pieces[-1]) < min(samples, shortest):
        pieces.pop()
    return pieces


def _decode_row(row: Row, sample_rate: int) -> Recording:
    try:
        audio, reason = decode(row.path, sample_rate), ""
    except Unusable as error:
        audio, reason = None, str(error)
    return Recording(audio, row.label, row.subject, row.name, reason)


def _render(clip: Clip, sample_rate: int) -> Recording:
    audio = to_int16(clip.render(sample_rate))
    return Recording(audio, clip.label, clip.subject, f"{clip.corpus}/{clip.index}")


def _over_processes(work: Callable[[Any], Recording], items: Sequence[Any], workers: int):
    """Maps `work` over processes, in order, a bounded number of items ahead of the reader."""
    if workers <= 1:
        yield from map(work, items)
        return
    # Not forked: the parent has threads.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting: collections.deque = collections.deque()
        remaining = iter(items)
        for item in itertools.islice(remaining, workers * _AHEAD):
            waiting.append(pool.submit(work, item))
        while waiting:
            yield waiting.popleft().result()
            for item in itertools.islice(remaining, 1):
                waiting.append(pool.submit(work, item))


def from_manifest(rows: Sequence[Row], sample_rate: int, workers: int) -> Iterator[Recording]:
    """Decodes the recordings of rows, in their order."""
    work = functools.partial(_decode_row, sample_rate=sample_rate)
    return _over_processes(work, rows, workers)


def from_clips(clips: Sequence[Clip], sample_rate: int, workers: int) -> Iterator[Recording]:
    """Renders synthetic clips, in their order."""
    work = functools.partial(_render, sample_rate=sample_rate)
    return _over_processes(work, clips, workers)


@dataclasses.dataclass
class Tally:
    """What went into one split."""

    examples: int = 0
    samples: int = 0
    subjects: set[str] = dataclasses.field(default_factory=set)
    labels: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    recordings: int = 0

    def summary(self, sample_rate: int) -> dict[str, Any]:
        return {
            "examples": self.examples,
            "recordings": self.recordings,
            "subjects": len(self.subjects),
            "hours": round(self.samples / sample_rate / 3600, 4),
            "labels": dict(sorted(self.labels.items())),
        }


class Preparation:
    """Turns streams of recordings into a prepared dataset, and counts on the way."""

    def __init__(self, sample_rate: int, segment_seconds: float):
        self._sample_rate = sample_rate
        self._segment_seconds = segment_seconds
        self.tallies: dict[str, Tally] = {}
        self.skipped: list[tuple[str, str]] = []
        self._recording = 0

    def examples(
        self, split: str, recordings: Iterable[Recording], progress: tqdm.tqdm
    ) -> Iterator[dict[str, Any]]:
        """The examples of a split, one a segment."""
        tally = self.tallies.setdefault(split, Tally())
        size = round(self._segment_seconds * self._sample_rate)
        shortest = round(SHORTEST_TAIL_SECONDS * self._sample_rate)
        for recording in recordings:
            progress.update()
            if recording.audio is None:
                self.skipped.append((recording.name, recording.reason))
                continue
            # Taken at once: the splits' streams are read in turns.
            number, self._recording = self._recording, self._recording + 1
            tally.recordings += 1
            tally.subjects.add(recording.subject)
            tally.labels.update(filter(None, recording.label.split(";")))
            for segment, audio in enumerate(segments(recording.audio, size, shortest)):
                tally.examples += 1
                tally.samples += len(audio)
                yield {
                    "audio": audio,
                    "label": recording.label,
                    "subject": recording.subject,
                    "recording": number,
                    "segment": segment,
                }

    def run(
        self,
        directory: pathlib.Path,
        streams: Mapping[str, Iterable[Recording]],
        *,
        total: int | None,
        inputs: Mapping[str, Any],
        synthetic: bool,
    ) -> dict[str, Any]:
        """Writes the dataset.

        Args:
          directory: to make.
          streams: split -> recordings.
          total: how many recordings there are, for the progress bar.
          inputs: what the dataset is made of, to be known again by.
          synthetic: whether the audio was made rather than recorded.

        Returns:
          The content of `prepared.json`.

        Raises:
          UserError: if no recording can be used.
        """
        with (
            records.Writer(directory) as writer,
            tqdm.tqdm(total=total, unit="file", desc="prepare") as progress,
        ):
            filled = {}
            for split, recordings in streams.items():
                # TFDS refuses an empty split; whether one is empty shows when its first recordings
                # have been decoded.
                examples = self.examples(split, recordings, progress)
                first = next(examples, None)
                if first is not None:
                    filled[split] = itertools.chain([first], examples)
            if not filled:
                reasons = collections.Counter(reason for _, reason in self.skipped)
                common = "; ".join(f"{n} x {reason}" for reason, n in reasons.most_common(3))
                raise UserError(f"none of {len(self.skipped)} recordings can be used ({common})")
            written = writer.write(filled)
            info = {
                "version": __version__,
                "sample_rate": self._sample_rate,
                "segment_seconds": self._segment_seconds,
                "synthetic": synthetic,
                "inputs": inputs,
                "skipped": len(self.skipped),
                "labels": sorted(set().union(*(t.labels for t in self.tallies.values()))),
                "splits": {
                    split: tally.summary(self._sample_rate)
                    for split, tally in self.tallies.items()
                    if tally.examples
                },
            }
            with (written / "skipped.csv").open("w", encoding="utf-8", newline="") as file:
                table = csv.writer(file)
                table.writerow(["path", "reason"])
                table.writerows(self.skipped)
            writer.finish(written, info)
        return info


def fingerprint(rows: Sequence[Row]) -> str:
    """sha256 over the rows and, where the files are there, their sizes and times of change."""
    described = []
    for row in rows:
        try:
            status = row.path.stat()
            file = [status.st_size, status.st_mtime_ns]
        except (OSError, ValueError):  # ValueError for a path that no file can have
            file = None
        described.append([row.name, row.label, row.subject, row.split, file])
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def already_done(directory: pathlib.Path, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The info of a dataset that was made of the same inputs, or None if there is none yet.

    Raises:
      UserError: if the folder holds something else.
    """
    info = records.read_info(directory)
    if info is None:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise UserError(f"{directory} exists and is no prepared dataset; give a new --out")
        return None
    inputs = json.loads(json.dumps(inputs))
    changed = [k for k in sorted(inputs | info["inputs"]) if inputs.get(k) != info["inputs"].get(k)]
    if changed:
        raise UserError(
            f"{directory} was prepared from other inputs (different: {', '.join(changed)}); "
            "give a new --out, or delete it"
        )
    return info


def summary_table(info: Mapping[str, Any]) -> str:
    """What a dataset holds, for a person to read."""
    lines = [f"{'split':<12}{'recordings':>11}{'examples':>10}{'subjects':>10}{'hours':>8}  labels"]
    for split, counts in info["splits"].items():
        labels = sorted(counts["labels"].items(), key=lambda item: -item[1])
        shown = ", ".join(f"{name} {count}" for name, count in labels[:6])
        more = f", and {len(labels) - 6} more" if len(labels) > 6 else ""
        lines.append(
            f"{split:<12}{counts['recordings']:>11}{counts['examples']:>10}"
            f"{counts['subjects']:>10}{counts['hours']:>8.2f}  {shown}{more}"
        )
    return "\n".join(lines)


def _audio_feature(features: Any, source_rate: int) -> tuple[str, int]:
    """Name and sample rate of a TFDS dataset's audio."""
    for name, feature in features.items():
        if isinstance(feature, tfds.features.Audio) or name in ("audio", "speech"):
            rate = source_rate or getattr(feature, "sample_rate", None) or 0
            if not rate:
                raise UserError(
                    "the TFDS dataset does not tell its sample rate; give --source_rate"
                )
            return name, rate
    raise UserError(f"no audio among the TFDS dataset's features ({', '.join(features)})")


def open_tfds(name: str, data_dir: str | None) -> Any:
    """A built TFDS dataset, from its folder or its name in the catalogue."""
    folder = pathlib.Path(name)
    if folder.is_dir():
        if not (folder / "dataset_info.json").is_file():
            raise UserError(
                f"--tfds={name} has no dataset_info.json; give the folder of a version, as "
                f"{folder / '1.0.0'}"
            )
        return tfds.builder_from_directory(name)
    try:
        try:
            builder = tfds.builder(name, data_dir=data_dir)
        except ValueError as error:  # also for what is no name, or no config of a dataset
            raise UserError(f"--tfds={name}: no such dataset in TFDS's catalogue") from error
        builder.download_and_prepare(file_format="array_record")
        return builder
    except ImportError as error:
        raise UserError(
            f'--tfds={name} needs TensorFlow ({error}): pip install "cryjax[tfds-audio]"'
        ) from error


def from_tfds(builder: Any, split: str, sample_rate: int, source_rate: int) -> Iterator[Recording]:
    """The recordings of a split of a TFDS dataset: its audio, class label and speaker."""
    import soxr

    features = builder.info.features
    audio_name, rate = _audio_feature(features, source_rate)
    label_name = next(
        (n for n, f in features.items() if isinstance(f, tfds.features.ClassLabel)), None
    )
    subject_name = next((n for n in ("speaker_id", "speaker", "subject") if n in features), None)
    for index, example in enumerate(builder.as_data_source(split=split)):
        audio = np.asarray(example[audio_name])
        if audio.dtype.kind in "iu":
            audio = audio.astype(np.float32) / 32768.0
        if audio.ndim > 1:
            audio = audio.mean(axis=-1)
        name = f"{split}/{index}"
        try:
            if not np.isfinite(audio).all():
                raise Unusable("samples that are not finite")
            if rate != sample_rate and len(audio):
                audio = soxr.resample(audio.astype(np.float32), rate, sample_rate, quality="VHQ")
            audio, reason = check_usable(to_int16(audio), sample_rate), ""
        except Unusable as error:
            audio, reason = None, str(error)
        # -1 is TFDS's own mark of an example without a label.
        labelled = label_name is not None and example[label_name] >= 0
        label = features[label_name].int2str(example[label_name]) if labelled else ""
        subject = name if subject_name is None else example[subject_name]
        subject = subject.decode() if isinstance(subject, bytes) else str(subject)
        yield Recording(audio, label, subject, name, reason)
