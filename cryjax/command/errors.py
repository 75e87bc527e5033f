"""What a user can mend."""


class UserError(Exception):
    """A mistake that the user can mend. The message is one line: the thing, then the remedy."""


class TooFewLabels(UserError):
    """Too few recordings, subjects or classes for what was asked: a hole in an experiment."""
