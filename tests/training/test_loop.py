"""The loop: metrics a step late, averages, saves, evaluations, and stopping; a step of glass."""

import concurrent.futures
import contextlib
import os
import signal
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cryjax.command.errors import Unavailable, UserError
from cryjax.training import loop, stopping
from cryjax.training.metering import Window
from cryjax.training.parallel import Parallel
from cryjax.training.run import Run, Schedule
from cryjax.training.steps import TrainState
from cryjax.training.watch import Watch
from cryjax.training.workdir import Workdir


class Recorder:
    """Stands in for checkpoints: notes which steps were saved."""

    def __init__(self):
        self.steps = []
        self.latest = None
        self.meta = {}
        self.failed = False

    def save(self, state, step, meta):
        assert int(state.step) == step
        self.meta = meta
        self.steps.append(step)
        self.latest = step

    def check(self):
        if self.failed:
            raise OSError(28, "No space left on device")

    def wait(self):
        self.complete = self.latest


@jax.jit
def step_function(state, batch, key):
    step = state.step + 1
    loss = batch["loss"].mean()
    return state.replace(step=step), {"loss": loss, "skipped": 1.0 - jnp.isfinite(loss)}


def run(tmp_path, losses, *, start=0, before=None, evaluate=None, enough=None, skip=False,
        saved=None, stop=None, pictures=None, step_at=None, key=None, meta=None,
        **schedule):  # fmt: skip
    """Trains over batches that are their own loss; `before(n)` runs as batch n has its step."""

    class Batches:
        size = 2

        def since(self, step, process, processes):
            assert step == start and (process, processes) == (jax.process_index(), 1)
            for n in range(step, 10_000):
                yield {"loss": np.full(2, losses(n), np.float32)}

        def recordings(self, step):
            return f"of batch {step}"

    def step_of(step):
        if before:
            before(step - 1)
        return step_at(step) if step_at else step_function

    workdir, saved = Workdir(tmp_path, {}), saved or Recorder()
    options = {"total": 10, "log_every": 2, "checkpoint_every": 4} | schedule
    state = loop.train(
        Run(
            key=jax.random.key(0) if key is None else key,
            schedule=Schedule(**options),
            learning_rate=lambda n: n / 10,
            parallel=Parallel("jit", jax.devices()[:1]),
            checkpoints=saved,
            workdir=workdir,
            meta=meta or {},
            skip=skip,
        ),
        step_of,
        TrainState(jnp.int32(start), {}, {}, {}),
        Batches(),
        evaluate=evaluate,
        enough=enough or (lambda: False),
        stop=stop,
        pictures=pictures,
    )
    return state, workdir, saved


def test_logs_means_over_the_steps_since_the_last_line(tmp_path):
    state, workdir, saved = run(tmp_path, float)
    assert int(state.step) == 10 and saved.steps == [4, 8, 10] and saved.complete == 10
    lines = workdir.metrics()
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10]
    # Batch n, counted from 0, is step n + 1.
    assert [line["loss"] for line in lines] == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert [line["learning_rate"] for line in lines] == [0.1, 0.3, 0.5, 0.7, 0.9]
    for line in lines:
        assert line["clips_per_second"] > 0 and 0 <= line["waiting_for_data"] <= 1


def test_a_line_of_the_step_that_compiles_has_no_rate(tmp_path):
    _, workdir, _ = run(tmp_path, float, log_every=1)
    assert ["clips_per_second" in line for line in workdir.metrics()] == [False] + [True] * 9


def test_rates_are_logged_without_a_cpu_for_jax(tmp_path, monkeypatch):
    def refuse(backend=None):
        raise RuntimeError(f"Unknown backend {backend}")  # with JAX_PLATFORMS=cuda

    monkeypatch.setattr(jax, "local_devices", refuse)
    _, workdir, _ = run(tmp_path, float)
    assert workdir.metrics()[0]["learning_rate"] == 0.1


