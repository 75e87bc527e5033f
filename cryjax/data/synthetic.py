"""Corpora that need no download: general sounds, infant-like cries, and a clinical set of them.

They let the quickstart and the tests run on a fresh machine. They are synthetic: no result on them
is evidence about infants, and what tells the cries apart is `CRIES` and `clinical.INJURY`, tables
made up for the purpose. Imported by worker processes, so imports little.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from cryjax.data import clinical

LOWEST_RATE_HZ = 8_000

_NUMBERS = {
    "sounds": 0,
    "cries": 1,
    "clinical-injury": clinical.SET,
    "clinical-triggers": clinical.SET,  # the same recordings
    "clinical-unlabelled": 3,
}
# In the place of a clip's index, for a subject's traits. Not a small number: SeedSequence takes
# [seed, corpus, n] and [seed, corpus, n, 0] for the same.
_TRAITS = 2**32 - 1
_CLIPS_A_SUBJECT = 10
KINDS = ("tone", "chirp", "stack", "noise", "clicks")  # of the events in `sounds`


@dataclasses.dataclass(frozen=True)
class Clip:
    """One clip to be made; picklable and tiny: it is rendered in worker processes."""

    corpus: str  # key of CORPORA
    index: int
    seed: int
    label: str  # '' is none, several are joined by ';'
    subject: str  # whose traits the clip has

    def render(self, sample_rate: int) -> np.ndarray:
        """float32 [samples] in [-1, 1], 1 to 4 s, bit for bit the same in any process of a machine.

        Args:
          sample_rate: in hertz, 8000 or more. The timing and the pitch of a cry do not depend on
            it; its noise does, and so does everything of a sound.
        """
        make = _sounds if self.corpus == "sounds" else _cry
        waveform, level = make(self, _generator(self), sample_rate)
        return (waveform * (_amplitude(level) / np.abs(waveform).max())).astype(np.float32)


def _generator(clip: Clip) -> np.random.Generator:
    return np.random.default_rng([clip.seed, _NUMBERS[clip.corpus], clip.index])


def _amplitude(decibels):
    return 10.0 ** (decibels / 20.0)


def _norm(x: np.ndarray) -> float:
    return np.sqrt(np.sum(np.abs(x) ** 2))  # not by BLAS, whose sum depends on its threads


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return np.exp(rng.uniform(np.log(low), np.log(high)))


def _spectrum(waveform: np.ndarray, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies in hertz and the spectrum, zero-padded to a length that transforms fast."""
    size = -(-len(waveform) // 4096) * 4096
    return np.fft.rfftfreq(size, 1.0 / sample_rate), np.fft.rfft(waveform, size)


def _resonance(frequency: np.ndarray, centre: float, bandwidth: float) -> np.ndarray:
    """Response of a second-order resonator, hertz throughout; 1 at 0 Hz, causal."""
    return centre**2 / (centre**2 - frequency**2 + 1j * frequency * bandwidth)


def _harmonics(
    pitch: np.ndarray, sample_rate: int, slope: float, most: int = 1_000
) -> tuple[np.ndarray, np.ndarray]:
    """Sum over k of k^-slope cos(k phase), without what lies over 0.95 of the Nyquist frequency.

    By Clenshaw's recurrence, so that a harmonic costs a few multiplications and no cosine.

    Args:
      pitch: [samples] of the fundamental, in hertz.
      slope: 1 is 6 dB an octave.
      most: harmonics.

    Returns:
      [samples], and the phase of the fundamental in radians [samples].
    """
    limit, highest = 0.95 * sample_rate / 2, pitch.max()
    phase = 2 * np.pi * np.cumsum(pitch) / sample_rate
    twice = 2 * np.cos(phase)
    first, second = np.zeros_like(pitch), np.zeros_like(pitch)
    for k in range(min(most, int(limit / pitch.min())), 0, -1):
        amplitude = k**-slope
        if k * highest > 0.95 * limit:  # carried to the limit by a rising pitch, it fades out
            amplitude = amplitude * np.clip((1 - k * pitch / limit) / 0.05, 0, 1)
        first, second = amplitude + twice * first - second, first
    return first * np.cos(phase) - second, phase


@dataclasses.dataclass(frozen=True)
class Cry:
    """What a label does to a cry: medians over clips, which vary about them by `_SPREAD`."""

    pitch_semitones: float  # mean fundamental, from the infant's own
    first_seconds: float  # length of the first expiration
    later_seconds: float  # length of the others
    pause_seconds: float  # between expirations; an inspiration lies in it
    irregularity: float  # standard deviation of a length's logarithm within a clip
    onset_seconds: float  # from silence to full amplitude
    arc_semitones: float  # from the ends of the melody up to its peak
    peak: float  # where that is, as a share of the expiration
    rough: float  # share of an expiration with subharmonics and noise (dysphonation)


# The directions follow descriptions of such cries: pain has a long first expiration, an abrupt
# onset, a higher and falling pitch and more dysphonation; hunger is rhythmic with a melody that
# rises and falls; discomfort is shorter, lower, flatter and sets in weakly (Wasz-Höckert et al.,
# 'The infant cry', 1968; LaGasse, Neal and Lester, 'Assessment of infant cry', 2005). The sizes are
# chosen for a task of moderate difficulty, and measure nothing: by subject, a linear classifier of
# the numbers in `breaths` is right nine times in ten, one of the mean and deviation of a log-mel
# spectrogram six in ten, one of the pitch alone four in ten.
CRIES = {
    "pain": Cry(1.5, 1.3, 0.9, 0.7, 0.25, 0.025, 3.0, 0.2, 0.2),
    "hunger": Cry(0.0, 0.85, 0.75, 0.4, 0.08, 0.06, 4.5, 0.45, 0.15),
    "discomfort": Cry(-1.0, 0.7, 0.6, 0.35, 0.25, 0.14, 1.5, 0.5, 0.15),
}
# Standard deviations from clip to clip, of logarithms for the seconds.
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
    glide_semitones: float = 0.0  # by which the pitch leaps halfway, in a tenth of a second
    second: float = 0.0  # pitch of a second voice, against that of the first; 0 is none


class _Place:
    """Where an infant is recorded."""

    CHANNEL_HZ = np.geomspace(100, 12_000, 6)

    def __init__(self, rng: np.random.Generator):
        self.background = rng.uniform(-40, -20)  # noise against the cry, decibels
        self.hiss = rng.uniform(0.3, 1.5)  # exponent by which the noise's power falls
        self.channel = rng.normal(0, 4, len(self.CHANNEL_HZ))  # gains, decibels
        self.echo_seconds = rng.uniform(0.002, 0.4, 200)
        decay = np.exp(-6.9 * self.echo_seconds / rng.uniform(0.1, 0.4)) * rng.normal(size=200)
        wet = rng.uniform(0.1, 0.6) * (rng.random() < 0.7)
        self.echo_gains = wet * decay / _norm(decay)


class _Infant:
    """Traits of a subject, and its place; none depends on the label of a clip of `cries`."""

    # Of a median infant: centres and bandwidths. Those over the Nyquist frequency count too: the
    # skirt of each shapes the band below it.
    FORMANTS_HZ = ((1100, 120), (3200, 250), (5300, 400), (7400, 500))

    def __init__(self, rng: np.random.Generator):
        self.pitch_hz = _log_uniform(rng, 320, 520)
        self.tempo = np.exp(rng.normal(0, 0.15))  # lengths, against the table's
        self.tract = rng.uniform(0.88, 1.12)  # formants, against the median infant's
        self.slope = rng.normal(1.0, 0.15)  # of the source's harmonics
        self.breath = _log_uniform(rng, 0.02, 0.15)  # aspiration, against the voice
        self.jitter = rng.uniform(0.05, 0.25)  # standard deviation of a cycle's pitch, semitones
        self.shimmer = rng.uniform(0.02, 0.12)  # the same of its amplitude, as a share
        self.level = rng.uniform(-18, -4)  # of the peak, decibels
        self.release = rng.uniform(0.1, 0.5)  # of an expiration, as a share
        self.place = _Place(rng)
        self.wander = 0.3  # standard deviation of an expiration's pitch within a clip, semitones
        self.odd = 0.0  # share of expirations that are not ordinary phonation: see `_odd`


def _afflict(infant: _Infant, cry: Cry, severity: float) -> Cry:
    """Changes an infant's traits as an injury does, and gives what it makes of a cry."""
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


def _cast(clip: Clip) -> tuple[_Infant, Cry]:
    """Who cries in a clip, and how."""
    number = int(clip.subject.removeprefix("infant").removeprefix("newborn"))
    if clip.corpus == "cries":
        rng = np.random.default_rng([clip.seed, _NUMBERS[clip.corpus], _TRAITS, number])
        return _Infant(rng), CRIES[clip.label]
    newborn = clinical.newborn(clip.seed, number)
    rng = np.random.default_rng([clip.seed, clinical.SET, _TRAITS, number])
    infant, place = _Infant(rng), _Place(clinical.site_generator(clip.seed, newborn.site))
    # Wards, and the hands that hold the microphone, differ within a site by less than sites do.
    place.background += rng.normal(0, 2)
    place.channel += rng.normal(0, 1.5, len(place.channel))
    infant.place = place
    infant.wander *= np.exp(rng.normal(0, 0.4))
    infant.odd = _log_uniform(rng, 0.01, 0.1)
    return infant, _afflict(infant, CRIES[_trigger(clip.index)], newborn.severity)


def _odd(rng: np.random.Generator) -> dict[str, float]:
    """Hyperphonation, a glide or biphonation, as fields of a `Breath`."""
    kinds = [
        {"pitch_hz": _log_uniform(rng, 1_000, 1_600)},
        {"glide_semitones": rng.choice([-1, 1]) * rng.uniform(5, 10)},
        {"second": rng.uniform(1.2, 1.8)},
    ]
    return kinds[rng.integers(len(kinds))]


def _bout(infant: _Infant, cry: Cry, rng: np.random.Generator) -> tuple[float, list[Breath]]:
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

    def length(median):
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


def breaths(clip: Clip) -> list[Breath]:
    """What a clip of cries is made to hold, in the order of time."""
    return _bout(*_cast(clip), _generator(clip))[1]


def _source(
    breath: Breath, infant: _Infant, slope: float, rng: np.random.Generator, sample_rate: int
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
    pulses, phase = _harmonics(pitch, sample_rate, slope)
    if breath.second:  # which falls where the first rises
        against = breath.pitch_hz * breath.second * 2 ** (-melody / 12)
        pulses += 0.7 * _harmonics(against, sample_rate, slope)[0]
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


def _cry(clip: Clip, rng: np.random.Generator, sample_rate: int) -> tuple[np.ndarray, float]:
    """The waveform, [samples], and the level of its peak in decibels."""
    infant, cry = _cast(clip)
    place = infant.place
    seconds, planned = _bout(infant, cry, rng)
    level, slope = rng.normal(infant.level, 2.0), rng.normal(infant.slope, 0.2)
    background = rng.normal(place.background, 5.0)
    samples = round(seconds * sample_rate)
    x = np.zeros(samples + sample_rate // 2)  # the end takes what echoes past the clip
    for breath in planned:
        part = _source(breath, infant, slope, rng, sample_rate)
        start = round(breath.start * sample_rate)
        x[start : start + len(part)] += part
    frequency, spectrum = _spectrum(x, sample_rate)
    size = 2 * (len(frequency) - 1)
    room = np.zeros(size)
    room[0] = 1.0
    np.add.at(room, np.round(place.echo_seconds * sample_rate).astype(int), place.echo_gains)
    spectrum *= np.fft.rfft(room)
    for centre, bandwidth in infant.FORMANTS_HZ:
        spectrum *= _resonance(frequency, centre * infant.tract, bandwidth)
    audible = np.maximum(frequency, 50.0)
    noise = np.fft.rfft(rng.normal(size=size)) * audible ** (-place.hiss / 2)
    spectrum += noise * (_amplitude(background) * _norm(spectrum) / _norm(noise))
    gains = np.interp(np.log(audible), np.log(place.CHANNEL_HZ), place.channel)
    spectrum *= _amplitude(gains) * np.minimum(frequency / 100, 1)
    return np.fft.irfft(spectrum, size)[:samples], min(level, -1.0)


def _event(kind: str, rng: np.random.Generator, samples: int, sample_rate: int) -> np.ndarray:
    """One sound of one of `KINDS`, [samples], within [-1, 1]."""
    seconds = np.arange(samples) / sample_rate
    low, high = 60.0, 0.45 * sample_rate
    if kind == "noise":
        below, above = np.sort(np.exp(rng.uniform(np.log(low), np.log(high), 2)))
        frequency, spectrum = _spectrum(rng.normal(size=samples), sample_rate)
        spectrum /= 1 + (below / np.maximum(frequency, 1)) ** 8
        x = np.fft.irfft(spectrum / (1 + (frequency / above) ** 8))[:samples]
    elif kind == "clicks":
        gaps = rng.choice([rng.exponential(1, 100), np.ones(100)])  # irregular or regular
        times = (np.cumsum(gaps) - gaps[0]) / _log_uniform(rng, 2, 40)
        x = np.zeros(samples)
        x[(times[times < seconds[-1]] * sample_rate).astype(int)] = 1
        frequency, spectrum = _spectrum(x, sample_rate)
        spectrum *= _resonance(frequency, _log_uniform(rng, 300, high), _log_uniform(rng, 10, 300))
        x = np.fft.irfft(spectrum)[:samples]
    else:
        start = _log_uniform(rng, low, high / 4 if kind == "stack" else high)
        end = _log_uniform(rng, low, high) if kind == "chirp" else start
        vibrato = rng.choice([0.0, rng.uniform(0.2, 1.5)]) / 12
        octaves = np.log2(end / start) * np.linspace(0, 1, samples)
        octaves += vibrato * np.sin(2 * np.pi * rng.uniform(3, 9) * seconds)
        pitch = np.clip(start * 2**octaves, low, high)
        most = rng.integers(3, 20) if kind == "stack" else 1
        x, _ = _harmonics(pitch, sample_rate, rng.uniform(0.3, 1.5), most)
    depth = rng.choice([0.0, rng.uniform(0.2, 1)])
    x *= 1 + depth * np.sin(2 * np.pi * _log_uniform(rng, 1, 25) * seconds)
    attack, release = _log_uniform(rng, 0.003, 0.2), _log_uniform(rng, 0.02, 0.5)
    x *= np.clip(np.minimum(seconds / attack, (seconds[-1] - seconds) / release), 0, 1)
    x *= np.exp(-seconds * rng.choice([0.0, _log_uniform(rng, 0.5, 10)]))
    return x / np.abs(x).max()


def _kinds(rng: np.random.Generator) -> list[str]:
    """Of the events of a clip: the first that its generator draws, so that its label is cheap."""
    return rng.choice(KINDS, rng.integers(1, 5)).tolist()


def _sounds(_: Clip, rng: np.random.Generator, sample_rate: int) -> tuple[np.ndarray, float]:
    """One to four events, apart or overlapping, over a little noise; as `_cry`."""
    kinds = _kinds(rng)
    samples = round(rng.uniform(1.0, 4.0) * sample_rate)
    x = rng.normal(size=samples) * _amplitude(rng.uniform(-70, -35))
    for kind in kinds:
        length = min(round(_log_uniform(rng, 0.2, 2.0) * sample_rate), samples)
        start = rng.integers(samples - length + 1)
        event = _event(kind, rng, length, sample_rate)
        x[start : start + length] += _amplitude(rng.uniform(-15, 0)) * event
    return x, rng.uniform(-20, -1)


def sounds(examples: int, seed: int) -> list[Clip]:
    """General sounds of 1 to 4 s, labelled by the kinds of their events, each its own subject."""
    unlabelled = [Clip("sounds", i, seed, "", f"sound{i}") for i in range(examples)]
    return [
        dataclasses.replace(clip, label=";".join(sorted(set(_kinds(_generator(clip))))))
        for clip in unlabelled
    ]


def _trigger(index: int) -> str:
    return list(CRIES)[index % len(CRIES)]


def cries(examples: int, seed: int) -> list[Clip]:
    """Cries of 2 to 4 s: about ten clips an infant, labels of `CRIES` in turn."""
    last = max(examples // _CLIPS_A_SUBJECT, 1) - 1
    subjects = [f"infant{min(i // _CLIPS_A_SUBJECT, last):03d}" for i in range(examples)]
    return [Clip("cries", i, seed, _trigger(i), subjects[i]) for i in range(examples)]


def clinical_injury(examples: int, seed: int) -> list[Clip]:
    """Cries as of `cries`, of newborns of whom a tenth have a neurological injury."""
    return [
        Clip(
            "clinical-injury",
            i,
            seed,
            "injury" if clinical.newborn(seed, number).severity else "healthy",
            f"newborn{number:04d}",
        )
        for i, number in enumerate(clinical.labelled(examples, seed))
    ]


def clinical_triggers(examples: int, seed: int) -> list[Clip]:
    """The recordings of `clinical_injury`, labelled as `cries` are."""
    return [
        dataclasses.replace(clip, corpus="clinical-triggers", label=_trigger(clip.index))
        for clip in clinical_injury(examples, seed)
    ]


def clinical_unlabelled(examples: int, seed: int) -> list[Clip]:
    """Recordings without labels; a fifth are of newborns of the labelled ones, see `clinical`."""
    return [
        Clip("clinical-unlabelled", i, seed, "", f"newborn{number:04d}")
        for i, number in enumerate(clinical.unlabelled(examples))
    ]


CORPORA: dict[str, Callable[[int, int], list[Clip]]] = {
    "sounds": sounds,
    "cries": cries,
    "clinical-injury": clinical_injury,
    "clinical-triggers": clinical_triggers,
    "clinical-unlabelled": clinical_unlabelled,
}
