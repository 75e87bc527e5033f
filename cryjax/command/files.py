"""Atomic file writes, and folders in which one process works at a time."""

import contextlib
import fcntl
import json
import math
import os
import pathlib
import socket
import time
import weakref
from collections.abc import Iterator, Mapping
from typing import IO, Any

from absl import logging

from cryjax.command.errors import Unavailable, UserError


class Hold:
    """Holds a folder for this process, until nothing refers to this object."""


_HELD: weakref.WeakValueDictionary[pathlib.Path, Hold] = weakref.WeakValueDictionary()


def hold(folder: pathlib.Path, *, patience: float = 120.0) -> Hold | None:
    """Takes a folder for this process by locking a file in it; the lock ends with the process.

    Args:
      folder: created if missing.
      patience: seconds to wait for another process. A file server needs time to learn that a
        machine is gone, and a restarted job should not fail because of that.

    Returns:
      An object to keep while the folder is needed; None if the file system has no locks.

    Raises:
      Unavailable: if another process holds it.
      OSError: if it cannot be written to.
    """
    folder = folder.resolve()
    held = _HELD.get(folder)
    if held is not None:
        return held
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / ".lock").open("a+", encoding="utf-8")
    deadline, told = time.monotonic() + patience, False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            file.seek(0)
            holder = f"{folder}: {file.read() or 'another process'} is using it"
            if time.monotonic() >= deadline:
                file.close()
                raise Unavailable(
                    f"{holder}; stop that process, or use another --workdir; if its machine "
                    f"is gone and the file server does not know, delete {folder / '.lock'}"
                ) from None
            if not told:
                logging.warning("%s: waiting up to %.0f s for it to end", holder, patience)
                told = True
            time.sleep(min(1.0, patience))
        except OSError:
            file.close()
            return None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    _HELD[folder] = held = Hold()
    weakref.finalize(held, file.close)  # which releases the lock
    return held


def claim(path: pathlib.Path, what: str = "", **how: Any) -> IO[str]:
    """Opens a text file for writing, emptied, which no other process may claim until it is closed.

    Args:
      path: of the file, in an existing folder.
      what: is being written, for the message; the path if ''.
      **how: other arguments of `open`.

    Raises:
      UserError: if another process has claimed it.
      OSError: if it cannot be written to.
    """
    while True:
        file = path.open("a", encoding="utf-8", **how)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise UserError(
                f"{what or path}: another process is writing it; wait for its end, or give another "
                "place"
            ) from None
        except OSError:  # a file system without locks
            pass
        # Since it was opened, whoever had it may have renamed or deleted it.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.truncate(0)
                return file
        file.close()


def complete(file: IO[Any], path: pathlib.Path) -> None:
    """Gives a file that was written under another name its own, once all of it is on the disk."""
    file.flush()
    os.fsync(file.fileno())  # or a crash of the machine may leave a file of zeros
    pathlib.Path(file.name).replace(path)


@contextlib.contextmanager
def whole(path: pathlib.Path, mode: str = "w", **how: Any) -> Iterator[IO[Any]]:
    """Opens a file for writing that replaces `path` once it is complete.

    After an error, only what was there before is left.

    Args:
      path: of the file; its folder is created.
      mode: 'w' for text, in UTF-8, or 'wb'.
      **how: other arguments of `open`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open(mode, encoding=None if "b" in mode else "utf-8", **how) as file:
            yield file
            complete(file, path)
    finally:
        partial.unlink(missing_ok=True)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN or infinity: they become null."""
    if isinstance(value, Mapping):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON, with null for NaN and infinity."""
    text = json.dumps(_without_nan(value), indent=2, sort_keys=True, allow_nan=False)
    with whole(path) as file:
        file.write(text + "\n")
