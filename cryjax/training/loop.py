"""The training loop: takes batches, runs steps, logs and saves. No mathematics."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging

from cryjax.command.errors import Unavailable, UserError, one_line
from cryjax.command.progress import Progress
from cryjax.training.metering import LateMetrics, Window
from cryjax.training.parallel import Parallel
from cryjax.training.run import Run
from cryjax.training.steps import StepFunction, TrainState
from cryjax.training.stopping import Stop, Stopped
from cryjax.training.watch import SLOWEST, Watch

# Consecutive non-finite updates that are no longer an accident: the parameters cause them. From the
# first count on, no periodic checkpoint replaces an older one; above the second, the run ends.
_SUSPICIOUS, _MOST_SKIPPED = 3, 20


class Batches(Protocol):
    """Batches by step, such as `data.loader.Batches`."""

    @property
    def size(self) -> int:
        """Examples in a global batch."""

    def since(self, step: int, process: int, processes: int) -> Iterator[dict[str, np.ndarray]]:
        """A process's share of each batch from `step` on, counted from 0."""

    def recordings(self, step: int) -> str:
        """Names the recordings in the batch at `step`."""


def _next(batches: Iterator[dict[str, np.ndarray]], step: int) -> dict[str, np.ndarray]:
    """The batch of a step.

    Raises:
      UserError: if a recording in it is damaged.
      Unavailable: if it cannot be read.
    """
    try:
        return next(batches)
    except (OSError, RuntimeError) as error:
        reason = one_line(error)
        if "Corrupted" in reason:  # ArrayRecord's word
            raise UserError(
                f"a recording in the batch of step {step} is damaged in config.data ({reason}): "
                "prepare it again"
            ) from error
        raise Unavailable(
            f"the batch of step {step} cannot be read ({type(error).__name__}: {reason}): check "
            "the disk that holds config.data; the run resumes from its last checkpoint"
        ) from error


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


def _placed(
    batches: Iterator[dict[str, np.ndarray]],
    steps: range,
    parallel: Parallel,
    window: Window,
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
    run: Run,
    step_at: Callable[[int], StepFunction],
    state: TrainState,
    batches: Batches,
    *,
    evaluate: Callable[[TrainState, int], dict[str, float]] | None = None,
    pictures: Callable[[TrainState, int], None] | None = None,
    enough: Callable[[], bool] = lambda: False,
    stop: Stop | None = None,
) -> TrainState:
    """Runs from `state.step` to the end of the schedule.

    Args:
      run: its parts.
      step_at: step -> its step function, wrapped by `run.parallel`; the state is donated.
      state: on the devices.
      batches: to train on.
      evaluate: (state, step) -> slower metrics, every `evaluate_every` steps and at the end,
        unless that is 0.
      pictures: (state, step) -> None, draws a state in the first process, at the start, every
        `pictures_every` steps and at the end, unless that is 0.
      enough: asked on resuming and after each evaluation; True ends the run early. All
        processes must return the same.
      stop: that of a program with several runs; None makes one.

    Returns:
      The last state, saved.

    Raises:
      Stopped: after SIGTERM or SIGINT, with the state saved.
      UserError: if the loss or gradient norm is not finite (see `run.skip`), or a recording is
        damaged.
      Unavailable: if a batch cannot be read.
    """
    start = int(state.step)
    first_process = jax.process_index() == 0
    schedule, checkpoints = run.schedule, run.checkpoints
    window = Window(batches.size, checkpoints.meta.get("window", ()))
    if start >= schedule.total or (start > 0 and enough()):
        return state  # stopped after its last step, before its result was written

    skipped_in_a_row = 0

    def check(step: int, metrics: Mapping[str, Any]) -> None:
        nonlocal skipped_in_a_row
        skipped_in_a_row = skipped_in_a_row + 1 if metrics["skipped"] else 0
        if skipped_in_a_row > (_MOST_SKIPPED if run.skip else 0):
            checkpoints.wait()  # the one that the message names may be in progress
            whose = batches.recordings(step - 1)
            raise _not_finite(step, metrics, whose, checkpoints.latest, skipped_in_a_row)

    bar = Progress(
        "step", schedule.total, unit="clips", of_each=batches.size, start=start, shown=first_process
    )
    watch = Watch()
    late = LateMetrics(run, window, bar, watch, check)

    def draw(state: TrainState, step: int) -> None:
        if pictures and first_process:
            try:
                what = f"the pictures of step {step} were not drawn"
                with window.pausing(), watch.over(what):
                    pictures(state, step)
            except Exception:  # whatever drawing raises: weeks of training are worth more
                logging.exception("step %d: pictures cannot be drawn; the run continues", step)

    function: StepFunction | None = None
    taken = contextlib.nullcontext(stop) if stop else Stop()
    with taken as stop, stop.finishing_steps(), bar, watch:
        if schedule.pictures_every and not start:
            draw(state, 0)
        steps = range(start + 1, schedule.total + 1)
        mine = batches.since(start, jax.process_index(), jax.process_count())
        placed = _placed(mine, steps, run.parallel, window, watch)
        for step, batch in zip(steps, placed, strict=True):
            before, function = function, step_at(step)
            if function is not before:
                bar.say("compiling the training step")
            with watch.over(f"step {step} did not begin"):
                state, metrics = function(state, batch, run.key)
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
                run.workdir.log(step, found)
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
                        checkpoints.save(state, step, run.meta | {"window": [*window.metrics]})
            if (last or not stops) and _due(step, schedule.pictures_every, last):
                late.read()
                draw(state, step)
            if ends:
                break
        with watch.over("the last save did not finish"):
            checkpoints.wait()
    if stops and not last:
        if first_process:
            logging.info("stopping: step %d is saved; the same command resumes", step)
        raise Stopped
    return state