def test_whatever_may_hang_is_watched(tmp_path, monkeypatch):
    watched, pictured = [], []

    class Watching(Watch):
        @contextlib.contextmanager
        def over(self, what, *rest, **limits):
            watched.append(what)
            with super().over(what, *rest, **limits):
                yield
            watched.append(None)

    def in_it(what):
        assert what in watched[-1]

    class Saved(Recorder):
        def wait(self):
            in_it("the last save")

    def step(*arguments):
        in_it("did not begin")  # it may compile, or wait for other processes
        return step_function(*arguments)

    monkeypatch.setattr(loop, "Watch", Watching)
    # Waits for a step, should the loop come to use it.
    monkeypatch.setattr(jax, "block_until_ready", lambda _: in_it("did not finish"))
    run(
        tmp_path, float, saved=Saved(), evaluate_every=10, pictures_every=10,
        step_at=lambda _: step,
        evaluate=lambda *_: in_it("evaluation after step 10") or {},
        pictures=lambda *_: pictured.append(watched[-1]),
    )  # fmt: skip
    assert pictured == [f"the pictures of step {step} were not drawn" for step in (0, 10)]


def test_goes_on_from_a_step(tmp_path):
    state, workdir, saved = run(tmp_path, float, start=6)
    assert int(state.step) == 10 and saved.steps == [8, 10]
    # Line for line those of the run that was never stopped.
    assert [(line["step"], line["loss"]) for line in workdir.metrics()] == [(8, 6.5), (10, 8.5)]


def test_a_line_of_steps_before_and_after_a_stop_is_their_mean(tmp_path):
    """As of a run that was never stopped; the last line may be of fewer steps than others."""
    saved = Recorder()
    options = {"log_every": 4, "checkpoint_every": 0, "saved": saved}
    before = lambda n: n == 5 and signal.raise_signal(signal.SIGTERM)  # noqa: E731
    with pytest.raises(stopping.Stopped):
        run(tmp_path, float, before=before, meta={"program": "of glass"}, **options)
    assert saved.steps == [6] == [saved.complete] and saved.meta["program"] == "of glass"
    _, workdir, _ = run(tmp_path, float, start=6, **options)
    lines = [(line["step"], line["loss"]) for line in workdir.metrics()]
    assert lines == [(4, 1.5), (8, 5.5), (10, 8.5)]


def test_what_is_saved_is_of_the_steps_before_however_late_it_is_written(tmp_path):
    late = []

    class Slow(Recorder):
        def save(self, state, step, meta):
            super().save(state, step, meta)
            late.append(meta)

    run(tmp_path, float, log_every=8, checkpoint_every=3, saved=Slow())
    losses = [[metrics["loss"] for metrics in meta["window"]] for meta in late]
    assert losses == [[0, 1, 2], [0, 1, 2, 3, 4, 5], [8], []]


def test_the_key_reaches_the_step(tmp_path):
    def told(state, batch, key):
        seen.append(key)
        return step_function(state, batch, key)

    seen = []
    run(tmp_path, float, start=9, step_at=lambda step: told, key=jax.random.key(7))
    assert seen == [jax.random.key(7)]


def test_evaluates_now_and_then(tmp_path):
    seen = []

    def evaluate(state, step):
        assert step == int(state.step)
        seen.append(step)
        return {"score": 1.0}

    _, workdir, _ = run(tmp_path, float, evaluate=evaluate, evaluate_every=5)
    assert seen == [5, 10]
    assert [line["step"] for line in workdir.metrics() if "score" in line] == [5, 10]


def test_enough_ends_the_run_and_it_stays_ended(tmp_path):
    scores = []

    def evaluate(_, step):
        scores.append(step)
        return {"score": float(step)}

    options = {"evaluate": evaluate, "evaluate_every": 2, "enough": lambda: len(scores) >= 3}
    state, workdir, saved = run(tmp_path, float, log_every=4, **options)
    assert int(state.step) == 6 and saved.steps == [4, 6]
    losses = {line["step"]: line["loss"] for line in workdir.metrics() if "loss" in line}
    assert losses == {4: 1.5, 6: 4.5}  # none is missing
    # Stopped after that, and before its result was written.
    state, _, saved = run(tmp_path, float, start=6, **options)
    assert int(state.step) == 6 and saved.steps == [] and scores == [2, 4, 6]


