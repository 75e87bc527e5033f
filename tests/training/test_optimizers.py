"""The optimizers' exclusions, the scaling of the rate and its course."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cryjax.models import make_encoder
from cryjax.training import optimizers


@pytest.fixture(scope="module")
def params():
    encoder = make_encoder("cnn6", 1 / 32)
    return jax.jit(encoder.init)(jax.random.key(0), jnp.ones((1, 32, 16)))["params"]


@pytest.mark.parametrize("name", optimizers.NAMES)
def test_without_gradient_only_weights_decay(name, params):
    optimizer = optimizers.make_optimizer(name, 0.1, weight_decay=0.1)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        leaf = path[-1].key
        moved = bool(jnp.any(update != 0))
        assert moved == (leaf == "kernel"), f"{jax.tree_util.keystr(path)} {moved}"


def test_lars_follows_you_et_al():
    # One step on one kernel: rate * trust * |w| / |g + decay w| * (g + decay w).
    rng = np.random.default_rng(0)
    weight, gradient = (rng.normal(size=(3, 4)).astype(np.float32) for _ in range(2))
    optimizer = optimizers.make_optimizer("lars", 0.5, weight_decay=0.01)
    params = {"kernel": jnp.asarray(weight)}
    updates, _ = optimizer.update({"kernel": gradient}, optimizer.init(params), params)
    direction = gradient + 0.01 * weight
    trust = 0.001 * np.linalg.norm(weight) / np.linalg.norm(direction)
    np.testing.assert_allclose(updates["kernel"], -0.5 * trust * direction, rtol=1e-5)


def test_scaling():
    assert optimizers.base_rate(0.3, 4096, "linear") == pytest.approx(4.8)
    assert optimizers.base_rate(0.075, 4096, "sqrt") == pytest.approx(4.8)
    assert optimizers.base_rate(0.1, 4096, "none") == 0.1
    with pytest.raises(ValueError, match="sqrt"):
        optimizers.base_rate(0.1, 1, "cubic")


@pytest.mark.parametrize("warmup", [0, 10])
def test_schedule(warmup):
    rate = optimizers.schedule(2.0, 100, warmup)
    course = np.array([float(rate(n)) for n in range(101)])
    np.testing.assert_allclose(
        course[: warmup + 1], np.linspace(0 if warmup else 2, 2, warmup + 1), rtol=1e-6
    )
    assert np.all(np.diff(course[warmup:]) < 0) and course[100] == pytest.approx(0, abs=1e-6)
    middle = (100 - warmup) // 2 + warmup
    assert course[middle] == pytest.approx(1.0, rel=1e-3)


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="lars"):
        optimizers.make_optimizer("adam", 0.1, weight_decay=0.0)
    assert isinstance(
        optimizers.make_optimizer("adamw", 0.1, weight_decay=0.0), optax.GradientTransformation
    )


def test_rates_fall_with_depth_and_frozen_blocks_stay(params):
    whole = {"encoder": params, "head": {"classifier": {"kernel": jnp.ones((3, 2))}}}
    optimizer = optimizers.by_layer(
        optax.sgd(1.0), encoder=0.5, layer_decay=0.1, blocks=4, frozen=2
    )
    ones = jax.tree.map(jnp.ones_like, whole)
    updates, _ = optimizer.update(ones, optimizer.init(whole), whole)
    assert jax.tree.structure(updates) == jax.tree.structure(whole)
    of = {
        name: {round(float(n), 6) for x in jax.tree.leaves(leaves) for n in np.unique(-x)}
        for name, leaves in {**updates["encoder"], "head": updates["head"]}.items()
    }
    assert of["norm0"] == of["block1"] == of["block2"] == {0.0} and of["head"] == {1.0}
    wanted = {"block3": 0.5 * 0.1**2, "block4": 0.5 * 0.1, "dense": 0.5}
    for name, rate in wanted.items():
        assert of[name] == {round(rate, 6)}, name


@pytest.mark.parametrize("frozen_for", [5, 200])
def test_a_block_that_thaws_learns_as_if_the_run_began_then(frozen_for):
    """AdamW that never saw the block before is the oracle."""
    layer = {"kernel": jnp.ones((3, 2))}
    whole = {"encoder": {"block1": layer, "block2": layer}, "head": {"classifier": layer}}
    rng = np.random.default_rng(0)
    adamw = optimizers.make_optimizer("adamw", 0.1, weight_decay=0.0)

    def optimizer(frozen):
        return optimizers.by_layer(adamw, blocks=2, frozen=frozen, thawed={1: frozen_for})

    state, fresh = optimizer(1).init(whole), adamw.init(layer)
    steps = {frozen: jax.jit(optimizer(frozen).update) for frozen in (0, 1)}
    for step in range(1, frozen_for + 30):
        gradients = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) + 1), whole)
        thawed = step > frozen_for
        updates, state = steps[0 if thawed else 1](gradients, state, whole)
        if not thawed:
            assert not np.any(updates["encoder"]["block1"]["kernel"])
            continue
        wanted, fresh = adamw.update(gradients["encoder"]["block1"], fresh, layer)
        found = updates["encoder"]["block1"]["kernel"]
        np.testing.assert_allclose(found, wanted["kernel"], rtol=1e-3)
