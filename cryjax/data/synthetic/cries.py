"""Synthesises a cry from a label, an infant, its injury and its place.

A source-filter model: breaths of glottal pulses and aspiration noise, through the resonances of a
vocal tract, the echoes of a room and the channel of a recorder.
"""

import dataclasses

import numpy as np

from cryjax.data.synthetic import clinical
from cryjax.data.synthetic.signals import (
    amplitude,
    harmonics,
    log_uniform,
    norm,
    resonance,
    spectrum,
)


@dataclasses.dataclass(frozen=True)
class Cry:
    """How a label shapes a cry: medians over clips, which vary around them by `_SPREAD`."""

    pitch_semitones: float  # mean fundamental, relative to the infant's
    first_seconds: float  # length of the first expiration
    later_seconds: float  # length of the others
    pause_seconds: float  # between expirations, with an inspiration in it
    irregularity: float  # standard deviation of a length's logarithm within a clip
    onset_seconds: float  # from silence to full amplitude
    arc_semitones: float  # from the ends of the melody up to its peak
    peak: float  # position of the peak, as a share of the expiration
    rough: float  # share of an expiration with subharmonics and noise (dysphonation)


# The directions follow descriptions of such cries: pain has a long first expiration, an abrupt
# onset, a higher and falling pitch and more dysphonation; hunger is rhythmic with a melody that
# rises and falls; discomfort is shorter, lower, flatter, with a weak onset (Wasz-Höckert et al.,
# 'The infant cry', 1968; LaGasse, Neal and Lester, 'Assessment of infant cry', 2005). The sizes are
# chosen for a task of moderate difficulty, and measure nothing: with splits by subject, a linear
# classifier is right nine times in ten from the numbers in `breaths`, six in ten from the mean and
# deviation of a log-mel spectrogram, four in ten from pitch alone.
CRIES = {
    "pain": Cry(1.5, 1.3, 0.9, 0.7, 0.25, 0.025, 3.0, 0.2, 0.2),
    "hunger": Cry(0.0, 0.85, 0.75, 0.4, 0.08, 0.06, 4.5, 0.45, 0.15),
    "discomfort": Cry(-1.0, 0.7, 0.6, 0.35, 0.25, 0.14, 1.5, 0.5, 0.15),
}
# Standard deviations between clips; of logarithms for seconds and onset.
_SPREAD = {"pitch": 1.5, "seconds": 0.3, "onset": 0.6, "arc": 1.2, "peak": 0.15, "rough": 0.12}


@dataclasses.dataclass(frozen=True)
class Breath:
    """An expiration, or an inspiration between two; fields as in `Cry`, for this one breath."""

    expiration: bool
    start: float  # seconds into the clip
    seconds: float
    pitch_hz: float  # geometric mean
    onset_seconds: float
    arc_semitones: float
    peak: float
    rough: float
    glide_semitones: float = 0.0  # leap in pitch halfway, in a tenth of a second
    second: float = 0.0  # pitch of a second voice, relative to the first; 0 for none


class Place:
    """Where an infant is recorded."""

    CHANNEL_HZ = np.geomspace(100, 12_000, 6)

    def __init__(self, rng: np.random.Generator):
        self.background = rng.uniform(-40, -20)  # noise relative to the cry, decibels
        self.hiss = rng.uniform(0.3, 1.5)  # exponent by which the noise's power falls
        self.channel = rng.normal(0, 4, len(self.CHANNEL_HZ))  # gains, decibels
        self.echo_seconds = rng.uniform(0.002, 0.4, 200)
        decay = np.exp(-6.9 * self.echo_seconds / rng.uniform(0.1, 0.4)) * rng.normal(size=200)
        wet = rng.uniform(0.1, 0.6) * (rng.random() < 0.7)
        self.echo_gains = wet * decay / norm(decay)


