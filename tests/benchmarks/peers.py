"""Workers of a benchmark, each a process with its own Python, that take turns.

A worker serves a function `prepare() -> repeat`; each call of `repeat` is one measurement.
"""

import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

# Seconds between two turns: OpenMP and BLAS threads spin for a while after their work, on the cores
# of the next.
_PAUSE = 0.5


class Worker:
    """A process that measures on request.

    Attributes:
      said: its versions, once it is ready; 'out_of_memory' if it never will be.
      cpu_seconds: of each measurement, with all threads and child processes.
    """

    def __init__(self, python: str, script: str, name: str, arguments: Sequence[str]):
        command = [python, script, "--worker", name, *arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.cpu_seconds: list[float] = []
        self.said = self._line()

    def _line(self) -> dict:
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self._process.args} ended with {self._process.wait()}")

    def measure(self) -> float:
        """Seconds of one repetition."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._line()
        self.cpu_seconds.append(line["cpu_seconds"])
        return line["seconds"]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def start(pythons: Mapping[str, str], script: str, arguments: Sequence[str]) -> dict[str, Worker]:
    """Starts a worker per name, with its Python."""
    return {name: Worker(python, script, name, arguments) for name, python in pythons.items()}


def save(out: pathlib.Path | None, content: Mapping[str, object]) -> None:
    """Writes JSON if a file is given; paths in it are written as text."""
    if out:
        out.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")


def run_python(arguments: Sequence[str], **more: str) -> float:
    """Runs this Python, `more` in its environment; returns seconds, raises if it fails.

    It does not inherit a persistent compilation cache.
    """
    environment = {name: x for name, x in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    command, start = [sys.executable, *arguments], time.perf_counter()
    done = subprocess.run(
        command, env={**environment, **more}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return time.perf_counter() - start


def cpu_seconds() -> float:
    """Of this process and, where /proc lists them, of its live children."""
    total, children = time.process_time(), []
    for file in pathlib.Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children += file.read_text().split()
    for child in children:
        with contextlib.suppress(OSError):
            fields = pathlib.Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def fastest(forms: Mapping[str, Callable[[], object]], said: dict, rounds: int = 3) -> Callable:
    """The fastest of several ways to do the same, by their last round; notes it in `said`.

    One that fails is left out, as standard error says; if none is left, it raises.
    """
    times = {}
    for name, form in forms.items():
        try:
            for _ in range(rounds):
                start = time.perf_counter()
                form()
                times[name] = time.perf_counter() - start
        except Exception as error:
            times.pop(name, None)
            if name == list(forms)[-1] and not times:
                raise
            print(f"{name} fails: {str(error)[:500]}", file=sys.stderr)
    print(times, file=sys.stderr, flush=True)
    said["form"] = min(times, key=times.get)
    return forms[said["form"]]


def out_of_memory(error: Exception) -> bool:
    said = f"{type(error).__name__} {error}".lower()
    return any(words in said for words in ("out of memory", "outofmemory", "resource_exhausted"))


def serve(
    prepare: Callable[..., Callable[[], object]], said: Mapping[str, str], warm: int = 2,
    before: Callable[[], object] = lambda: None,
) -> None:  # fmt: skip
    """Acts as a worker until standard input ends.

    Args:
      prepare: returns the function to measure.
      said: what the worker reports; `prepare` may add to it.
      warm: warm-up repetitions, not measured.
      before: run before each repetition, not measured.
    """
    try:
        repeat = prepare()
        for _ in range(warm):  # compiled, threads started, memory touched
            repeat()
    except Exception as error:
        if not out_of_memory(error):
            raise
        print(json.dumps({"out_of_memory": str(error)[:200]}), flush=True)
        return
    print(json.dumps(dict(said)), flush=True)
    for _ in sys.stdin:
        before()
        start, used = time.perf_counter(), cpu_seconds()
        repeat()
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds() - used}), flush=True)


def in_turns(
    workers: Mapping[str, Worker], repeats: int, fewer: Mapping[str, int] | None = None
) -> dict[str, list[float]]:
    """Seconds of each worker; each runs once per round, those in `fewer` in that many rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for place in range(repeats):
        for name, worker in workers.items():
            if place < (fewer or {}).get(name, repeats):
                time.sleep(_PAUSE)
                seconds[name].append(worker.measure())
    for worker in workers.values():
        worker.close()
    return seconds


def report(
    seconds: Mapping[str, Sequence[float]], unit: str, amount: float | Mapping[str, float],
    out: pathlib.Path | None, said: Mapping[str, Mapping[str, str]], **more: object,
) -> None:  # fmt: skip
    """Prints a table, ours first, and writes it as JSON.

    Args:
      seconds: of each worker.
      unit: what a repetition has `amount` of, such as 'seconds of audio'.
      amount: per repetition; by worker if they differ.
      out: file to write, or None.
      said: versions of each worker.
      **more: written too.
    """
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    amounts = amount if isinstance(amount, Mapping) else dict.fromkeys(medians, amount)
    rates = {name: amounts[name] / median for name, median in medians.items()}
    ours = next(iter(rates.values()))
    print(f"{'':<14}{'median s':>10}{unit + '/s':>22}{'ours is':>10}")
    for name, median in medians.items():
        print(f"{name:<14}{median:>10.3f}{rates[name]:>22.1f}{ours / rates[name]:>9.2f}x")
    print(json.dumps(said))
    save(out, {"seconds": seconds, "unit": unit, "amount": amount, "versions": said, **more})
