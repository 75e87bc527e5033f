"""A decoded recording, and what becomes of it: the lines that a dataset's counts are made of."""

import collections
import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np


def digest(audio: np.ndarray) -> str:
    """By which the same int16 [samples] are known again, 24 hexadecimal digits of BLAKE2b."""
    return hashlib.blake2b(np.ascontiguousarray(audio).data, digest_size=12).hexdigest()


@dataclasses.dataclass(frozen=True)
class Recording:
    """One decoded recording.

    Attributes:
      number: its place in the input. Those that cannot be used count too: who makes a recording
        need not know what became of those before it.
      audio: int16 [samples] at the dataset's rate, or None.
      label: as a manifest's.
      subject: as a manifest's.
      reason: why there is no audio.
      alone: whether nobody said whose it is.
      rate: at which it was recorded, in hertz; 0 is not known.
    """

    number: int
    audio: np.ndarray | None
    label: str = ""
    subject: str = ""
    reason: str = ""
    alone: bool = False
    rate: int = 0

    @functools.cached_property
    def digest(self) -> str:
        """Of the audio; '' for none."""
        return "" if self.audio is None else digest(self.audio)

    @property
    def subject_id(self) -> str:
        """By which subjects are told apart in all datasets.

        Where nobody said whose it is, in the form of `subjects.pseudonym`, but of the audio: the
        same wherever the file lies and whatever it is called, and another for another 'a.wav'.
        """
        return f"s-{self.digest[:16]}" if self.alone else self.subject


@dataclasses.dataclass(frozen=True, slots=True)
class Account:
    """What became of a recording. Fields as in `Recording`, and what was cut out of it."""

    number: int
    label: str
    subject: str
    reason: str  # '' if it is used
    alone: bool
    rate: int
    digest: str  # of its audio, '' for none
    examples: int
    samples: int

    @classmethod
    def of(cls, recording: Recording, examples: Sequence[tuple[str, dict[str, Any]]]) -> "Account":
        return cls(
            recording.number,
            recording.label,
            recording.subject_id,
            recording.reason,
            recording.alone,
            recording.rate,
            recording.digest,
            len(examples),
            sum(len(example["audio"]) for _, example in examples),
        )


@dataclasses.dataclass
class Tally:
    """What went into one split."""

    examples: int = 0
    samples: int = 0
    subjects: set[str] = dataclasses.field(default_factory=set)
    labels: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    recordings: int = 0

    def add(self, account: Account) -> None:
        self.recordings += 1
        self.examples += account.examples
        self.samples += account.samples
        self.subjects.add(account.subject)
        self.labels.update(filter(None, account.label.split(";")))

    def summary(self, sample_rate: int) -> dict[str, Any]:
        return {
            "examples": self.examples,
            "recordings": self.recordings,
            "subjects": len(self.subjects),
            "hours": round(self.samples / sample_rate / 3600, 4),
            "labels": dict(sorted(self.labels.items())),
        }
