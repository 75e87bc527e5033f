"""What ends a program with one line rather than a traceback."""


class UserError(Exception):
    """A mistake that the user can mend. The message is one line: the thing, then the remedy."""


class TooFewLabels(UserError):
    """Too few recordings, subjects or classes for what was asked: a hole in an experiment."""


class Unavailable(Exception):
    """What a disk, a file server or another machine did not give, and may give the next time.

    One line, as of a `UserError`, but exit status 1: launchers start the program again.
    """