class Infant:
    """Traits of a subject, and its place; in `cries`, none depends on a clip's label."""

    # Centres and bandwidths for a median infant. Those above the Nyquist frequency count too:
    # their skirts shape the band below.
    FORMANTS_HZ = ((1100, 120), (3200, 250), (5300, 400), (7400, 500))

    def __init__(self, rng: np.random.Generator):
        self.pitch_hz = log_uniform(rng, 320, 520)
        self.tempo = np.exp(rng.normal(0, 0.15))  # lengths, relative to the table's
        self.tract = rng.uniform(0.88, 1.12)  # formants, relative to the median infant's
        self.slope = rng.normal(1.0, 0.15)  # of the source's harmonics
        self.breath = log_uniform(rng, 0.02, 0.15)  # aspiration, relative to the voice
        self.jitter = rng.uniform(0.05, 0.25)  # standard deviation of a cycle's pitch, semitones
        self.shimmer = rng.uniform(0.02, 0.12)  # the same for its amplitude, as a share
        self.level = rng.uniform(-18, -4)  # of the peak, decibels
        self.release = rng.uniform(0.1, 0.5)  # of an expiration, as a share
        self.place = Place(rng)
        self.wander = 0.3  # standard deviation of an expiration's pitch within a clip, semitones
        self.odd = 0.0  # share of expirations that are not ordinary phonation: see `_odd`


def afflict(infant: Infant, cry: Cry, severity: float) -> Cry:
    """Applies an injury to an infant's traits in place, and returns the cry it makes."""
    injury = clinical.INJURY
    infant.pitch_hz *= 2 ** (severity * injury.pitch_semitones / 12)
    infant.wander *= np.exp(severity * injury.wander)
    infant.jitter *= np.exp(severity * injury.jitter)
    infant.odd += severity * injury.odd
    shorter = np.exp(severity * injury.seconds)
    return dataclasses.replace(
        cry,
        first_seconds=cry.first_seconds * shorter,
        later_seconds=cry.later_seconds * shorter,
        pause_seconds=cry.pause_seconds * np.exp(severity * injury.pause),
        irregularity=cry.irregularity + severity * injury.irregularity,
        arc_semitones=cry.arc_semitones * np.exp(severity * injury.arc),
        rough=cry.rough + severity * injury.rough,
    )


def _odd(rng: np.random.Generator) -> dict[str, float]:
    """Hyperphonation, a glide or biphonation, as fields of a `Breath`."""
    kinds = [
        {"pitch_hz": log_uniform(rng, 1_000, 1_600)},
        {"glide_semitones": rng.choice([-1, 1]) * rng.uniform(5, 10)},
        {"second": rng.uniform(1.2, 1.8)},
    ]
    return kinds[rng.integers(len(kinds))]


def bout(infant: Infant, cry: Cry, rng: np.random.Generator) -> tuple[float, list[Breath]]:
    """The length of a clip in seconds, and the breaths in it."""
    change = {name: rng.normal(0, size) for name, size in _SPREAD.items()}
    pitch = infant.pitch_hz * 2 ** ((cry.pitch_semitones + change["pitch"]) / 12)
    tempo = infant.tempo * np.exp(change["seconds"])
    shape = {
        "onset_seconds": cry.onset_seconds * np.exp(change["onset"]),
        "arc_semitones": cry.arc_semitones + change["arc"],
        "peak": np.clip(cry.peak + change["peak"], 0.05, 0.95),
        "rough": np.clip(cry.rough + change["rough"], 0.0, 0.8),
    }
    inward = {"onset_seconds": 0.02, "arc_semitones": 2.0, "peak": 0.7, "rough": 0.0}

    def length(median: float) -> float:
        return median * tempo * np.exp(rng.normal(0, cry.irregularity))

    start, seconds = rng.uniform(0.05, 0.3), min(length(cry.first_seconds), 3.0)
    end = max(rng.uniform(2.0, 4.0), start + seconds + 0.2)
    breaths = []
    while start + seconds < end - 0.1:
        own = {"pitch_hz": pitch * 2 ** (rng.normal(0, infant.wander) / 12)}
        if infant.odd and rng.random() < infant.odd:
            own |= _odd(rng)
        breaths.append(Breath(True, start, seconds, **own, **shape))
        start, pause = start + seconds, length(cry.pause_seconds)
        if start + pause < end:
            higher = pitch * rng.uniform(1.3, 1.7)
            breaths.append(Breath(False, start + 0.4 * pause, 0.4 * pause, higher, **inward))
        start, seconds = start + pause, length(cry.later_seconds)
    return end, breaths


