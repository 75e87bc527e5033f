"""Workers of a benchmark, each a process with its own Python, that repeat in turns.

A worker is a function `prepare(*arguments) -> repeat`; each call of `repeat` is one measurement.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence


class Worker:
    """A process that measures when it is told to."""

    def __init__(self, python: str, script: str, name: str, arguments: Sequence[str]):
        command = [python, script, "--worker", name, *arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.said = self._line()  # its versions, when it is ready

    def _line(self) -> dict:
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self._process.args} ended with {self._process.wait()}")

    def measure(self) -> float:
        """Seconds of one repetition."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._line()["seconds"]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def serve(prepare: Callable[..., Callable[[], object]], versions: Mapping[str, str]) -> None:
    """Is a worker, until its standard input ends."""
    repeat = prepare()
    for _ in range(2):  # compiled, threads started, memory touched
        repeat()
    print(json.dumps(dict(versions)), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        repeat()
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


def in_turns(workers: Mapping[str, Worker], repeats: int) -> dict[str, list[float]]:
    """Seconds of each worker; every round has each of them once."""
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(repeats):
        for name, worker in workers.items():
            seconds[name].append(worker.measure())
    for worker in workers.values():
        worker.close()
    return seconds


def report(
    seconds: Mapping[str, Sequence[float]], unit: str, amount: float, out: pathlib.Path | None,
    said: Mapping[str, Mapping[str, str]],
) -> None:  # fmt: skip
    """Prints a table, ours first, and writes it as JSON.

    Args:
      seconds: of each worker.
      unit: what a repetition has `amount` of, as 'seconds of audio'.
      amount: of it.
      out: file to write, or None.
      said: versions of each worker.
    """
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ours = next(iter(medians.values()))
    print(f"{'':<14}{'median s':>10}{unit + '/s':>22}{'ours is':>10}")
    for name, median in medians.items():
        print(f"{name:<14}{median:>10.3f}{amount / median:>22.1f}{median / ours:>9.2f}x")
    print(json.dumps(said))
    if out:
        content = {"seconds": seconds, "unit": unit, "amount": amount, "versions": said}
        out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
