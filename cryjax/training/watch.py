"""Limits on waiting."""

import contextlib
import faulthandler
import os
import threading
from collections.abc import Iterator
from typing import Any

from absl import logging

# Seconds for what may be of many recordings on a slow machine, such as an evaluation or an index: a
# limit that it meets would stop every restart.
SLOWEST = 6 * 3600.0


class Watch:
    """Ends a process that would wait for ever, since a thread that hangs reports nothing.

    If one process of a job waits for its disk, or for a process that has diverged, the others wait
    with it, and their heartbeats go on. Time is counted in polls, so that a suspension of the
    job counts as one at most.
    """

    def __init__(self, warn_seconds: float = 60.0, most_seconds: float = 1800.0):
        """Sets when to warn, if `over` has a warning, and when to end the process."""
        self._warn, self._most = warn_seconds, most_seconds
        self._wait: tuple[str, str, float] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    @contextlib.contextmanager
    def over(
        self, what: str, warning: str = "", *, most_seconds: float | None = None
    ) -> Iterator[None]:
        """Watches the body; `what` says what did not happen, `warning` is logged, if any."""
        self._wait = what, warning, most_seconds or self._most
        try:
            yield
        finally:
            self._wait = None

    def _look(self) -> None:
        seen, waited, every = None, 0.0, self._warn / 10
        while not self._ended.wait(every):
            now = self._wait
            waited = waited + every if now and now is seen else 0.0
            seen = now
            if now and now[1] and self._warn <= waited < self._warn + every:
                logging.warning("%s in %.0f s: %s", now[0], waited, now[1])
            if now and waited >= now[2]:
                logging.error(
                    "%s in %.0f s: exiting so that the job can be restarted", now[0], waited
                )
                faulthandler.dump_traceback()
                os._exit(1)

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
