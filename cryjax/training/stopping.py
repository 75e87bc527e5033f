"""SIGTERM and Ctrl-C: training finishes its step and saves; the same command resumes."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

# Exit status of a run that was stopped and saved: EX_TEMPFAIL of sysexits.h, 'try again'.
STOPPED = 75


class Stopped(SystemExit):
    """Raised after a signal: the run is saved, and the same command resumes it."""

    def __init__(self) -> None:
        super().__init__(STOPPED)


class Stop:
    """Handles SIGTERM and SIGINT while it is entered.

    A signal raises KeyboardInterrupt, except in `finishing_steps`, where training asks after each
    step whether to stop. It is also recorded for later checks: Python prints and discards what is
    raised in a destructor, such as those that run during tracing.

    With several processes, each may get the signal at a different step, or only one may get it:
    JAX, which handles SIGTERM itself from `join_processes` on (in a job of one, too), makes them
    agree on the step after which all stop.

    Attributes:
      requested: whether there was a signal.
    """

    def __init__(self) -> None:
        self.requested = False
        self._finishing = False
        self._together = jax.distributed.is_initialized()

    def __enter__(self) -> "Stop":
        numbers = [signal.SIGINT] if self._together else [signal.SIGTERM, signal.SIGINT]
        if threading.current_thread() is not threading.main_thread():
            numbers = []  # Python delivers signals only to the main thread
        self._old = {number: signal.signal(number, self._note) for number in numbers}
        self._hook, sys.unraisablehook = sys.unraisablehook, self._forgotten
        return self

    def _note(self, number: int, _frame: Any) -> None:
        # A second Ctrl-C, or one that processes cannot agree on, acts at once.
        at_once = number == signal.SIGINT and (self.requested or self._together)
        self.requested = True
        if at_once or not self._finishing:
            raise KeyboardInterrupt

    def _forgotten(self, found: Any) -> None:
        if not issubclass(found.exc_type, KeyboardInterrupt):
            self._hook(found)

    @contextlib.contextmanager
    def finishing_steps(self) -> Iterator[None]:
        """Here a signal is only recorded, for `after`; other threads receive no signals."""
        main = threading.current_thread() is threading.main_thread()
        self._finishing = self._finishing or main
        try:
            yield
        finally:
            self._finishing = self._finishing and not main

    def after(self, step: int) -> bool:
        """Whether to stop after this step; every process must call it at every step."""
        if self._together:
            self.requested |= multihost_utils.reached_preemption_sync_point(step)
        return self.requested

    def check(self) -> None:
        """Raises Stopped after a signal."""
        if self.requested:
            raise Stopped

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        sys.unraisablehook = self._hook
