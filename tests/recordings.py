"""Waveforms and audio files for decoding tests."""

import io
import shutil

import numpy as np
import pytest
import scipy.signal
import soundfile

from cryjax.data.decode import Unusable, stream

RATE = 16_000
needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None, reason="ffmpeg is not installed; it is optional"
)


def noise(seconds=1.0, channels=None, rate=RATE, level=0.1, seed=0):
    shape = (round(seconds * rate),) if channels is None else (round(seconds * rate), channels)
    return np.clip(np.random.default_rng(seed).normal(size=shape) * level, -0.99, 0.99)


def sine(hertz, rate, seconds=1.0, level=0.5):
    return level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def chirp(rate=RATE, seconds=2.0):
    time = np.arange(round(seconds * rate)) / rate
    return 0.5 * scipy.signal.chirp(time, 100, seconds, 4_000)


def pcm16(waveform):
    return np.round(waveform * 32767).astype(np.int16)


def encoded(waveform, kind, subtype, rate=RATE):
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def decode(path, sample_rate):
    """The whole of one recording, int16 [samples]."""
    return np.concatenate([*stream(path, sample_rate)])


def unusable(path, sample_rate=RATE):
    with pytest.raises(Unusable) as caught:
        decode(path, sample_rate)
    reason = str(caught.value)
    assert reason and "\n" not in reason and len(reason) < 80
    return reason