def test_a_finished_run_takes_no_step(tmp_path):
    state, workdir, saved = run(tmp_path, float, start=10)
    assert int(state.step) == 10 and saved.steps == [] and not workdir.metrics()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_by_name(tmp_path, bad):
    with (
        jax.debug_nans(False),
        pytest.raises(UserError, match=r"at step 7.*of batch 6; the last checkpoint is of step 4"),
    ):
        run(tmp_path, lambda n: bad if n == 6 else 1.0)


def test_updates_that_are_not_finite_are_counted_and_left_out_of_means(tmp_path):
    with jax.debug_nans(False):
        _, workdir, saved = run(
            tmp_path, lambda n: np.nan if n in (3, 6, 7) else float(n), skip=True
        )
    lines = {line["step"]: line for line in workdir.metrics()}
    assert [lines[step]["skipped"] for step in (4, 6, 8, 10)] == [1, 0, 2, 0]
    assert lines[4]["loss"] == 2.0 and "loss" not in lines[8] and saved.steps == [4, 8, 10]


@pytest.mark.parametrize(("good", "saves"), [(6, [4, 8]), (5, [4])])
def test_updates_that_are_never_finite_again_end_the_run_and_replace_no_checkpoint(
    tmp_path, good, saves
):
    """From the third of them on."""
    saved = Recorder()
    named = rf"last 21 updates, up to step {good + 21}, .* is of step {saves[-1]}:"
    with jax.debug_nans(False), pytest.raises(UserError, match=named):
        run(tmp_path, lambda n: 1.0 if n < good else np.nan, skip=True, saved=saved, total=40)
    assert saved.steps == saves and saved.complete == saves[-1]  # which the message names


def test_a_step_that_is_not_finite_is_not_evaluated(tmp_path):
    seen = []
    evaluate = lambda _, step: seen.append(step) or {}  # noqa: E731
    with jax.debug_nans(False), pytest.raises(UserError, match="at step 4"):
        run(
            tmp_path, lambda n: np.nan if n == 3 else 1.0, evaluate=evaluate, evaluate_every=2
        )  # fmt: skip
    assert seen == [2]


def test_a_stop_saves_whatever_was_skipped_before_it(tmp_path):
    saved = Recorder()
    before = lambda n: n == 6 and signal.raise_signal(signal.SIGTERM)  # noqa: E731
    with jax.debug_nans(False), pytest.raises(stopping.Stopped):
        run(tmp_path, lambda n: np.nan if n > 2 else 1.0, skip=True, saved=saved, before=before)
    assert saved.steps[-1] == 7


def test_a_save_that_failed_ends_the_run_at_the_next_step(tmp_path):
    saved = Recorder()

    def before(n):
        saved.failed = n == 5

    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, float, saved=saved, before=before)
    assert int(saved.latest) == 4


def test_pictures_come_after_the_save_and_cannot_end_a_run(tmp_path, caplog):
    saved, seen = Recorder(), []

    def pictures(state, step):
        seen.append([step, *saved.steps])
        raise ValueError("nothing to draw")

    state, _, _ = run(tmp_path, float, saved=saved, pictures=pictures, pictures_every=4)
    assert int(state.step) == 10
    assert seen == [[0], [4, 4], [8, 4, 8], [10, 4, 8, 10]]
    assert "step 8: pictures cannot be drawn" in caplog.text


def test_only_the_first_process_draws(tmp_path, monkeypatch):
    drawn = []
    pictures = {"pictures": lambda _, step: drawn.append(step), "pictures_every": 5}
    run(tmp_path / "first", float, **pictures)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    run(tmp_path / "second", float, **pictures)
    assert drawn == [0, 5, 10]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_and_saves(tmp_path, number):
    old, saved = signal.getsignal(number), Recorder()

    def before(n):
        if n == 5:
            os.kill(os.getpid(), number)

    drawn = []  # the machine may be gone before those of step 6 are
    pictures = {"pictures": lambda _, step: drawn.append(step), "pictures_every": 6}
    with pytest.raises(stopping.Stopped) as stopped:
        run(tmp_path, float, before=before, saved=saved, **pictures)
    assert stopped.value.code == 75 and saved.steps == [4, 6] and drawn == [0]
    assert signal.getsignal(number) is old


