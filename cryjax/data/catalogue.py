"""Reads recordings to prepare from TFDS datasets, by catalogue name or folder."""

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from cryjax.command.errors import UserError
from cryjax.data.decode import Unusable, check_usable, to_int16
from cryjax.data.recording import Recording


def _audio_feature(features: Any, source_rate: int) -> tuple[str, int]:
    """Name and sample rate of a TFDS dataset's audio feature."""
    for name, feature in features.items():
        if isinstance(feature, tfds.features.Audio) or name in ("audio", "speech"):
            rate = source_rate or getattr(feature, "sample_rate", None) or 0
            if not rate:
                raise UserError(
                    "the TFDS dataset does not state its sample rate; give --source_rate"
                )
            return name, rate
    raise UserError(f"no audio among the TFDS dataset's features ({', '.join(features)})")


def open_built(name: str, data_dir: str | None) -> Any:
    """Opens a TFDS dataset from a built folder, or builds it by catalogue name."""
    folder = pathlib.Path(name)
    if folder.is_dir():
        if not (folder / "dataset_info.json").is_file():
            raise UserError(
                f"--tfds={name} has no dataset_info.json; give the folder of a version, "
                f"such as {folder / '1.0.0'}"
            )
        return tfds.builder_from_directory(name)
    try:
        try:
            builder = tfds.builder(name, data_dir=data_dir)
        except ValueError as error:  # also for an invalid name or unknown config
            raise UserError(f"--tfds={name}: no such dataset in TFDS's catalogue") from error
        builder.download_and_prepare(file_format="array_record")
        return builder
    except ImportError as error:
        raise UserError(
            f'--tfds={name} needs TensorFlow ({error}): pip install "cryjax[tfds-audio]"'
        ) from error


def recordings(
    builder: Any, split: str, sample_rate: int, source_rate: int, first: int = 0
) -> Iterator[Recording]:
    """Yields the recordings of a TFDS split with their audio, class label and speaker.

    Args:
      builder: of the dataset.
      split: its name.
      sample_rate: target, in hertz.
      source_rate: in hertz; 0 uses the dataset's own.
      first: number of the split's first recording.
    """
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
        try:
            if not np.isfinite(audio).all():
                raise Unusable("samples that are not finite")
            if rate != sample_rate and len(audio):
                audio = soxr.resample(audio.astype(np.float32), rate, sample_rate, quality="VHQ")
            usable, reason = check_usable(to_int16(audio), sample_rate), ""
        except Unusable as error:
            usable, reason = None, str(error)
        # TFDS marks an example without a label by -1.
        labelled = label_name is not None and example[label_name] >= 0
        label = features[label_name].int2str(example[label_name]) if labelled else ""
        subject = "" if subject_name is None else example[subject_name]
        subject = subject.decode() if isinstance(subject, bytes) else str(subject)
        yield Recording(first + index, usable, label, subject, reason, subject_name is None, rate)
