"""Pseudonyms for subjects: datasets, runs and reports hold no names given by a clinic.

A name is replaced by its keyed hash (BLAKE2b). Whoever has the key can re-identify a subject; all
datasets made with one key agree on who is who, so that a test subject can be kept out of training.
The key stays with its owner: on this machine, in a file that only they can read.
"""

import hashlib
import os
import pathlib
import re
import secrets
import tempfile
from collections.abc import Sequence

import numpy as np

from cryjax.command.errors import UserError

# Environment variable: another path for the key.
VARIABLE = "CRYJAX_SUBJECT_KEY"
_BYTES = 32


def key_file() -> pathlib.Path:
    """Where the key is, or will be."""
    return pathlib.Path(os.environ.get(VARIABLE) or pathlib.Path.home() / ".cryjax" / "subject-key")


def read_key() -> bytes | None:
    """The key, or None if none was made yet. Raises UserError if the file holds none."""
    file = key_file()
    try:
        key = bytes.fromhex(file.read_text(encoding="ascii").strip())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError:
        key = b""
    if len(key) != _BYTES:
        raise UserError(f"{file}: not a subject key; give another path in {VARIABLE}")
    return key


def read_or_make_key() -> tuple[bytes, bool]:
    """The key, and whether it had to be made."""
    key = read_key()
    if key is not None:
        return key, False
    key, file = secrets.token_bytes(_BYTES), key_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Private to its owner, complete, and never over one that another process just made.
        with tempfile.NamedTemporaryFile("w", dir=file.parent, encoding="ascii") as made:
            made.write(key.hex() + "\n")
            made.flush()
            os.link(made.name, file)
    except FileExistsError:
        key = read_key()
        if key is None:
            raise UserError(
                f"{file}: a broken link; repair it, or give another path in {VARIABLE}"
            ) from None
        return key, False
    except OSError as error:
        raise UserError(
            f"{file}: the subject key cannot be written ({error.strerror}); give another path "
            f"in {VARIABLE}"
        ) from error
    return key, True


def pseudonym(subject: str, key: bytes) -> str:
    """A subject's pseudonym, 's-' and 16 hexadecimal digits."""
    name = subject.encode("utf-8", errors="surrogateescape")
    return "s-" + hashlib.blake2b(name, key=key, digest_size=8).hexdigest()


def is_pseudonym(name: str) -> bool:
    """Whether a name has the form that `pseudonym` gives."""
    return re.fullmatch("s-[0-9a-f]{16}", name) is not None


def fingerprint(key: bytes) -> str:
    """Shows whether two datasets share a key, without revealing it."""
    return hashlib.blake2b(b"cryjax subject key", key=key, digest_size=8).hexdigest()


def numbered(subjects: Sequence[str] | np.ndarray) -> tuple[np.ndarray, int]:
    """Subjects as numbers in order of first appearance, and how many there are.

    What is assigned or drawn by these numbers does not depend on the subjects' names, so it is the
    same under every key.

    Args:
      subjects: [recordings].

    Returns:
      int [recordings], from 0 up; and the number of subjects.
    """
    names, first, group = np.unique(subjects, return_index=True, return_inverse=True)
    rank = np.empty(len(names), int)
    rank[np.argsort(first, kind="stable")] = np.arange(len(names))
    return rank[group], len(names)


def check_one_key(keys: dict[str, str]) -> None:
    """Rejects datasets made with different keys, whose subjects cannot be compared.

    Args:
      keys: dataset -> fingerprint of its key, '' for subjects under their own names.

    Raises:
      UserError: naming two such datasets.
    """
    named = [(dataset, key) for dataset, key in keys.items() if key]
    for dataset, key in named[1:]:
        if key != named[0][1]:
            raise UserError(
                f"{named[0][0]} and {dataset} were prepared with different keys, so nobody can "
                f"tell whether they share subjects; prepare both with one key ({VARIABLE})"
            )
