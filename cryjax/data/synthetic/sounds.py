"""General sounds: tones, chirps, stacks of harmonics, bands of noise, clicks."""

import numpy as np

from cryjax.data.synthetic.signals import amplitude, harmonics, log_uniform, resonance, spectrum

KINDS = ("tone", "chirp", "stack", "noise", "clicks")  # of events


def _event(kind: str, rng: np.random.Generator, samples: int, sample_rate: int) -> np.ndarray:
    """One sound of one of `KINDS`, [samples], within [-1, 1]."""
    seconds = np.arange(samples) / sample_rate
    low, high = 60.0, 0.45 * sample_rate
    if kind == "noise":
        below, above = np.sort(np.exp(rng.uniform(np.log(low), np.log(high), 2)))
        frequency, power = spectrum(rng.normal(size=samples), sample_rate)
        power /= 1 + (below / np.maximum(frequency, 1)) ** 8
        x = np.fft.irfft(power / (1 + (frequency / above) ** 8))[:samples]
    elif kind == "clicks":
        gaps = rng.choice([rng.exponential(1, 100), np.ones(100)])  # irregular or regular
        times = (np.cumsum(gaps) - gaps[0]) / log_uniform(rng, 2, 40)
        x = np.zeros(samples)
        x[(times[times < seconds[-1]] * sample_rate).astype(int)] = 1
        frequency, power = spectrum(x, sample_rate)
        power *= resonance(frequency, log_uniform(rng, 300, high), log_uniform(rng, 10, 300))
        x = np.fft.irfft(power)[:samples]
    else:
        start = log_uniform(rng, low, high / 4 if kind == "stack" else high)
        end = log_uniform(rng, low, high) if kind == "chirp" else start
        vibrato = rng.choice([0.0, rng.uniform(0.2, 1.5)]) / 12
        octaves = np.log2(end / start) * np.linspace(0, 1, samples)
        octaves += vibrato * np.sin(2 * np.pi * rng.uniform(3, 9) * seconds)
        pitch = np.clip(start * 2**octaves, low, high)
        most = int(rng.integers(3, 20)) if kind == "stack" else 1
        x, _ = harmonics(pitch, sample_rate, rng.uniform(0.3, 1.5), most)
    depth = rng.choice([0.0, rng.uniform(0.2, 1)])
    x *= 1 + depth * np.sin(2 * np.pi * log_uniform(rng, 1, 25) * seconds)
    attack, release = log_uniform(rng, 0.003, 0.2), log_uniform(rng, 0.02, 0.5)
    x *= np.clip(np.minimum(seconds / attack, (seconds[-1] - seconds) / release), 0, 1)
    x *= np.exp(-seconds * rng.choice([0.0, log_uniform(rng, 0.5, 10)]))
    return x / np.abs(x).max()


def kinds(rng: np.random.Generator) -> list[str]:
    """Kinds of a clip's events: its generator's first draw, so that its label is cheap."""
    return rng.choice(KINDS, rng.integers(1, 5)).tolist()


def render(rng: np.random.Generator, sample_rate: int) -> tuple[np.ndarray, float]:
    """One to four events, apart or overlapping, over faint noise; returns as `cries.render`."""
    held = kinds(rng)
    samples = round(rng.uniform(1.0, 4.0) * sample_rate)
    x = rng.normal(size=samples) * amplitude(rng.uniform(-70, -35))
    for kind in held:
        length = min(round(log_uniform(rng, 0.2, 2.0) * sample_rate), samples)
        start = rng.integers(samples - length + 1)
        event = _event(kind, rng, length, sample_rate)
        x[start : start + length] += amplitude(rng.uniform(-15, 0)) * event
    return x, rng.uniform(-20, -1)
