"""Checkpoints give back what was saved, part by part, and name what does not fit."""

import jax
import numpy as np
import pytest

from cryjax.audio import frontend
from cryjax.command.errors import UserError
from cryjax.models import ProjectionHead, make_encoder
from cryjax.training import checkpoints, optimizers, parallel, steps

ENCODER = {"name": "cnn6", "width": 1 / 32, "dtype": "float32"}
META = {
    "config": {"encoder": ENCODER, "crop": {"seconds": 0.5}},
    "front_end": frontend.PRESETS["small_8k"].__dict__,
    "synthetic": True,
}


def make_state(seed):
    encoder, head = make_encoder(**ENCODER), ProjectionHead(8, 4)
    optimizer = optimizers.make_optimizer("adamw", 1e-3, weight_decay=0.0)
    state = steps.init_state(jax.random.key(seed), encoder, head, optimizer, 40)
    return parallel.Parallel().replicate(state)


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


def test_an_unfinished_checkpoint_is_not_one(run, states):
    (run / "checkpoints" / "9.orbax-checkpoint-tmp-0").mkdir()
    assert checkpoints.Checkpoints(run).latest == 3
    assert checkpoints.read_meta(str(run))["step"] == 3


def test_encoder_needs_neither_head_nor_optimizer(run, states):
    for item in ("head", "optimizer"):
        for path in sorted((run / "checkpoints" / "3" / item).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    found = checkpoints.load_pretrained(str(run))
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
    with pytest.raises(UserError, match="no checkpoint was finished"):
        checkpoints.read_meta(str(tmp_path))


def test_untrained_is_another_encoder_of_the_same_form(run, states):
    found = checkpoints.untrained_like(str(run), seed=5)
    trained = states[2].params["encoder"]
    assert jax.tree.map(np.shape, found.variables["params"]) == jax.tree.map(np.shape, trained)
    kernel = found.variables["params"]["block1"]["conv1"]["kernel"]
    assert not np.allclose(kernel, trained["block1"]["conv1"]["kernel"])
