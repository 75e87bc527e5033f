"""A run's metrics: read a step late, averaged, logged, and watched for a collapse."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from cryjax.command.progress import Progress
from cryjax.training.run import Run
from cryjax.training.watch import Watch


class Window:
    """Means of the metrics since the last logged line, and where the time went."""

    def __init__(self, examples_per_step: int, before: Sequence[dict[str, float]]):
        """Starts with the metrics of steps `before` a stop, so that no line misses them."""
        self._examples = examples_per_step
        self.metrics = [*before]
        self.restart()
        self._untimed: float = math.inf  # until the first step, which compiles, is done

    def clear(self) -> None:
        self.metrics = []
        self.restart()

    def restart(self) -> None:
        """Resets the timing, but keeps the metrics."""
        self._untimed = len(self.metrics)
        self._start = time.perf_counter()
        self.waiting = 0.0
        self.paused = 0.0

    @contextlib.contextmanager
    def pausing(self) -> Iterator[None]:
        """Excludes time not spent on training from the rates."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.paused += time.perf_counter() - begin

    def add(self, metrics: Mapping[str, Any]) -> None:
        # As JSON returns them, so that a mean is the same over metrics restored from it.
        self.metrics.append({name: float(value) for name, value in metrics.items()})

    def summary(self) -> dict[str, float]:
        elapsed = max(time.perf_counter() - self._start - self.paused, 1e-9)
        # Means over all updates that were made; 'skipped' counts the others.
        made = [metrics for metrics in self.metrics if not metrics["skipped"]]
        means = (
            {name: float(np.mean([metrics[name] for metrics in made])) for name in made[0]}
            if made
            else {}
        )
        means["skipped"] = sum(float(metrics["skipped"]) for metrics in self.metrics)
        if (timed := len(self.metrics) - self._untimed) > 0:
            means["clips_per_second"] = timed * self._examples / elapsed
            means["waiting_for_data"] = self.waiting / elapsed
        return means


def collapsed(metrics: Mapping[str, float]) -> str:
    """Describes a collapse that the metrics of views show, or ''.

    Either all projections are nearly alike, by the uniformity (0 is a single point), or they lie
    on a line, by the effective rank.
    """
    if metrics.get("uniformity", -1.0) > -0.02:
        return f"all projections are nearly the same (uniformity {metrics['uniformity']:.3f})"
    if metrics.get("effective_rank", 2.0) < 1.2:
        return f"all projections lie on a line (effective rank {metrics['effective_rank']:.2f})"
    return ""


class LateMetrics:
    """Reads a step's metrics when the device has the next step to do, and logs their means."""

    def __init__(
        self,
        run: Run,
        window: Window,
        bar: Progress,
        watch: Watch,
        check: Callable[[int, Mapping[str, Any]], None],
    ):
        """Adds to a window, and to what a bar shows; `check` raises if a step ends the run."""
        self._run, self._window, self._bar, self._watch = run, window, bar, watch
        self._check = check
        try:
            self._host = jax.local_devices(backend="cpu")[0]
        except RuntimeError:  # JAX_PLATFORMS=cuda, without cpu
            self._host = None  # the default device
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._warned = False

    def take(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Reads the previous step's metrics, and keeps these, which may not be computed yet."""
        self.read()
        self._pending = step, metrics

    def read(self) -> None:
        """Waits for the metrics taken last and reads them, if not done yet."""
        if self._pending is None:
            return
        step = self._pending[0]
        with self._watch.over(f"step {step} did not finish"):
            metrics = jax.device_get(self._pending[1])
        self._pending = None
        self._check(step, metrics)
        self._window.add(metrics)
        self._bar.note(f"loss {metrics['loss']:.3f}")
        schedule = self._run.schedule
        if step % schedule.log_every == 0 or step == schedule.total:
            self._log(step)

    def flush(self, step: int) -> None:
        """Logs what has not been logged yet, up to `step`."""
        self.read()
        if self._window.metrics:
            self._log(step)

    def _log(self, step: int) -> None:
        # On an accelerator it would queue behind the step in progress.
        with jax.default_device(self._host):
            rate = float(self._run.learning_rate(step - 1))
        summary = self._window.summary()
        self._run.workdir.log(step, summary | {"learning_rate": rate})
        self._window.clear()
        # In the first steps projections are alike because nothing is learnt yet.
        learnt = step > self._run.schedule.total / 10
        if not self._warned and learnt and (how := collapsed(summary)):
            self._warned = True
            logging.warning(
                "step %d: the encoder may have collapsed: %s; try a lower "
                "config.optimizer.learning_rate, a higher config.temperature, or other views",
                step, how,
            )  # fmt: skip
