"""The training loop: takes batches, runs steps, logs and saves. No mathematics."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from cryjax.command.errors import Unavailable, UserError
from cryjax.command.progress import Progress
from cryjax.training.checkpoints import Checkpoints
from cryjax.training.parallel import Parallel
from cryjax.training.recipe import Plan
from cryjax.training.steps import StepFunction, TrainState
from cryjax.training.stopping import Stop, Stopped
from cryjax.training.watch import SLOWEST, Watch
from cryjax.training.workdir import Workdir

# Consecutive non-finite updates that are no longer an accident: the parameters cause them. From the
# first count on, no periodic checkpoint replaces an older one; above the second, the run ends.
_SUSPICIOUS, _MOST_SKIPPED = 3, 20


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A run's length and intervals, in steps; 0 is never."""

    total: int
    log_every: int
    checkpoint_every: int
    evaluate_every: int = 0
    pictures_every: int = 0

    @classmethod
    def of(cls, config: Any, plan: Plan, evaluate_every: str) -> "Schedule":
        """Converts a config's lengths to steps; `evaluate_every` is one of them."""
        return cls(
            total=plan.total,
            log_every=max(plan.in_steps(config.log_every), 1),
            checkpoint_every=plan.in_steps(config.checkpoint_every),
            evaluate_every=plan.in_steps(evaluate_every),
            pictures_every=plan.in_steps(config.pictures_every),
        )


class _Window:
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
        yield
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


def _next(batches: Iterator[dict[str, np.ndarray]], step: int) -> dict[str, np.ndarray]:
    """The batch of a step.

    Raises:
      UserError: if a recording in it is damaged.
      Unavailable: if it cannot be read.
    """
    try:
        return next(batches)
    except (OSError, RuntimeError) as error:
        said = " ".join(str(error).split())[:300]
        if "Corrupted" in said:  # ArrayRecord's word
            raise UserError(
                f"a recording in the batch of step {step} is damaged in config.data ({said}): "
                "prepare it again"
            ) from error
        raise Unavailable(
            f"the batch of step {step} cannot be read ({type(error).__name__}: {said}): check "
            "the disk that holds config.data; the run resumes from its last checkpoint"
        ) from error


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


def _not_finite(
    step: int, metrics: Mapping[str, Any], recordings: str, latest: int | None, skipped: int
) -> UserError:
    """The error for a non-finite step with these recordings, the last of `skipped` in a row."""
    if skipped > 1:
        return UserError(
            f"the last {skipped} updates, up to step {step}, were not finite: the parameters cause "
            f"this; the last checkpoint is of step {latest}: lower config.optimizer.learning_rate "
            "or raise its warmup"
        )
    bad = "loss" if not np.isfinite(metrics["loss"]) else "gradient_norm"
    return UserError(
        f"the {bad} is {metrics[bad]} at step {step}, whose batch has the recordings "
        f"{recordings}; the last checkpoint is of step {latest}: "
        "lower config.optimizer.learning_rate or raise its warmup, or skip "
        "such updates with --config.nonfinite=skip"
    )


class _LateMetrics:
    """Reads a step's metrics when the device has the next step to do, and logs their means."""

    def __init__(
        self,
        window: _Window,
        bar: Progress,
        check: Callable[[int, Mapping[str, Any]], None],
        *,
        schedule: Schedule,
        workdir: Workdir,
        watch: Watch,
        learning_rate: Callable[[int], float],
    ):
        """Adds to a window, and to what a bar shows; `check` raises if a step ends the run."""
        self._window, self._bar, self._check = window, bar, check
        self._schedule, self._workdir, self._learning_rate = schedule, workdir, learning_rate
        self._watch = watch
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
        if step % self._schedule.log_every == 0 or step == self._schedule.total:
            self._log(step)

    def flush(self, step: int) -> None:
        """Logs what has not been logged yet, up to `step`."""
        self.read()
        if self._window.metrics:
            self._log(step)

    def _log(self, step: int) -> None:
        # On an accelerator it would queue behind the step in progress.
        with jax.default_device(self._host):
            rate = float(self._learning_rate(step - 1))
        summary = self._window.summary()
        self._workdir.log(step, summary | {"learning_rate": rate})
        self._window.clear()
        # In the first steps projections are alike because nothing is learnt yet.
        learnt = step > self._schedule.total / 10
        if not self._warned and learnt and (how := collapsed(summary)):
            self._warned = True
            logging.warning(
                "step %d: the encoder may have collapsed: %s; try a lower "
                "config.optimizer.learning_rate, a higher config.temperature, or other views",
                step, how,
            )  # fmt: skip


def _placed(
    batches: Iterator[dict[str, np.ndarray]],
    steps: range,
    parallel: Parallel,
    window: _Window,
    watch: Watch,
) -> Iterator[dict[str, Any]]:
    """The batches of those steps from `shard`, each placed before the previous step begins.

    A GPU begins a copy when all its earlier work is done: queued after the previous step, a batch
    would arrive when that has ended. If one cannot be read, the previous step still runs.
    """
    placed: list[dict[str, Any]] = []
    for step in steps:
        begin = time.perf_counter()
        try:
            with watch.over(f"no batch for step {step}", "is the disk of config.data responding?"):
                batch = _next(batches, step)
        except (UserError, Unavailable):
            yield from placed
            raise
        window.waiting += time.perf_counter() - begin
        before, placed = placed, [parallel.shard(batch)]
        yield from before
    yield from placed


