"""How a program starts and fails: exit 0 on success, one line and exit 2 on a mistake."""

import errno
import hashlib
import logging as python_logging
import os
import pathlib
import platform
import re
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from cryjax.command import config as config_lib
from cryjax.command import usage
from cryjax.command.errors import Unavailable, UserError, one_line

# Flags defined here belong to the program, whose --help then lists them.
flags.disclaim_key_flags()
_HELP = ("--help", "-help", "-h", "--helpshort", "-helpshort")
_PACKAGE = str(pathlib.Path(__file__).resolve().parents[1])


def _at_home(argument: str) -> str:
    """A flag with '~/' expanded at the start of its values, where bash leaves it as it is."""
    if not argument.startswith("--"):
        return argument
    # Unlike pathlib's, it leaves '~/' as it is where there is no home.
    home = os.path.expanduser("~/")  # noqa: PTH111
    return re.sub("(?<=[=,])~/", lambda _: home, argument)


def _parse(argv: list[str]) -> list[str]:
    """Parses absl flags; anything wrong with a flag or a config override is a `UserError`.

    If asked for help, prints it and exits with 0.
    """
    before_files = argv[: argv.index("--")] if "--" in argv else argv
    if any(argument in _HELP for argument in before_files):
        # Ends quietly when piped into a pager that closes early.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        print(usage.text(sys.modules["__main__"].__doc__ or "", argv))
        sys.exit(0)
    try:
        return _parsed(argv)
    except Exception as error:
        if (refused := config_lib.not_loaded(error)) is not None:
            raise refused from error
        raise


def _parsed(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        given = any(argument.split("=")[0] in ("--config", "-config") for argument in argv)
        if "command line flag 'config." in str(error) and "config" in flags.FLAGS and not given:
            # Without a recipe there is no field to override.
            raise UserError(f"--config is missing: {flags.FLAGS['config'].help}") from error
        raise UserError(f"{error} (--help lists the flags)") from error
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # ml_collections applies overrides, and runs the config file, while flags are parsed.
        cause = error.args[0] if error.args else None
        if isinstance(error, AttributeError) and isinstance(cause, KeyError):
            cause = cause.args[0]
        # A field's name is quoted, unlike the key of a KeyError in a recipe's own code.
        if (
            isinstance(cause, str)
            and isinstance(error, AttributeError | KeyError)
            and cause.startswith("'")
        ):
            name, _, hint = cause.partition("\n")
            raise UserError(
                f"the config has no field {name}{f'. {hint}' if hint else ''} "
                "(--config=RECIPE.py --help lists the fields)"
            ) from error
        message = (
            str(error.args[0] if error.args else error).replace("\\n", " ").replace("\\'", "'")
        )
        message = " ".join(message.split())
        raise UserError(f"invalid command line or config file: {message}") from error


def required(flag: flags.FlagHolder) -> str:
    """The flag's value. Raises UserError if it was not given."""
    if not flag.value:
        raise UserError(f"--{flag.name} is missing: {flag._flagvalues[flag.name].help}")
    return flag.value


def _quiet(record: python_logging.LogRecord) -> bool:
    """From libraries only warnings: their start-up chatter hides the lines that matter."""
    return record.levelno >= python_logging.WARNING or record.pathname.startswith(_PACKAGE)


def _set_up_logging(name: str) -> None:
    """Plain lines on standard error; `--verbosity=1` shows all, with time and source."""
    if flags.FLAGS.verbosity < 1:
        handler = logging.get_absl_handler()
        handler.addFilter(_quiet)
        handler.setFormatter(python_logging.Formatter(f"{name}: %(message)s"))


def _no_space(error: BaseException | None) -> str:
    """The system's message if an error, or its cause, is a full disk; else ''."""
    seen = 0
    while error is not None and seen < 20:
        text = one_line(error, 10_000)
        full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if isinstance(error, OSError) and error.errno in full:
            return f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
        for words in ("No space left on device", "Disk quota exceeded"):
            if words in text:
                return f"{words} ({text[:200]})"
        error, seen = error.__cause__ or error.__context__, seen + 1
    return ""


def _denied(error: BaseException) -> str:
    """What to say of a path that the system does not let be used; '' for any other error."""
    kinds = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS)
    if not isinstance(error, OSError) or error.errno not in kinds or not error.filename:
        return ""
    path = os.fsdecode(error.filename)
    shown = path if len(path) <= 200 else f"{path[:200]}..."
    return f"{shown}: cannot be used ({error.strerror}); give another path"


