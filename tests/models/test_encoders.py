"""The encoders against PANNs' published sizes, and what they must not depend on."""

import jax
import numpy as np
import pytest

from cryjax.models import make_encoder


def parameters(name, mels=64):
    encoder = make_encoder(name)
    variables = jax.eval_shape(
        encoder.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, mels), np.float32)
    )
    return sum(x.size for x in jax.tree.leaves(variables["params"]))


# Kong et al. (2020), table XI, less the AudioSet classifier of 527 classes and its biases.
@pytest.mark.parametrize(
    ("name", "published", "features"),
    [("cnn6", 4_837_455, 512), ("cnn10", 5_219_279, 512), ("cnn14", 80_753_615, 2048)],
)
def test_published_sizes(name, published, features):
    assert parameters(name) == published - 527 * (features + 1)


@pytest.mark.parametrize("name", ["cnn6", "cnn10", "cnn14"])
def test_shape_for_any_length(name):
    encoder = make_encoder(name, width=1 / 16)
    shape = jax.ShapeDtypeStruct((2, 64, 40), np.float32)
    variables = jax.eval_shape(encoder.init, jax.random.key(0), shape)
    for frames in (1, 3, 31, 400):
        shape = jax.ShapeDtypeStruct((2, frames, 40), np.float32)
        out = jax.eval_shape(encoder.apply, variables, shape)
        assert out.shape == (2, encoder.features) and out.dtype == np.float32


@pytest.fixture(scope="module")
def small():
    encoder = make_encoder("cnn6", width=1 / 16)
    x = np.random.default_rng(0).normal(size=(4, 32, 16)).astype(np.float32)
    return encoder, jax.jit(encoder.init)(jax.random.key(0), x), x


def test_eval_mode_treats_each_example_alone(small):
    encoder, variables, x = small
    apply = jax.jit(encoder.apply)
    np.testing.assert_allclose(apply(variables, x[:1]), apply(variables, x)[:1], atol=1e-5)


def test_train_mode_updates_statistics_towards_the_batch(small):
    encoder, variables, x = small
    _, changed = encoder.apply(variables, x, train=True, mutable=["batch_stats"])
    mean = changed["batch_stats"]["norm0"]["mean"]
    np.testing.assert_allclose(mean, 0.1 * x.mean(axis=(0, 1)), atol=1e-5)


def test_bfloat16_computes_near_float32_and_keeps_float32_parameters(small):
    encoder, variables, x = small
    low = make_encoder("cnn6", width=1 / 16, dtype="bfloat16")
    init = jax.eval_shape(low.init, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(init)} == {np.dtype(np.float32)}
    exact, rough = (jax.jit(each.apply)(variables, x) for each in (encoder, low))
    assert rough.dtype == np.float32
    assert np.linalg.norm(exact - rough) < 0.03 * np.linalg.norm(exact)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(("cnn7",), "cnn14"), (("cnn6", 0.0), "width"), (("cnn6", 1.0, "int8"), "bfloat16")],
)
def test_mistakes_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        make_encoder(*arguments)


@pytest.mark.parametrize("frozen", [0, 1, 3, 5])
def test_frozen_blocks_get_no_gradient_and_keep_their_statistics(frozen):
    encoder = make_encoder("cnn6", width=1 / 16).clone(frozen=frozen)
    x = np.random.default_rng(0).normal(size=(4, 32, 24)).astype(np.float32)
    variables = jax.jit(encoder.init)(jax.random.key(0), x)

    def loss(params):
        out, changed = encoder.apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        return (out**2).mean(), changed["batch_stats"]

    gradients, stats = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    assert jax.tree.structure(stats) == jax.tree.structure(variables["batch_stats"])
    depth = {"norm0": 1, "block1": 1, "block2": 2, "block3": 3, "block4": 4, "dense": 5}
    for name, block in depth.items():
        moved = any(np.any(x) for x in jax.tree.leaves(gradients[name]))
        assert moved == (block > frozen), name
        if name in stats:
            old = jax.tree.leaves(variables["batch_stats"][name])
            new = jax.tree.leaves(stats[name])
            same = all(np.array_equal(a, b) for a, b in zip(old, new, strict=True))
            assert same == (block <= frozen), name
