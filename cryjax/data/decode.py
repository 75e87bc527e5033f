"""Audio files to int16 mono at one sample rate. Imported by worker processes, so imports little."""

import math
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator

import numpy as np
import soundfile
import soxr

MINIMUM_SECONDS = 0.05
MAXIMUM_HOURS = 24.0
RATES_HZ = (1_000, 768_000)
_BLOCK_SECONDS = 30
_FFMPEG_SECONDS = 600


class Unusable(Exception):
    """A recording that cannot be used; the message is the reason, in a few words."""


def to_int16(waveform: np.ndarray) -> np.ndarray:
    """Floats in [-1, 1] to int16 by 32768, rounded and clipped: int16 / 32768 comes back exact."""
    return np.minimum(np.rint(np.clip(waveform, -1.0, 1.0) * 32768.0), 32767).astype(np.int16)


class _Forwards(soundfile.SoundFile):
    """Read from its start to its end and never sought in.

    `soundfile` seeks after each read to where that should have led by the header. In a damaged MP3
    or Ogg file that is elsewhere: silence came in between, or the same audio twice.
    """

    def seekable(self) -> bool:
        return False


def _mono_blocks(file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    """float32 [samples] at the file's own rate, mean over the channels, block by block."""
    size = _BLOCK_SECONDS * file.samplerate
    # Not `file.blocks`: of a truncated Ogg file, whose header claims more, it hands out memory that
    # it never filled.
    while len(block := file.read(size, dtype="float32", always_2d=True)):
        if not np.isfinite(block).all():
            raise Unusable("samples that are not finite")
        yield block.mean(axis=1)


def _decode_soundfile(path: pathlib.Path, sample_rate: int) -> np.ndarray:
    parts = []
    with _Forwards(path) as file:
        rate = file.samplerate
        if not RATES_HZ[0] <= rate <= RATES_HZ[1]:
            raise Unusable(f"a sample rate of {rate} Hz")
        resampler = None
        if rate != sample_rate:
            resampler = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality="VHQ")
        # Counted as they are read: a header may claim any length.
        read, most = 0, MAXIMUM_HOURS * 3600 * rate
        for block in _mono_blocks(file):
            read += len(block)
            if read > most:
                raise Unusable(f"longer than {MAXIMUM_HOURS:g} hours")
            parts.append(to_int16(resampler.resample_chunk(block) if resampler else block))
        if resampler:
            end = resampler.resample_chunk(np.zeros(0, np.float32), last=True)
            parts.append(to_int16(end))
    return np.concatenate(parts) if parts else np.zeros(0, np.int16)


def _decode_ffmpeg(path: pathlib.Path, sample_rate: int) -> np.ndarray:
    """Through a WAV file that ffmpeg writes, at the recording's own rate and channels."""
    with tempfile.TemporaryDirectory() as folder:
        wav = pathlib.Path(folder) / "decoded.wav"
        command = ["ffmpeg", "-v", "error", "-nostdin", "-i", f"file:{path}", "-map", "0:a:0"]
        command += ["-t", str(MAXIMUM_HOURS * 3600 + 1), "-c:a", "pcm_s16le", str(wav)]
        try:
            done = subprocess.run(
                command, capture_output=True, timeout=_FFMPEG_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise Unusable(f"ffmpeg took longer than {_FFMPEG_SECONDS} s") from None
        if done.returncode or not wav.exists():
            raise Unusable("neither libsndfile nor ffmpeg can decode it")
        return _decode_soundfile(wav, sample_rate)


def check_usable(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Gives int16 [samples] back. Raises Unusable where they are too few, or silent."""
    if len(audio) < math.ceil(MINIMUM_SECONDS * sample_rate):
        raise Unusable(f"only {len(audio)} samples at {sample_rate} Hz")
    if not audio.any():
        raise Unusable("silent")
    return audio


def decode(path: pathlib.Path, sample_rate: int) -> np.ndarray:
    """Decodes one recording.

    By libsndfile or, where it cannot and ffmpeg is installed, by ffmpeg. Channels are averaged, the
    rate converted by soxr at its very high quality, and the result rounded to int16 once.

    Args:
      path: of the file.
      sample_rate: wanted, in hertz.

    Returns:
      int16 [samples].

    Raises:
      Unusable: with the reason.
    """
    try:
        if not path.is_file():
            raise Unusable("no such file")
        if path.stat().st_size == 0:
            raise Unusable("an empty file")
        try:
            audio = _decode_soundfile(path, sample_rate)
        except (soundfile.SoundFileError, TypeError):  # TypeError for a name that ends in .raw
            if shutil.which("ffmpeg") is None:
                raise Unusable("libsndfile cannot decode it; ffmpeg, if installed, might") from None
            audio = _decode_ffmpeg(path, sample_rate)
    except OSError as error:
        raise Unusable(f"cannot be read ({error.strerror})") from error
    return check_usable(audio, sample_rate)