def test_a_signal_in_the_last_step_reaches_the_next_run_of_a_program(tmp_path):
    old = signal.getsignal(signal.SIGTERM)
    with stopping.Stop() as stop:
        last = run(
            tmp_path,
            float,
            stop=stop,
            before=lambda n: n == 9 and signal.raise_signal(signal.SIGTERM),
        )
        assert int(last[0].step) == 10 and stop.requested
        with pytest.raises(stopping.Stopped):
            run(tmp_path, float, start=1, stop=stop)
        with pytest.raises(stopping.Stopped):
            stop.check()
    assert signal.getsignal(signal.SIGTERM) is old


def test_a_signal_reaches_a_run_in_another_thread(tmp_path):
    saved, begun = Recorder(), threading.Event()

    def wait(n):
        if n == 5:
            begun.set()
            assert told.wait(60)

    told = threading.Event()
    with stopping.Stop() as stop, concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, tmp_path, float, saved=saved, before=wait, stop=stop)
        assert begun.wait(60)
        # This thread is in no step, and is interrupted.
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        told.set()
        with pytest.raises(stopping.Stopped):
            running.result()
    assert saved.steps == [4, 6]


def test_a_batch_is_placed_before_the_step_before_it_and_none_is_read_in_vain():
    seen = []

    def read(steps):
        for step in steps:
            seen.append(f"read {step}")
            yield step

    class Devices:
        def shard(self, batch):
            seen.append(f"placed {batch}")
            return batch

    window = Window(2, [])
    watch = Watch()
    for batch in loop._placed(read(range(3, 9)), range(3, 6), Devices(), window, watch):
        seen.append(f"step {batch}")
    assert " ".join(seen) == (
        "read 3 placed 3 read 4 placed 4 step 3 read 5 placed 5 step 4 step 5"
    )
    assert window.waiting > 0
    assert list(loop._placed(read([]), range(0), Devices(), window, watch)) == []


def test_rates_count_the_clips_and_the_time_of_training_alone(monkeypatch):
    now = 0.0

    def passes(seconds):
        nonlocal now
        now += seconds

    def read():
        for step in range(4):
            passes(1.0)
            yield step

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    devices = types.SimpleNamespace(shard=lambda batch: batch)
    metrics = {"loss": 1.0, "skipped": 0.0}
    window = Window(8, [metrics])
    passes(50.0)  # for the step that compiles
    window.add(metrics)
    window.restart()
    for _ in loop._placed(read(), range(4), devices, window, Watch()):
        passes(3.0)
        window.add(metrics)
    with window.pausing():
        passes(100.0)
    found = window.summary()
    assert found["clips_per_second"] == 4 * 8 / 16 and found["waiting_for_data"] == 4 / 16


def test_the_step_before_a_batch_that_cannot_be_read_is_made(tmp_path):
    def losses(n):
        if n == 8:
            raise OSError("the disk is gone")
        return float(n)

    saved = Recorder()
    with pytest.raises(Unavailable, match=r"batch of step 9 cannot be read .*the disk is gone"):
        run(tmp_path, losses, saved=saved)
    assert saved.steps == [4, 8]


def test_a_collapse_is_warned_of_once_and_not_while_nothing_is_learnt(tmp_path, caplog):
    def collapsing(state, batch, key):
        state, metrics = step_function(state, batch, key)
        return state, metrics | {"uniformity": jnp.float32(0.0)}

    run(tmp_path, float, step_at=lambda step: collapsing, total=20)
    said = [one.message for one in caplog.records if "may have collapsed" in one.message]
    assert len(said) == 1 and said[0].startswith("step 4:")


def test_a_damaged_recording_is_the_users_to_mend():
    def batches():
        raise RuntimeError("Corrupted Riegeli/records file: chunk data hash mismatch")
        yield

    with pytest.raises(UserError, match=r"batch of step 3 is damaged .*: prepare it again"):
        loop._next(batches(), 3)
