"""Checkpoints give back what was saved, part by part, and name what does not fit."""

import errno
import functools
import time

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from orbax.checkpoint._src.serialization import serialization

from cryjax.audio import frontend
from cryjax.command.errors import Unavailable, UserError
from cryjax.models import ProjectionHead, make_encoder
from cryjax.training import checkpoints, optimizers, parallel, start, steps
from cryjax.training.trained import load_pretrained, untrained_like

ENCODER = {"name": "cnn6", "width": 1 / 32, "dtype": "float32"}
META = {
    "config": {"encoder": ENCODER, "crop": {"seconds": 0.5}},
    "front_end": frontend.PRESETS["small_8k"].__dict__,
    "synthetic": True,
    "inputs": {"jax": "1", "data": "a"},
}


def make_state(seed):
    encoder, head = make_encoder(**ENCODER), ProjectionHead(8, 4)
    optimizer = optimizers.make_optimizer("adamw", 1e-3, weight_decay=0.0)
    init = functools.partial(
        steps.init_state, encoder=encoder, head=head, optimizer=optimizer, mels=40
    )
    return parallel.Parallel().replicate(jax.jit(init)(jax.random.key(seed)))


@pytest.fixture(scope="module")
def states():
    return [make_state(seed) for seed in range(3)]


@pytest.fixture
def run(states, tmp_path):
    saved = checkpoints.Checkpoints(tmp_path, keep=2)
    for step, state in enumerate(states, 1):
        saved.save(state.replace(step=jax.numpy.int32(step)), step, META)
    saved.wait()
    saved.close()
    return tmp_path


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_the_newest_comes_back_whole(run, states):
    saved = checkpoints.Checkpoints(run)
    assert saved.latest == 3
    restored = saved.restore(states[0], parallel.Parallel().replicated)
    assert int(restored.step) == 3
    assert_equal(restored.params, states[2].params)
    assert_equal(restored.batch_stats, states[2].batch_stats)
    assert_equal(restored.opt_state, states[2].opt_state)


def test_only_so_many_are_kept(run):
    kept = {p.name for p in (run / "checkpoints").iterdir() if p.name.isdigit()}
    assert kept == {"2", "3"}


