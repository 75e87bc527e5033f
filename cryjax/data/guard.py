"""Decodes in a separate process, so that a crash or hang of the decoder loses only that file.

The process sends its results over a pipe, block by block, so memory stays bounded here too. It
imports little and exits when the pipe closes.
"""

import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from cryjax.data import decode

# Silence for this long counts as a hang. ffmpeg, which sends nothing until it ends, has its own
# limit.
SILENT_SECONDS = decode.FFMPEG_SECONDS + 60
MEMORY_BYTES = 4 << 30

# First byte of each message. Nothing is pickled, as the decoding process is not trusted.
_RATE, _BLOCK, _UNUSABLE, _END = b"r", b"b", b"u", b"e"


class Decoder:
    """Decodes files one after another, in a process that is restarted if it had to be ended.

    Attributes:
      own_rate: the current recording's own sample rate, in hertz; 0 if not known.
    """

    def __init__(self, *, silent_seconds: float = SILENT_SECONDS, memory: int = MEMORY_BYTES):
        self._silent_seconds = silent_seconds
        self._memory = memory
        self.own_rate = 0
        self._process: subprocess.Popen | None = None
        self._pipe: multiprocessing.connection.Connection | None = None

    def _start(self) -> multiprocessing.connection.Connection:
        """Starts the process; returns our end of its pipe."""
        ours, theirs = multiprocessing.Pipe()
        self._pipe = ours
        # ffmpeg's own folder: what it leaves there when killed is removed with it.
        self._folder = tempfile.TemporaryDirectory(prefix="cryjax-decoder-")
        with theirs:
            given = str(theirs.fileno()), str(self._memory), self._folder.name
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, *given],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                    "TMPDIR": self._folder.name,
                },
            )
        return ours

    def close(self) -> None:
        """Kills the process, and any ffmpeg that it started."""
        if self._process is not None and self._pipe is not None:
            self._pipe.close()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = self._pipe = None
            self._folder.cleanup()

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def stream(
        self, path: pathlib.Path, sample_rate: int, *, lowest_rate: int = 0
    ) -> Iterator[np.ndarray]:
        """Same as `decode.stream`; also raises Unusable for a crash or a timeout."""
        pipe = self._start() if self._pipe is None else self._pipe
        whole, self.own_rate = False, 0
        try:
            asked = [os.fsencode(path).hex(), sample_rate, lowest_rate]
            pipe.send_bytes(json.dumps(asked).encode())
            while True:
                if not pipe.poll(self._silent_seconds):
                    raise decode.Unusable(
                        f"its decoder did not respond for {self._silent_seconds:g} s"
                    )
                message = pipe.recv_bytes()
                if message[:1] == _BLOCK:
                    yield np.frombuffer(message, np.int16, offset=2)
                    continue
                if message[:1] == _RATE:
                    self.own_rate = int(message[1:])
                    continue
                whole = True
                if message[:1] == _UNUSABLE:
                    raise decode.Unusable(message[1:].decode(errors="replace"))
                return
        except (EOFError, OSError, ValueError) as error:  # also in the middle of a message
            raise decode.Unusable("its decoder crashed") from error
        finally:
            if not whole:  # the process is still busy, or dead
                self.close()

    def decode(self, path: pathlib.Path, sample_rate: int) -> np.ndarray:
        """Returns a whole recording, int16 [samples]; raises as `stream`."""
        return np.concatenate([*self.stream(path, sample_rate)])


def _serve(pipe: multiprocessing.connection.Connection) -> None:
    """Decodes requested files until the pipe closes."""
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            name, sample_rate, lowest_rate = json.loads(pipe.recv_bytes())
            path = pathlib.Path(os.fsdecode(bytes.fromhex(name)))
            reason = ""

            def told(rate: int) -> None:
                pipe.send_bytes(_RATE + str(rate).encode())

            try:
                for block in decode.stream(path, sample_rate, lowest_rate=lowest_rate, told=told):
                    pipe.send_bytes(_BLOCK + b"\0" + block.tobytes())
            except decode.Unusable as error:
                reason = str(error)
            except MemoryError:
                reason = "it needs too much memory"
            except (EOFError, ConnectionError):
                raise
            except Exception as error:  # unexpected failure of a decoder
                reason = f"it cannot be decoded ({type(error).__name__})"
            pipe.send_bytes(_UNUSABLE + reason.encode() if reason else _END)


def _main() -> None:
    file, memory, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = memory if most == resource.RLIM_INFINITY else min(memory, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))
    with multiprocessing.connection.Connection(file) as pipe:
        _serve(pipe)
    shutil.rmtree(folder, ignore_errors=True)  # in case the other end, which made it, was killed


if __name__ == "__main__":
    _main()
