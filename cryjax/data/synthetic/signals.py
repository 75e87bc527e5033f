"""Building blocks of synthetic audio: harmonics, spectra, resonances, levels."""

from typing import TypeVar

import numpy as np

_Level = TypeVar("_Level", float, np.ndarray)


def amplitude(decibels: _Level) -> _Level:
    """Decibels to an amplitude factor."""
    return 10.0 ** (decibels / 20.0)


def norm(x: np.ndarray) -> float:
    return np.sqrt(np.sum(np.abs(x) ** 2))  # not by BLAS, whose sum depends on its threads


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return np.exp(rng.uniform(np.log(low), np.log(high)))


def spectrum(waveform: np.ndarray, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies in hertz and the spectrum, zero-padded to a fast FFT length."""
    size = -(-len(waveform) // 4096) * 4096
    return np.fft.rfftfreq(size, 1.0 / sample_rate), np.fft.rfft(waveform, size)


def resonance(frequency: np.ndarray, centre: float, bandwidth: float) -> np.ndarray:
    """Response of a second-order resonator, hertz throughout; 1 at 0 Hz, causal."""
    return centre**2 / (centre**2 - frequency**2 + 1j * frequency * bandwidth)


def harmonics(
    pitch: np.ndarray, sample_rate: int, slope: float, most: int = 1_000
) -> tuple[np.ndarray, np.ndarray]:
    """Sum over k of k^-slope cos(k phase), without harmonics above 0.95 of the Nyquist frequency.

    Uses Clenshaw's recurrence, so a harmonic costs a few multiplications and no cosine.

    Args:
      pitch: [samples], the fundamental in hertz.
      slope: 1 is 6 dB per octave.
      most: maximum number of harmonics.

    Returns:
      The sum [samples], and the fundamental's phase in radians [samples].
    """
    limit, highest = 0.95 * sample_rate / 2, pitch.max()
    phase = 2 * np.pi * np.cumsum(pitch) / sample_rate
    twice = 2 * np.cos(phase)
    first, second = np.zeros_like(pitch), np.zeros_like(pitch)
    for k in range(min(most, int(limit / pitch.min())), 0, -1):
        amplitude = k**-slope
        if k * highest > 0.95 * limit:  # fades out as rising pitch nears the limit
            amplitude = amplitude * np.clip((1 - k * pitch / limit) / 0.05, 0, 1)
        first, second = amplitude + twice * first - second, first
    return first * np.cos(phase) - second, phase
