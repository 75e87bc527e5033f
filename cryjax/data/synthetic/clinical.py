"""Newborns of the synthetic clinical corpora, with their sites, injuries and recordings.

Modelled on the datasets of 'Self-supervised learning for infant cry analysis' (Gorin et al., 2023),
with every number made up. The corpora of one seed share their newborns:

  clinical-injury      3 to 8 recordings each of newborn0000, newborn0001, ... in turn, up to the
                       requested number: 5500 cover about a thousand newborns
  clinical-triggers    the same recordings with other labels
  clinical-unlabelled  every fifth is of newborn0000, newborn0001, ..., four other recordings each;
                       the others are of newborn100000, newborn100001, ..., four each

So a shorter list is the start of a longer one. With up to three unlabelled recordings per labelled
one, a fifth of the former are of labelled newborns, to be left out when testing on those.
Imported by worker processes, so imports little.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

SET = 2  # in seeds, besides those of `clips`
SITES = 5
_FEWEST, _MOST = 3, 8  # labelled recordings per newborn
_UNLABELLED = 4  # unlabelled recordings per newborn
_OVERLAP = 5  # one unlabelled recording in this many is of a newborn with labelled ones
_FIRST_UNLABELLED = 100_000
# Newborns are drawn ten at a time, one of them injured, so that small sets have some too. `_ODDS`
# are the odds, by site, of being that newborn. This is a confound, as in real sets, but a mild one:
# the site predicts injury with a ROC AUC of 0.53, and in a few hundred recordings chance does more.
_BLOCK = 10
_ODDS = np.array([0.8, 0.9, 1.0, 1.1, 1.2])
# In place of a clip's index in seeds, like `clips._TRAITS`.
_BLOCKS, _PLACES = 2**32 - 2, 2**32 - 3


@dataclasses.dataclass(frozen=True)
class Injury:
    """What a neurological injury of severity 1 adds to a newborn's cry, whatever the trigger.

    Fields marked 'logarithm' add to the logarithm.
    """

    pitch_semitones: float
    wander: float  # logarithm of the standard deviation of pitch from one expiration to the next
    jitter: float  # logarithm
    seconds: float  # logarithm of the lengths of expirations
    pause: float  # logarithm of the lengths of pauses
    irregularity: float  # of both
    arc: float  # logarithm: flatter if negative
    rough: float  # share of an expiration
    odd: float  # share of expirations with hyperphonation, a glide or biphonation


# The directions follow descriptions of cries after asphyxia and injury of the brain: higher and
# less stable pitch, glides, biphonation and flatter or otherwise unusual melodies (Michelsson, 'Cry
# analyses of symptomless low birth weight neonates and of asphyxiated newborn infants', 1971;
# Michelsson and Michelsson, 'Phonation in the newborn, infant cry', 1999), shorter expirations
# (Zeskind and Lester, 'Acoustic features and auditory perceptions of the cries of newborns with
# prenatal and perinatal complications', 1978), hyperphonation and more dysphonation (LaGasse, Neal
# and Lester, 'Assessment of infant cry', 2005). Longer pauses and an irregular rhythm are assumed.
# The sizes are made up for a task of moderate difficulty, and measure nothing. With splits
# by subject, a linear classifier of single recordings has these ROC AUCs for injury: the means over
# ten seeds of 600 recordings each, with about eleven injured newborns (they vary by 0.03, 0.07 and
# 0.07 between seeds); and over two seeds of 4000.
#
#                          mean and deviation of a
#   numbers in `breaths`   log-mel spectrogram       pitch alone
#   0.89                   0.71                      0.65         600 recordings
#   0.92                   0.80                      0.65         4000
#
# For triggers, accuracies are about 0.88, 0.53 and 0.43 on 600, and 0.89, 0.58 and 0.43 on 4000.
INJURY = Injury(1.5, 0.9, 0.4, -0.25, 0.4, 0.1, -0.5, 0.14, 0.2)


@dataclasses.dataclass(frozen=True)
class Newborn:
    site: int
    recordings: int  # in the labelled corpora
    severity: float  # of a neurological injury, 1 on average; 0 for none


def newborn(seed: int, number: int) -> Newborn:
    block, place = divmod(number, _BLOCK)
    rng = np.random.default_rng([seed, SET, _BLOCKS, block])
    sites = rng.integers(SITES, size=_BLOCK)
    recordings = rng.integers(_FEWEST, _MOST + 1, _BLOCK)
    severity = rng.uniform(0.5, 1.5)
    injured = rng.choice(_BLOCK, p=_ODDS[sites] / _ODDS[sites].sum())
    here = severity if place == injured else 0.0
    return Newborn(int(sites[place]), int(recordings[place]), here)


def site_generator(seed: int, site: int) -> np.random.Generator:
    """For the room and microphone of a site."""
    return np.random.default_rng([seed, SET, _PLACES, site])


def labelled(examples: int, seed: int) -> list[int]:
    """The newborn's number for each recording."""

    def recorded() -> Iterator[int]:
        for number in itertools.count():
            yield from itertools.repeat(number, newborn(seed, number).recordings)

    return list(itertools.islice(recorded(), examples))


def unlabelled(examples: int) -> list[int]:
    """Same as `labelled`."""
    numbers = []
    for i in range(examples):
        again, between = divmod(i, _OVERLAP)
        if between:
            numbers.append(_FIRST_UNLABELLED + (i - again - 1) // _UNLABELLED)
        else:
            numbers.append(again // _UNLABELLED)
    return numbers