def _keep_compiled() -> None:
    """Caches compiled programs for the next start, in JAX_COMPILATION_CACHE_DIR if set.

    Else among the user's own files, not in the work directory: they are machine code, which a
    directory from somebody else must not bring along. There is a folder for each set of processor
    features, since machines that share a home may not be able to run each other's code.
    """
    jax = sys.modules.get("jax")
    if jax is None:
        return
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # Small programs too: an experiment has hundreds of them.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if jax.config.jax_compilation_cache_dir is None:
        try:
            told = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            told = platform.processor()
        abilities = {line for line in told.splitlines() if line.startswith(("flags", "Features"))}
        kind = hashlib.sha256("".join(sorted(abilities) or [told]).encode()).hexdigest()[:8]
        caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        folder = pathlib.Path(caches, "cryjax", f"compiled-{kind}").expanduser()
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _check_precision() -> None:
    """Raises UserError if JAX would make some arrays float64, which no checkpoint expects."""
    jax = sys.modules.get("jax")
    if jax is not None and jax.config.jax_enable_x64:
        raise UserError("JAX_ENABLE_X64 is set, but cryjax computes in float32; unset it")


def _one_of_several() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _left_alone(error: BaseException) -> bool:
    """Whether communication between CPUs failed because another process ended."""
    words = ("Connection closed by peer", "Connection reset by peer")
    return _one_of_several() and any(word in str(error) for word in words)


def run(main: Callable[[list[str]], None], *, positional: bool = False) -> None:
    """Runs `main(argv)` as an absl program; rejects positional arguments unless `positional`.

    A `UserError`, during flag parsing or later, a full disk or a path that the system refuses
    becomes one line on standard error and exit status 2; an `Unavailable`, or the end of another
    process of the job, one line and status 1; Ctrl-C, where a program does not handle it itself,
    one line and status 130. Any other exception is a bug and keeps its traceback.
    """
    # Quiets XLA and gRPC too, which log from C++; set it to 0 to see all.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    name = pathlib.Path(sys.argv[0]).stem
    sys.argv[1:] = map(_at_home, sys.argv[1:])  # in place: a config's flag reads it too

    def logged(argv: list[str]) -> None:
        _set_up_logging(name)
        _keep_compiled()
        _check_precision()
        if argv[1:] and not positional:
            raise UserError(
                f"unexpected argument {argv[1]!r}; write flags as --flag=value, without spaces, "
                "and put a value that has some in quotes"
            )
        main(argv)

    try:
        app.run(logged, flags_parser=_parse)
    except (UserError, Unavailable) as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        status = 2 if isinstance(error, UserError) else 1
    except (Exception, KeyboardInterrupt) as error:
        if full := _no_space(error):
            print(
                f"{name}: error: {full}: make room, and run the same command again",
                file=sys.stderr,
            )
            sys.stderr.flush()
            # Threads that still try to write would report it again, at length.
            os._exit(2)
        status = 1
        if isinstance(error, KeyboardInterrupt):
            print(f"{name}: interrupted", file=sys.stderr)
            status = 130  # as shells give to what SIGINT ended
        elif denied := _denied(error):
            print(f"{name}: error: {denied}", file=sys.stderr)
            status = 2
        elif not _one_of_several():
            raise
        elif _left_alone(error):
            # Its traceback, at the end of the log, would hide the other's message.
            print(
                f"{name}: error: another process of this job has ended; its log or its "
                f"launcher says why ({one_line(error)})",
                file=sys.stderr,
            )
        else:
            traceback.print_exc()
    if _one_of_several():
        # On exit JAX would wait five minutes for the others, and they wait for this one. The
        # launcher sees the failure, and can stop them, only when this one has ended.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def run_recipe(
    main: Callable[[Any, str], None],
    rules: Mapping[str, config_lib.Rule] | None,
    *,
    recipe: str,
    workdir: str,
) -> None:
    """Runs `main(config, workdir)` with a checked config, from the flags --config and --workdir.

    Args:
      main: the program itself.
      rules: for the config; None leaves the check to `main`.
      recipe: help of --config.
      workdir: help of --workdir.
    """
    config = config_flags.DEFINE_config_file("config", None, recipe)
    folder = flags.DEFINE_string("workdir", None, workdir)

    def start(_: list[str]) -> None:
        checked, path = config_lib.checked(config.value, rules, recipe), required(folder)
        # It would be a path below the current folder: on each host of a slice, lost with it.
        if "://" in path:
            raise UserError(
                f"--workdir={path} is an address, not a folder; use one on a file system "
                "that all hosts of the job share, such as NFS"
            )
        main(checked, path)

    run(start)
