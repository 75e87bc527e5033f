"""How a program starts and how it fails: exit 0 if it did its work, one line and exit 2 if not."""

import os
import sys
from collections.abc import Callable

from absl import app, flags


class UserError(Exception):
    """A mistake that the user can mend. The message is one line: the thing, then the remedy."""


def _parse(argv: list[str]) -> list[str]:
    """Parses absl flags; anything wrong with a flag or a config override is a `UserError`."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        raise UserError(f"{error} (--help lists the flags)") from error
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # ml_collections applies overrides, and runs the config file, while flags are parsed.
        message = " ".join(str(error.args[0] if error.args else error).split())
        raise UserError(f"the command line or the config file: {message}") from error


def required(flag: flags.FlagHolder) -> str:
    """The flag's value. Raises UserError where it was not given."""
    if not flag.value:
        raise UserError(f"--{flag.name} is missing: {flag._flagvalues[flag.name].help}")
    return flag.value


def run(main: Callable[[list[str]], None]) -> None:
    """Runs `main(argv)` as an absl program.

    A `UserError`, raised while flags are parsed or at any time later, becomes one line on standard
    error and exit status 2. Any other exception is a fault of ours and keeps its traceback.
    """
    # XLA's and gRPC's start-up chatter hides the lines that matter; set it to 0 to see it.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        app.run(main, flags_parser=_parse)
    except UserError as error:
        print(f"{sys.argv[0].rsplit('/', 1)[-1]}: error: {error}", file=sys.stderr)
        sys.exit(2)
