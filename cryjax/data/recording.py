"""A decoded recording, and its account, from which a dataset's counts are made."""

import collections
import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np


def digest(audio: np.ndarray) -> str:
    """Identifies int16 [samples] by 24 hexadecimal digits of their BLAKE2b hash."""
    return hashlib.blake2b(np.ascontiguousarray(audio).data, digest_size=12).hexdigest()


@dataclasses.dataclass(frozen=True)
class Recording:
    """One decoded recording.

    Attributes:
      number: its place in the input. Unusable recordings count too, so that a worker need not know
        what became of those before it.
      audio: int16 [samples] at the dataset's rate, or None.
      label: as in a manifest.
      subject: as in a manifest.
      reason: why there is no audio.
      alone: whether its subject is unknown.
      rate: original sample rate, in hertz; 0 if unknown.
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
        """Digest of the audio; '' for none."""
        return "" if self.audio is None else digest(self.audio)

    @property
    def subject_id(self) -> str:
        """Identifies the subject across datasets.

        An unknown subject gets a name in the form of `subjects.pseudonym`, but from the audio: the
        same whatever the file's folder and name, and a different one for another 'a.wav'.
        """
        return f"s-{self.digest[:16]}" if self.alone else self.subject


@dataclasses.dataclass(frozen=True, slots=True)
class Account:
    """What became of a recording: fields as in `Recording`, and what was cut from it."""

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
