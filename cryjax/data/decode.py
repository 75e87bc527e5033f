"""Decodes audio files to int16 mono at one sample rate. Imports little, as workers import it."""

import math
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
import soundfile
import soxr

# Recognised suffixes; those decoded more exactly come first.
SUFFIXES = (
    ".wav", ".flac", ".w64", ".aif", ".aiff", ".au", ".caf", ".ogg", ".opus", ".mp3", ".m4a",
    ".aac", ".mp4", ".webm", ".mkv", ".wma", ".3gp", ".amr",
)  # fmt: skip
MINIMUM_SECONDS = 0.05
MAXIMUM_HOURS = 24.0
RATES_HZ = (1_000, 768_000)
# Honest floats exceed 1 only slightly. Int16 values stored as floats would be clipped to noise.
LOUDEST = 8.0
_BLOCK_SECONDS = 30
FFMPEG_SECONDS = 600


class Unusable(Exception):
    """Raised for a recording that cannot be used; the message is a short reason."""


def is_audio(path: pathlib.Path) -> bool:
    """Whether a file is audio by its name; not '._x.wav', which macOS leaves beside x.wav."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith("._")


def to_int16(waveform: np.ndarray) -> np.ndarray:
    """Floats in [-1, 1] to int16 by 32768, clipped and rounded; inverts int16 / 32768 exactly."""
    return np.minimum(np.rint(np.clip(waveform, -1.0, 1.0) * 32768.0), 32767).astype(np.int16)


class _Forwards(soundfile.SoundFile):
    """A file that is read from start to end, without seeking.

    After each read, `soundfile` seeks to the position that the header implies. In a damaged MP3
    or Ogg file that is the wrong one: silence was inserted, or audio repeated.
    """

    def seekable(self) -> bool:
        return False


def _mono_blocks(file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    """Yields blocks, float32 [samples], at the file's own rate, averaged over channels."""
    size = _BLOCK_SECONDS * file.samplerate
    # Not `file.blocks`: for a truncated Ogg file, whose header claims more, it returns memory that
    # was never filled.
    while len(block := file.read(size, dtype="float32", always_2d=True)):
        if not np.isfinite(block).all():
            raise Unusable("samples that are not finite")
        if max(block.max(), -block.min()) > LOUDEST:
            raise Unusable(
                "samples far beyond full scale: floats must be between minus one and one"
            )
        yield block.mean(axis=1)


def _by_soundfile(
    path: pathlib.Path, sample_rate: int, lowest_rate: int, told: Callable[[int], object]
) -> Iterator[np.ndarray]:
    # As bytes: names need not be text.
    with _Forwards(os.fsencode(path)) as file:
        rate = file.samplerate
        if rate < lowest_rate:
            raise Unusable(f"a sample rate of {rate} Hz, under {lowest_rate} Hz")
        if not RATES_HZ[0] <= rate <= RATES_HZ[1]:
            raise Unusable(f"an unsupported sample rate of {rate} Hz")
        told(rate)
        if rate == sample_rate:
            yield from map(to_int16, _mono_blocks(file))
            return
        resampler = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality="VHQ")
        for block in _mono_blocks(file):
            yield to_int16(resampler.resample_chunk(block))
        yield to_int16(resampler.resample_chunk(np.zeros(0, np.float32), last=True))


def _by_ffmpeg(
    path: pathlib.Path, sample_rate: int, lowest_rate: int, told: Callable[[int], object]
) -> Iterator[np.ndarray]:
    """Decodes via a WAV file that ffmpeg writes with the recording's rate and channels."""
    with tempfile.TemporaryDirectory() as folder:
        wav = pathlib.Path(folder) / "decoded.wav"
        command = ["ffmpeg", "-v", "error", "-nostdin", "-i", f"file:{path}", "-map", "0:a:0"]
        command += ["-t", str(MAXIMUM_HOURS * 3600 + 1), "-c:a", "pcm_s16le", str(wav)]
        try:
            done = subprocess.run(command, capture_output=True, timeout=FFMPEG_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise Unusable(f"ffmpeg took longer than {FFMPEG_SECONDS} s") from None
        if done.returncode or not wav.exists():
            raise Unusable("neither libsndfile nor ffmpeg can decode it")
        yield from _by_soundfile(wav, sample_rate, lowest_rate, told)


def _by_either(
    path: pathlib.Path, sample_rate: int, lowest_rate: int, told: Callable[[int], object]
) -> Iterator[np.ndarray]:
    given = 0
    try:
        for block in _by_soundfile(path, sample_rate, lowest_rate, told):
            yield block
            given += len(block)
        return
    except (soundfile.SoundFileError, TypeError):  # TypeError for a name that ends in .raw
        if shutil.which("ffmpeg") is None:
            raise Unusable("libsndfile cannot decode it; ffmpeg, if installed, might") from None
    # Continue where libsndfile gave up.
    for block in _by_ffmpeg(path, sample_rate, lowest_rate, told):
        if given < len(block):
            yield block[given:]
        given = max(given - len(block), 0)


def check_usable(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Returns `audio`, int16 [samples]. Raises Unusable if it is too short or silent."""
    _check(len(audio), bool(audio.any()), sample_rate)
    return audio


def _check(samples: int, sound: bool, sample_rate: int) -> None:
    if samples < math.ceil(MINIMUM_SECONDS * sample_rate):
        raise Unusable(f"only {samples} samples at {sample_rate} Hz, under {MINIMUM_SECONDS:g} s")
    if not sound:
        raise Unusable("silent")


def stream(
    path: pathlib.Path,
    sample_rate: int,
    *,
    lowest_rate: int = 0,
    told: Callable[[int], object] = lambda rate: None,
) -> Iterator[np.ndarray]:
    """Decodes one recording block by block, in memory that does not grow with its length.

    Uses libsndfile or, where that fails, ffmpeg if installed (via 16-bit WAV). Channels are
    averaged, the rate converted by soxr at its very high quality, the result rounded to int16 once.

    Args:
      path: of the file.
      sample_rate: target, in hertz.
      lowest_rate: recordings below it are rejected.
      told: called with the recording's own rate, in hertz, before the first samples.

    Yields:
      int16 [n], in order.

    Raises:
      Unusable: with the reason; that it is too short or silent is only known at the end.
    """
    samples, sound = 0, False
    try:
        if not path.is_file():
            if path.exists():
                raise Unusable("not a file")
            windows = "; write '/' between folders, not '\\'" if "\\" in path.name else ""
            if re.search(r"(^|/)[A-Za-z]:[\\/]", str(path)):
                windows = "; a Windows path: write it relative to the manifest's folder, with '/'"
            raise Unusable(f"no such file{windows}")
        if path.stat().st_size == 0:
            raise Unusable("an empty file")
        for block in _by_either(path, sample_rate, lowest_rate, told):
            # Counted as they are read: a header may claim any length.
            samples += len(block)
            if samples > MAXIMUM_HOURS * 3600 * sample_rate:
                raise Unusable(f"longer than {MAXIMUM_HOURS:g} hours")
            sound = sound or bool(block.any())
            yield block
    except OSError as error:
        raise Unusable(f"cannot be read ({error.strerror})") from error
    _check(samples, sound, sample_rate)
