"""SIGTERM and Ctrl-C: training finishes its step and saves, and the same command goes on."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

# Exit status of a run that was told to stop and saved: EX_TEMPFAIL of sysexits.h, 'try again'.
STOPPED = 75


class Stopped(SystemExit):
    """A run that was told to stop: its checkpoint is saved, and the same command goes on."""

    def __init__(self) -> None:
        super().__init__(STOPPED)


class Stop:
    """Takes SIGTERM and SIGINT while it is entered.

    A signal raises KeyboardInterrupt, but in `finishing_steps`, where training asks after each step
    whether to stop. It is noted, too, for whoever asks later: what is raised in a destructor, as
    those that run while something is traced, Python prints and forgets.

    Of several processes, each may be told at another step, or only one of them: there JAX, which
    has taken SIGTERM for itself, has them agree on the step after which all stop.

    Attributes:
      requested: whether there was a signal.
    """

    def __init__(self) -> None:
        self.requested = False
        self._finishing = False
        self._together = jax.process_count() > 1

    def __enter__(self) -> "Stop":
        numbers = [signal.SIGINT] if self._together else [signal.SIGTERM, signal.SIGINT]
        if threading.current_thread() is not threading.main_thread():
            numbers = []  # Python delivers signals to the main thread alone
        self._old = {number: signal.signal(number, self._note) for number in numbers}
        self._hook, sys.unraisablehook = sys.unraisablehook, self._forgotten
        return self

    def _note(self, number: int, _frame: Any) -> None:
        # A second Ctrl-C, or one where no agreement can be had, is obeyed at once.
        at_once = number == signal.SIGINT and (self.requested or self._together)
        self.requested = True
        if at_once or not self._finishing:
            raise KeyboardInterrupt

    def _forgotten(self, found: Any) -> None:
        if not issubclass(found.exc_type, KeyboardInterrupt):
            self._hook(found)

    @contextlib.contextmanager
    def finishing_steps(self) -> Iterator[None]:
        """While in it, a signal is only noted, for `after`; in other threads no signal comes."""
        main = threading.current_thread() is threading.main_thread()
        self._finishing = self._finishing or main
        try:
            yield
        finally:
            self._finishing = self._finishing and not main

    def after(self, step: int) -> bool:
        """Whether to stop after this step; to be asked at every step, by every process."""
        if self._together:
            self.requested |= multihost_utils.reached_preemption_sync_point(step)
        return self.requested

    def check(self) -> None:
        """Stops here if told to."""
        if self.requested:
            raise Stopped

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        sys.unraisablehook = self._hook