def _due(step: int, every: int, last: bool = False) -> bool:
    """Whether what is done every `every` steps (0 is never), and after the last, is due."""
    return every > 0 and (last or step % every == 0)


def train(
    step_at: Callable[[int], StepFunction],
    state: TrainState,
    batches: Iterator[dict[str, np.ndarray]],
    *,
    key: jax.Array,
    schedule: Schedule,
    parallel: Parallel,
    checkpoints: Checkpoints,
    workdir: Workdir,
    meta: dict[str, Any],
    learning_rate: Callable[[int], float],
    batch_size: int,
    evaluate: Callable[[TrainState, int], dict[str, float]] | None = None,
    pictures: Callable[[TrainState, int], None] | None = None,
    enough: Callable[[], bool] = lambda: False,
    skip: bool = False,
    recordings: Callable[[int], str] = lambda _: "unknown",
    stop: Stop | None = None,
) -> TrainState:
    """Runs from `state.step` to the end of the schedule.

    Args:
      step_at: step -> its step function, wrapped by `parallel`; the state is donated.
      state: on the devices.
      batches: this process's batches, from the state's step on.
      key: base key of the run.
      schedule: when to log, save and evaluate.
      parallel: places batches.
      checkpoints: this run's.
      workdir: this run's.
      meta: stored in every checkpoint.
      learning_rate: of a step, for the log.
      batch_size: global.
      evaluate: (state, step) -> slower metrics, every `evaluate_every` steps and at the end,
        unless that is 0.
      pictures: (state, step) -> None, draws a state in the first process, every
        `pictures_every` steps and at the end, unless that is 0.
      enough: asked on resuming and after each evaluation; True ends the run early. All
        processes must return the same.
      skip: whether to go on after a non-finite update, which is never made, up to 20 in a row.
      recordings: of a step's batch, counted from 0, for the error message.
      stop: that of a program with several runs; None makes one.

    Returns:
      The last state, saved.

    Raises:
      Stopped: after SIGTERM or SIGINT, with the state saved.
      UserError: if the loss or gradient norm is not finite (see `skip`), or a recording is damaged.
      Unavailable: if a batch cannot be read.
    """
    start = int(state.step)
    first_process = jax.process_index() == 0
    window = _Window(batch_size, checkpoints.meta.get("window", ()))
    if start >= schedule.total or (start > 0 and enough()):
        return state  # stopped after its last step, before its result was written

    skipped_in_a_row = 0

    def check(step: int, metrics: Mapping[str, Any]) -> None:
        nonlocal skipped_in_a_row
        skipped_in_a_row = skipped_in_a_row + 1 if metrics["skipped"] else 0
        if skipped_in_a_row > (_MOST_SKIPPED if skip else 0):
            checkpoints.wait()  # the one that the message names may be in progress
            raise _not_finite(
                step, metrics, recordings(step - 1), checkpoints.latest, skipped_in_a_row
            )

    bar = Progress(
        "step", schedule.total, unit="clips", of_each=batch_size, start=start, shown=first_process
    )
    watch = Watch()
    late = _LateMetrics(
        window,
        bar,
        check,
        schedule=schedule,
        workdir=workdir,
        watch=watch,
        learning_rate=learning_rate,
    )
    function: StepFunction | None = None
    taken = contextlib.nullcontext(stop) if stop else Stop()
    with taken as stop, stop.finishing_steps(), bar, watch:
        steps = range(start + 1, schedule.total + 1)
        placed = _placed(batches, steps, parallel, window, watch)
        for step, batch in zip(steps, placed, strict=True):
            before, function = function, step_at(step)
            if function is not before:
                bar.say("compiling the training step")
            with watch.over(f"step {step} did not begin"):
                state, metrics = function(state, batch, key)
            late.take(step, metrics)
            checkpoints.check()  # reports a failed save now, not when the next is due
            if step == start + 1:
                # The first step compiles; its time says nothing about the rest.
                late.read()
                window.restart()
                bar.update(speed=False)
                bar.restart()
            else:
                bar.update()
            stops = stop.after(step)
            last = step == schedule.total
            if evaluate and _due(step, schedule.evaluate_every, last):
                late.read()
                what = f"the evaluation after step {step} did not finish"
                with window.pausing(), watch.over(what, most_seconds=SLOWEST):
                    found = evaluate(state, step)
                workdir.log(step, found)
                if not last and enough():
                    last = True
                    late.flush(step)
            ends = stops or last
            if ends or _due(step, schedule.checkpoint_every):
                late.read()
                if ends or skipped_in_a_row < _SUSPICIOUS:
                    what = f"the save before step {step} did not finish"
                    with window.pausing(), watch.over(what):
                        # With the metrics not logged yet: those up to now, though written later.
                        checkpoints.save(state, step, meta | {"window": [*window.metrics]})
            shows = first_process and (last or not stops)
            if pictures and shows and _due(step, schedule.pictures_every, last):
                late.read()
                try:
                    what = f"the pictures of step {step} were not drawn"
                    with window.pausing(), watch.over(what):
                        pictures(state, step)
                except Exception:  # whatever drawing raises: weeks of training are worth more
                    logging.exception("step %d: pictures cannot be drawn; the run continues", step)
            if ends:
                break
        with watch.over("the last save did not finish"):
            checkpoints.wait()
    if stops and not last:
        if first_process:
            logging.info("stopping: step %d is saved; the same command resumes", step)
        raise Stopped
    return state
