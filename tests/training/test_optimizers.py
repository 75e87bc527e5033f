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
    scales = optimizers.rate_scales(whole, encoder=0.5, layer_decay=0.1, blocks=4, frozen=2)
    assert jax.tree.structure(scales) == jax.tree.structure(whole)
    of = {name: set(jax.tree.leaves(leaves)) for name, leaves in scales["encoder"].items()}
    assert of["norm0"] == of["block1"] == of["block2"] == {0.0}
    assert of["block3"] == {0.5 * 0.1**2}
    assert of["block4"] == {0.5 * 0.1} and of["dense"] == {0.5}
    assert set(jax.tree.leaves(scales["head"])) == {1.0}
