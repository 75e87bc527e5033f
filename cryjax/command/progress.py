"""Shows a program's progress: as a bar on a terminal, and elsewhere, as in a log, in lines.

A line gives the count, the total, the speed and the time left. Lines come ten seconds apart at
first and grow rarer, to one in five minutes, so that the log of a long run stays short.
"""

import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, TextIO, TypeVar

import tqdm

_T = TypeVar("_T")

_SOONEST, _LATEST = 10.0, 300.0  # seconds between two lines
_WORTH = 2.0  # seconds; anything faster needs no line


def _speed(rate: float, unit: str) -> str:
    """A speed as text; below 1, as seconds each."""
    if rate < 1:
        return f"{1 / rate:.3g} s each"
    return f"{rate:,.0f} {unit}/s" if rate >= 100 else f"{rate:.3g} {unit}/s"


class Progress:
    """Counts what is done and shows it on standard error."""

    def __init__(
        self,
        what: str,
        total: int | None,
        *,
        unit: str = "",
        of_each: float = 1,
        start: int = 0,
        shown: bool = True,
        stays: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Starts counting.

        Args:
          what: the thing counted, such as 'step'.
          total: how many there are, if known.
          unit: of the speed, such as 'clips', shown per second.
          of_each: units per thing counted.
          start: how many were done before.
          shown: whether to show anything.
          stays: whether a terminal's bar stays when all is done.
          stream: to write to; standard error if None.
          clock: returns seconds.
        """
        self.done = start
        self._what, self._total, self._unit, self._of_each = what, total, unit or what, of_each
        self._shown, self._clock = shown, clock
        self._stream = stream or sys.stderr
        self._begin = self._last = clock()
        self._said = False
        self._note = ""
        self._bar = None
        self.restart()
        if shown and self._stream.isatty():
            self._bar = tqdm.tqdm(
                total=total, initial=start, desc=what, leave=stays, file=self._stream,
                mininterval=0.2, dynamic_ncols=True,
                bar_format="{desc} {n_fmt}"
                + (" of {total_fmt} |{bar:20}| {percentage:.0f} %" if total else "")
                + "{postfix}",
            )  # fmt: skip

    def __enter__(self) -> "Progress":
        return self

    def restart(self) -> None:
        """Forgets the time so far: it says nothing about the rest."""
        self._from, self._since = self.done, self._clock()

    def note(self, text: str) -> None:
        """Sets what the next lines show besides the count, such as a loss."""
        self._note = text

    def say(self, text: str) -> None:
        """Shows a note at once, such as about a long wait before anything is counted."""
        self.note(text)
        self._show(now=True, speed=False)

    def update(self, count: int = 1, *, speed: bool = True) -> None:
        """Counts `count` more; `speed` is whether their speed is typical of the rest."""
        self.done += count
        if self._bar is not None:
            self._bar.set_postfix_str(self._words(speed=speed), refresh=False)
            self._bar.update(count)
        elif self.done != self._total:  # shown by `close`
            self._show(speed=speed)

    def _words(self, *, speed: bool = True, ended: bool = False) -> str:
        """The note, the speed, and the time left or taken."""
        words = [self._note] if self._note else []
        done, seconds = self.done - self._from, self._clock() - self._since
        if speed and done and seconds > 0:
            rate = done / seconds
            words.append(_speed(rate * self._of_each, self._unit))
            if not ended and self._total and self._total > self.done:
                words.append(f"{tqdm.tqdm.format_interval((self._total - self.done) / rate)} left")
        if ended:
            words.append(f"took {tqdm.tqdm.format_interval(self._clock() - self._begin)}")
        return ", ".join(words)

    def _show(self, *, now: bool = False, speed: bool = True, ended: bool = False) -> None:
        if not self._shown:
            return
        words = self._words(speed=speed, ended=ended)
        if self._bar is not None:
            self._bar.set_postfix_str(words)
            return
        at = self._clock()
        often = min(max((at - self._begin) / 10, _SOONEST), _LATEST)
        if now or at - self._last >= often:
            self._last, self._said = at, True
            of = f" of {self._total} ({100 * self.done // self._total} %)" if self._total else ""
            name = pathlib.Path(sys.argv[0]).stem
            line = f"{name}: {self._what} {self.done}{of}{', ' if words else ''}{words}"
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._show(ended=True)
            self._bar.close()
        elif self._said or self._clock() - self._begin > _WORTH:
            self._show(now=True, ended=True)
        self._shown = False

    def __exit__(self, *_: Any) -> None:
        self.close()


def over(items: Iterable[_T], what: str, total: int | None = None, **how: Any) -> Iterator[_T]:
    """Yields the items, counted; `how` is for `Progress`."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(what, total, **how) as progress:
        for item in items:
            yield item
            progress.update()