def hurt(folder, how):
    """Damages a checkpoint in one of the ways that disks and killed copies do."""
    files = [p for p in (folder / "encoder").rglob("*") if p.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 0x10
        largest.write_bytes(content)
    elif how == "truncated":
        largest.write_bytes(content[: len(content) // 3])
    elif how == "missing":
        largest.unlink()
    elif how == "zeros":
        largest.write_bytes(bytes(len(content)))
    elif how == "meta":
        (folder / "meta" / "metadata").write_text("{")


@pytest.mark.parametrize("how", ["flipped", "truncated", "missing", "zeros", "meta"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(run, states, how):
    hurt(run / "checkpoints" / "3", how)
    with pytest.raises(UserError, match=r"checkpoints/3: damaged .* the one before it is used"):
        load_pretrained(str(run))
    saved = checkpoints.Checkpoints(run)
    restored = saved.restore(states[0], parallel.Parallel().replicated)
    assert int(restored.step) == 2 and saved.latest == 2
    assert_equal(restored.params, states[1].params)
    assert (run / "checkpoints" / "damaged-3").is_dir()
    # The run goes on over the step that was lost.
    saved.save(states[2].replace(step=jax.numpy.int32(3)), 3, META)
    saved.wait()
    assert int(saved.restore(states[0], parallel.Parallel().replicated).step) == 3
    saved.close()
    for step in (2, 3):
        hurt(run / "checkpoints" / str(step), how)
    with pytest.raises(UserError, match="none of the checkpoints 3, 2 is intact"):
        checkpoints.Checkpoints(run).restore(states[0], parallel.Parallel().replicated)


def go_on(run, make, init="", **inputs):
    """The state that a run of those inputs goes on from, and what is said of it."""
    front_end = frontend.PRESETS["small_8k"]
    saved = checkpoints.Checkpoints(run)
    return start.start_state(make, init, front_end, parallel.Parallel(), saved, inputs=inputs)


def test_going_on_from_a_damaged_checkpoint_says_the_step_it_goes_on_from(run, states):
    hurt(run / "checkpoints" / "3", "flipped")
    state, said = go_on(run, lambda: states[0], jax="1", data="a")
    assert int(state.step) == 2 and said == "resuming from step 2 of this work directory"


def test_parameters_are_drawn_for_a_fresh_run_only(run, states, tmp_path_factory):
    def make():
        jax.debug.callback(lambda: drawn.append(True))
        return states[0]

    drawn = []
    for folder, times in ((run, 0), (tmp_path_factory.mktemp("fresh"), 1)):
        go_on(folder, make, jax="1", data="a")
        jax.effects_barrier()
        assert len(drawn) == times


def test_going_on_with_other_versions_or_data_says_what_changed(run, states):
    _, said = go_on(run, lambda: states[0], jax="2", data="a")
    assert said == (
        "resuming from step 3 of this work directory, but not bit for bit; "
        "changed since it was saved: jax: '1' -> '2'"
    )


def test_other_data_are_refused(run, states):
    with pytest.raises(UserError, match="different recordings than when this run began"):
        go_on(run, lambda: states[0], jax="1", data="b")


def test_inputs_are_versions_and_digests_of_code_and_data():
    ours, other = start.inputs_of("prepared"), start.inputs_of("prepared anew")
    assert ours["jax"] == jax.__version__
    assert {name for name in ours if ours[name] != other[name]} == {"data"}


def test_going_on_with_other_devices_says_so(states, tmp_path):
    config, spread = ml_collections.ConfigDict({"a": 1}), parallel.Parallel()
    inputs = start.open_workdir(tmp_path, config, "data", spread).inputs
    saved = checkpoints.Checkpoints(tmp_path)
    saved.save(states[0], 1, META | {"inputs": inputs})
    saved.close()
    spread.devices = 8
    inputs = start.open_workdir(tmp_path, config, "data", spread).inputs
    _, said = go_on(tmp_path, lambda: states[0], **inputs)
    count = len(jax.devices())
    assert said.endswith(f"devices: '{count} cpu of 1 process(es)' -> '8 cpu of 1 process(es)'")


class Processes:
    """Stands for several processes: what the second one answers, call by call, where it differs."""

    def __init__(self, monkeypatch, *answers):
        self._answers = list(answers)
        monkeypatch.setattr(parallel, "everyone", self.everyone)
        monkeypatch.setattr(parallel, "PAUSE_SECONDS", 0.0)

    def everyone(self, mine):
        other = self._answers.pop(0) if self._answers else None
        return np.stack([mine, mine if other is None else other])


def test_processes_wait_until_they_see_the_same_checkpoints(run, monkeypatch):
    late = np.array([2, *[-1] * 7])
    Processes(monkeypatch, late, late)  # which sees the newest at the third look
    assert checkpoints.Checkpoints(run).latest == 3
    Processes(monkeypatch, *[late] * 99)
    with pytest.raises(Unavailable, match=r"processes .* see different checkpoints .*\[2, 3\]"):
        checkpoints.Checkpoints(run)


def test_a_checkpoint_that_only_some_can_read_is_not_set_aside(run, states, monkeypatch):
    saved = checkpoints.Checkpoints(run)
    Processes(monkeypatch, np.array(True), np.array(True))  # which reads it at the third try
    assert int(saved.restore(states[0], parallel.Parallel().replicated).step) == 3
    Processes(monkeypatch, *[np.array(True)] * 99)
    with pytest.raises(Unavailable, match=r"3: process 1 of this job cannot read it"):
        saved.restore(states[0], parallel.Parallel().replicated)
    assert saved.latest == 3


@pytest.mark.parametrize(
    "error", [OSError(errno.ESTALE, "gone"), ValueError("reading d/0: Input/output error [5]")]
)
def test_a_checkpoint_whose_file_server_is_away_is_neither_set_aside_nor_given_up(
    run, states, monkeypatch, error
):
    answers, restore = [error, error], ocp.StandardCheckpointHandler.restore

    def away(*arguments, **keywords):
        if answers:
            raise answers.pop()
        return restore(*arguments, **keywords)

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", away)
    monkeypatch.setattr(parallel, "PAUSE_SECONDS", 0.0)
    saved = checkpoints.Checkpoints(run)
    assert int(saved.restore(states[0], parallel.Parallel().replicated).step) == 3
    answers = [error] * 99
    with pytest.raises(Unavailable, match=r"3: process 0 of this job cannot read it \("):
        saved.restore(states[0], parallel.Parallel().replicated)
    assert saved.latest == 3
    with pytest.raises(Unavailable, match=r"3: cannot be read"):
        load_pretrained(str(run))


def test_processes_that_would_start_from_different_encoders_refuse(
    run, states, monkeypatch, tmp_path_factory
):
    # The second one found another checkpoint, whose digest is all zeros.
    Processes(monkeypatch, None, None, np.zeros((1, 8), np.int32))
    with pytest.raises(UserError, match=r"newest checkpoint of config\.init=\S+ \(process 1\)"):
        go_on(tmp_path_factory.mktemp("fresh"), lambda: states[0], str(run), data="a")


def test_a_save_that_failed_is_known_without_another(run, states, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    saved = checkpoints.Checkpoints(run)
    saved.check()
    with monkeypatch.context() as patch:
        patch.setattr(serialization, "async_serialize_from_host", fail)
        saved.save(states[0], 4, META)
        deadline = time.monotonic() + 30
        with pytest.raises(OSError, match="No space left"):
            while time.monotonic() < deadline:
                saved.check()
                time.sleep(0.05)
    assert checkpoints.Checkpoints(run).latest == 3


def test_processes_that_went_apart_are_told_at_a_save(run, states, monkeypatch, caplog):
    saved = checkpoints.Checkpoints(run)
    sums = [*checkpoints.checksums(checkpoints._items(states[0])).values()]
    Processes(monkeypatch, np.array([sums[0] ^ 1, *sums[1:]], np.uint32))
    saved.save(states[0], 4, META)
    saved.wait()
    assert "step 4: encoder/" in caplog.text and "differ between processes" in caplog.text


@settings(deadline=None)  # each shape is compiled
@given(
    arrays(
        st.sampled_from([np.float32, np.int32, np.uint8, np.float16]),
        st.lists(st.integers(1, 4), max_size=3).map(tuple),
    ),
    st.data(),
)
def test_checksums_see_any_one_value(values, data):
    sums = checkpoints.checksums({"a": {"b": values}})
    assert sums.keys() == {"a/b"} and sums == checkpoints.checksums({"a": {"b": values.copy()}})
    changed = values.copy()
    bits = changed.reshape(-1).view(f"u{values.itemsize}")
    place = data.draw(st.integers(0, bits.size - 1))
    bits[place] ^= 1 << data.draw(st.integers(0, 8 * values.itemsize - 1))
    assert checkpoints.checksums({"a": {"b": changed}}) != sums


def test_checksums_see_values_that_changed_places():
    values = np.arange(6, dtype=np.float32)
    orders = [values, values[::-1].copy(), np.roll(values, 1), values[[1, 0, 2, 3, 4, 5]]]
    assert len({checkpoints.checksums({"a": order})["a"] for order in orders}) == 4


def test_what_was_saved_after_a_step_is_dropped_and_the_step_itself_is_not(run):
    for step in (3, 2):
        checkpoints.Checkpoints(run).rewind(step)
        assert checkpoints.Checkpoints(run).latest == step


def test_a_step_is_saved_once(run, states):
    """A run that stops right after a periodic save has nothing to add."""
    saved = checkpoints.Checkpoints(run)
    for save in (saved.save, saved.save_model):
        save(states[0], 3, META)
        saved.wait()
    assert_equal(saved.restore(states[0], parallel.Parallel().replicated).params, states[2].params)


def test_a_moving_average_comes_back_and_is_what_a_model_is(states, tmp_path):
    ours = states[0].replace(average=states[1].live)
    saved, best = (
        checkpoints.Checkpoints(tmp_path, folder=name) for name in ("checkpoints", "best")
    )
    saved.save(ours, 1, META)
    best.save_model(ours, 1, META)
    for one in (saved, best):
        one.wait()
    restored = saved.restore(jax.eval_shape(lambda: ours), parallel.Parallel().replicated)
    assert_equal(restored.average, states[1].live)
    assert_equal(restored.params, states[0].params)
    assert_equal(load_pretrained(str(tmp_path)).variables["params"], states[1].params["encoder"])


def test_the_newest_model_is_the_best_or_else_of_the_highest_step(tmp_path):
    for name in ("checkpoints/9", "checkpoints/10", "best/2"):
        assert not (tmp_path / name).exists()
        (tmp_path / name).mkdir(parents=True)
        assert checkpoints.newest(str(tmp_path)) == tmp_path / name


def test_a_checkpoint_damaged_again_is_set_aside_again(run, states):
    for aside in ("damaged-3", "damaged-3-again"):
        hurt(run / "checkpoints" / "3", "zeros")
        saved = checkpoints.Checkpoints(run)
        assert int(saved.restore(states[0], parallel.Parallel().replicated).step) == 2
        assert (run / "checkpoints" / aside).is_dir()
        saved.save(states[2].replace(step=jax.numpy.int32(3)), 3, META)
        saved.close()


def test_an_unfinished_checkpoint_is_not_one_and_goes(run, states):
    unfinished = run / "checkpoints" / "9.orbax-checkpoint-tmp"
    (unfinished / "encoder").mkdir(parents=True)
    assert checkpoints.read_meta(str(run))["step"] == 3
    saved = checkpoints.Checkpoints(run)
    assert saved.latest == 3
    saved.save(states[0], 4, META)
    saved.close()
    assert not unfinished.exists()
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"3", "4"}


def test_encoder_needs_neither_head_nor_optimizer(run, states):
    for item in ("head", "optimizer"):
        for path in sorted((run / "checkpoints" / "3" / item).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    found = load_pretrained(str(run))
    assert_equal(found.variables["params"], states[2].params["encoder"])
    assert_equal(found.variables["batch_stats"], states[2].batch_stats["encoder"])
    assert found.settings == frontend.PRESETS["small_8k"]
    assert found.window_samples == 4000 and found.synthetic is True


def test_another_encoder_is_refused_by_leaf(run):
    wide = make_encoder("cnn6", 1 / 16)
    target = jax.eval_shape(
        wide.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 40), np.float32)
    )
    with pytest.raises(UserError, match=r"leaf .*block1/norm1.* encoder\.width"):
        checkpoints.restore_item(str(run), "encoder", target, parallel.Parallel().replicated)


def test_missing_runs_are_named(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoints"):
        checkpoints.read_meta(str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no checkpoint is finished"):
        checkpoints.read_meta(str(tmp_path))


def test_untrained_is_another_encoder_of_the_same_form(run, states):
    found = untrained_like(str(run), seed=5)
    trained = states[2].params["encoder"]
    assert jax.tree.map(np.shape, found.variables["params"]) == jax.tree.map(np.shape, trained)
    kernel = found.variables["params"]["block1"]["conv1"]["kernel"]
    assert not np.allclose(kernel, trained["block1"]["conv1"]["kernel"])
