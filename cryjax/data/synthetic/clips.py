"""The synthetic corpora: the clips of each, with subjects and labels."""

import dataclasses
from collections.abc import Callable

import numpy as np

from cryjax.data.synthetic import clinical, cries, sounds
from cryjax.data.synthetic.cries import CRIES, Breath, Cry, Infant, Place, afflict
from cryjax.data.synthetic.signals import amplitude, log_uniform

LOWEST_RATE_HZ = 8_000

_NUMBERS = {
    "sounds": 0,
    "cries": 1,
    "clinical-injury": clinical.SET,
    "clinical-triggers": clinical.SET,  # the same recordings
    "clinical-unlabelled": 3,
}
# In place of a clip's index, for a subject's traits. Not a small number: SeedSequence treats
# [seed, corpus, n] and [seed, corpus, n, 0] as the same.
_TRAITS = 2**32 - 1
_CLIPS_A_SUBJECT = 10


@dataclasses.dataclass(frozen=True)
class Clip:
    """One clip to be made; picklable and tiny, as worker processes render it."""

    corpus: str  # key of CORPORA
    index: int
    seed: int
    label: str  # '' for none, several are joined by ';'
    subject: str  # whose traits the clip has

    def render(self, sample_rate: int) -> np.ndarray:
        """float32 [samples] in [-1, 1], 1 to 4 s, bit-identical in any process on one machine.

        Args:
          sample_rate: in hertz, 8000 or more. The timing and the pitch of a cry do not depend on
            it; its noise and all of a general sound do.
        """
        rng = _generator(self)
        if self.corpus == "sounds":
            waveform, level = sounds.render(rng, sample_rate)
        else:
            waveform, level = cries.render(*_cast(self), rng, sample_rate)
        return (waveform * (amplitude(level) / np.abs(waveform).max())).astype(np.float32)


def _of(seed: int) -> str:
    """Suffix of a seed's subject names: another seed has other subjects."""
    return f"-{seed}" if seed else ""


def _generator(clip: Clip) -> np.random.Generator:
    return np.random.default_rng([clip.seed, _NUMBERS[clip.corpus], clip.index])


def _cast(clip: Clip) -> tuple[Infant, Cry]:
    """Who cries in a clip, and how."""
    name = clip.subject.partition("-")[0]
    number = int(name.removeprefix("infant").removeprefix("newborn"))
    if clip.corpus == "cries":
        rng = np.random.default_rng([clip.seed, _NUMBERS[clip.corpus], _TRAITS, number])
        return Infant(rng), CRIES[clip.label]
    newborn = clinical.newborn(clip.seed, number)
    rng = np.random.default_rng([clip.seed, clinical.SET, _TRAITS, number])
    infant, place = Infant(rng), Place(clinical.site_generator(clip.seed, newborn.site))
    # Wards, and how the microphone is held, vary less within a site than sites do.
    place.background += rng.normal(0, 2)
    place.channel += rng.normal(0, 1.5, len(place.channel))
    infant.place = place
    infant.wander *= np.exp(rng.normal(0, 0.4))
    infant.odd = log_uniform(rng, 0.01, 0.1)
    return infant, afflict(infant, CRIES[_trigger(clip.index)], newborn.severity)


def breaths(clip: Clip) -> list[Breath]:
    """The breaths planned for a clip of cries, in temporal order."""
    return cries.bout(*_cast(clip), _generator(clip))[1]


def of_sounds(examples: int, seed: int) -> list[Clip]:
    """General sounds of 1 to 4 s, labelled by kinds of events, each its own subject."""
    unlabelled = [Clip("sounds", i, seed, "", f"sound{i}{_of(seed)}") for i in range(examples)]
    return [
        dataclasses.replace(clip, label=";".join(sorted(set(sounds.kinds(_generator(clip))))))
        for clip in unlabelled
    ]


def _trigger(index: int) -> str:
    return list(CRIES)[index % len(CRIES)]


def of_cries(examples: int, seed: int) -> list[Clip]:
    """Cries of 2 to 4 s: about ten clips per infant, labels of `CRIES` in turn."""
    last = max(examples // _CLIPS_A_SUBJECT, 1) - 1
    numbers = [min(i // _CLIPS_A_SUBJECT, last) for i in range(examples)]
    return [
        Clip("cries", i, seed, _trigger(i), f"infant{number:03d}{_of(seed)}")
        for i, number in enumerate(numbers)
    ]


def clinical_injury(examples: int, seed: int) -> list[Clip]:
    """Cries as in `cries`, of newborns, a tenth of whom have a neurological injury."""
    return [
        Clip(
            "clinical-injury",
            i,
            seed,
            "injury" if clinical.newborn(seed, number).severity else "healthy",
            f"newborn{number:04d}{_of(seed)}",
        )
        for i, number in enumerate(clinical.labelled(examples, seed))
    ]


def clinical_triggers(examples: int, seed: int) -> list[Clip]:
    """The recordings of `clinical_injury`, labelled as in `cries`."""
    return [
        dataclasses.replace(clip, corpus="clinical-triggers", label=_trigger(clip.index))
        for clip in clinical_injury(examples, seed)
    ]


def clinical_unlabelled(examples: int, seed: int) -> list[Clip]:
    """Unlabelled recordings, a fifth of them of labelled newborns; see `clinical`."""
    return [
        Clip("clinical-unlabelled", i, seed, "", f"newborn{number:04d}{_of(seed)}")
        for i, number in enumerate(clinical.unlabelled(examples))
    ]


CORPORA: dict[str, Callable[[int, int], list[Clip]]] = {
    "sounds": of_sounds,
    "cries": of_cries,
    "clinical-injury": clinical_injury,
    "clinical-triggers": clinical_triggers,
    "clinical-unlabelled": clinical_unlabelled,
}