def source(
    breath: Breath, infant: Infant, slope: float, rng: np.random.Generator, sample_rate: int
) -> np.ndarray:
    """One breath before the vocal tract, [samples]: glottal pulses and aspiration noise."""
    samples = round(breath.seconds * sample_rate)
    place = np.linspace(0, 1, samples)
    cycles = np.linspace(0, 1, int(breath.seconds * breath.pitch_hz) + 2)
    jitter = np.interp(place, cycles, rng.normal(0, infant.jitter, len(cycles)))
    shimmer = np.interp(place, cycles, rng.normal(0, infant.shimmer, len(cycles)))
    rise = np.minimum(place / breath.peak, (1 - place) / (1 - breath.peak))
    melody = breath.arc_semitones * -0.5 * np.cos(np.pi * rise)
    melody += breath.glide_semitones * np.clip((place - 0.5) * breath.seconds / 0.1, -0.5, 0.5)
    pitch = breath.pitch_hz * 2 ** ((melody + jitter) / 12)
    pulses, phase = harmonics(pitch, sample_rate, slope)
    if breath.second:  # its pitch falls where the first rises
        against = breath.pitch_hz * breath.second * 2 ** (-melody / 12)
        pulses += 0.7 * harmonics(against, sample_rate, slope)[0]
    aspiration = rng.normal(size=samples) * (1 + 0.5 * np.cos(phase))
    # One rough stretch with soft edges, in which every other cycle is weaker.
    begin = rng.uniform(0, 1 - breath.rough)
    inside = np.minimum(place - begin, begin + breath.rough - place)
    rough = np.clip(inside * breath.seconds / 0.04, 0, 1)
    attack, release = breath.onset_seconds / breath.seconds, infant.release
    envelope = np.clip(np.minimum(place / attack, (1 - place) / release), 0, 1)
    envelope = np.sin(0.5 * np.pi * envelope) ** 2 * (1 - 0.3 * place)
    pulses *= (1 + shimmer) * (1 + 0.7 * rough * np.cos(phase / 2))
    if not breath.expiration:
        return envelope * (0.05 * pulses + 0.15 * aspiration)
    return envelope * (pulses + (infant.breath + 0.1 * rough) * aspiration)


def render(
    infant: Infant, cry: Cry, rng: np.random.Generator, sample_rate: int
) -> tuple[np.ndarray, float]:
    """The waveform, [samples], and the level of its peak in decibels."""
    place = infant.place
    seconds, planned = bout(infant, cry, rng)
    level, slope = rng.normal(infant.level, 2.0), rng.normal(infant.slope, 0.2)
    background = rng.normal(place.background, 5.0)
    samples = round(seconds * sample_rate)
    x = np.zeros(samples + sample_rate // 2)  # the rest is for echoes past the end
    for breath in planned:
        part = source(breath, infant, slope, rng, sample_rate)
        start = round(breath.start * sample_rate)
        x[start : start + len(part)] += part
    frequency, filtered = spectrum(x, sample_rate)
    size = 2 * (len(frequency) - 1)
    room = np.zeros(size)
    room[0] = 1.0
    np.add.at(room, np.round(place.echo_seconds * sample_rate).astype(int), place.echo_gains)
    filtered *= np.fft.rfft(room)
    for centre, bandwidth in infant.FORMANTS_HZ:
        filtered *= resonance(frequency, centre * infant.tract, bandwidth)
    audible = np.maximum(frequency, 50.0)
    noise = np.fft.rfft(rng.normal(size=size)) * audible ** (-place.hiss / 2)
    filtered += noise * (amplitude(background) * norm(filtered) / norm(noise))
    gains = np.interp(np.log(audible), np.log(place.CHANNEL_HZ), place.channel)
    filtered *= amplitude(gains) * np.minimum(frequency / 100, 1)
    return np.fft.irfft(filtered, size)[:samples], min(level, -1.0)
