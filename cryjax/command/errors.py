"""Errors that end a program with one line, not a traceback."""

import errno
import os

_PASSING = (errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EAGAIN)


class UserError(Exception):
    """A mistake that the user can fix. The message is one line: the problem, then the remedy."""


class TooFewLabels(UserError):
    """Too few recordings, subjects or classes for what was asked: a gap in an experiment."""


class Unavailable(Exception):
    """A failure of a disk, a file server or another machine, which may work the next time.

    One line, as for a `UserError`, but exit status 1: launchers restart the program.
    """


def one_line(error: BaseException | str, most: int = 300) -> str:
    """The text of another library's error as one line of at most `most` characters."""
    return " ".join(str(error).split())[:most]


def away(what: object, error: BaseException) -> Unavailable:
    """The error for something that cannot be read because its file server is away."""
    return Unavailable(
        f"{what}: cannot be read ({one_line(error)}): is its file server responding?"
    )


def passes(error: BaseException) -> bool:
    """Whether an error is that of a file server that is away, or just back."""
    # Libraries give some of the system's errors as text.
    return getattr(error, "errno", None) in _PASSING or any(
        os.strerror(number) in str(error) for number in _PASSING
    )
