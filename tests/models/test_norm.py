"""Batch norm, ReLU, pooling and the first layer in each of its forms, against float64 autodiff."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cryjax.models import conv, norm, one_channel

FORMS = {
    "products": (one_channel._as_products, one_channel._gradients_as_products),
    "convolution": (one_channel._as_convolution, one_channel._gradients_as_convolution),
}


def plain(x, kernel, scale, bias, pooled=False):
    """Flax's batch norm after XLA's convolution, ReLU, and Flax's pooling."""
    layer = nn.BatchNorm(
        use_running_average=False, epsilon=norm.EPSILON, dtype=x.dtype, use_fast_variance=False
    )
    stats = {"mean": jnp.zeros(scale.shape), "var": jnp.ones(scale.shape)}
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}
    convolved = conv._convolve_native(x, kernel)
    y, _ = layer.apply(variables, convolved, mutable=["batch_stats"])
    y = nn.relu(y)
    if pooled:
        window = min(2, y.shape[1]), min(2, y.shape[2])
        y = nn.avg_pool(y, window, window)
    return y, convolved.mean((0, 1, 2)), convolved.var((0, 1, 2))


def of_form(name):
    """`one_channel` as some platform has it: values and statistics, and the gradients."""
    forward, backward = FORMS[name]

    def run(x, kernel, scale, bias, cotangent, axis_name=None):
        *normed, kept = forward(x, kernel, scale, bias, axis_name)
        arguments = x, kernel, scale, bias, *normed[1:], kept, cotangent
        return *normed, *backward(*arguments, axis_name)

    return run


def general(x, kernel, scale, bias, cotangent, axis_name=None, pooled=False):
    """`norm_relu` after our convolution, as `of_form`."""

    def layer(x, kernel, scale, bias):
        return norm.norm_relu(conv.convolve(x, kernel), scale, bias, pooled, axis_name)

    normed, pull = jax.vjp(layer, x, kernel, scale, bias)
    return *normed, *pull((cotangent, *map(jnp.zeros_like, normed[1:])))


def drawn(shape, features, size):
    rng = np.random.default_rng(0)
    x = 0.3 + rng.normal(size=shape)
    kernel = rng.normal(size=(size, size, shape[-1], features))
    scale, bias = rng.normal(size=(2, features))
    return x, kernel, scale, bias, rng.normal(size=(*shape[:3], features))


def distance(ours, exact):
    return np.linalg.norm(np.asarray(ours, np.float64) - exact) / np.linalg.norm(exact)


def exact(arguments, pooled=False):
    with jax.enable_x64(True):
        *inputs, cotangent = map(jnp.asarray, arguments)
        normed, pull = jax.vjp(functools.partial(plain, pooled=pooled), *inputs)
        zeros = map(jnp.zeros_like, normed[1:])
        return [np.asarray(part) for part in (*normed, *pull((cotangent, *zeros)))]


# One row, one column, a width that is prime, and kernels wider than what is computed together.
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("shape", [(3, 6, 16), (4, 1, 6), (3, 5, 1), (2, 4, 13)])
@pytest.mark.parametrize("form", FORMS)
def test_the_first_layer_is_convolution_norm_and_relu(form, shape, size):
    arguments = drawn((*shape, 1), 5, size)
    low = [x.astype(np.float32) for x in arguments]
    for ours, theirs in zip(of_form(form)(*low), exact(arguments), strict=True):
        assert distance(ours, theirs) < 2e-6


@pytest.mark.parametrize("shape", [(3, 6, 8, 4), (2, 1, 5, 3)])
def test_norm_and_relu(shape):
    arguments = drawn(shape, 5, 3)
    low = [x.astype(np.float32) for x in arguments]
    for ours, theirs in zip(general(*low), exact(arguments), strict=True):
        assert distance(ours, theirs) < 2e-6


# Odd edges, which count for the statistics and are dropped, and axes that are left alone.
@pytest.mark.parametrize("shape", [(3, 6, 8, 4), (2, 5, 7, 3), (4, 1, 6, 3), (2, 5, 1, 3)])
@pytest.mark.parametrize(
    ("sums", "unpool"),
    [
        (norm._sums_of_pooled, norm._unpool),
        (norm._sums_of_windows, norm._unpool_by_index),
    ],
)
def test_pooled_norm_and_relu(sums, unpool, shape, monkeypatch):
    # What a CPU takes.
    monkeypatch.setattr(norm, "_sums_of_pooled", sums)
    monkeypatch.setattr(norm, "_unpool", unpool)
    *inputs, _ = drawn(shape, 5, 3)
    maps = [max(1, n // 2) for n in shape[1:3]]
    cotangent = np.random.default_rng(1).normal(size=(shape[0], *maps, 5))
    low = [x.astype(np.float32) for x in (*inputs, cotangent)]
    ours = general(*low, pooled=True)
    for part, theirs in zip(ours, exact((*inputs, cotangent), pooled=True), strict=True):
        assert distance(part, theirs) < 2e-6


@pytest.mark.parametrize("run", [general, of_form("products"), of_form("convolution")])
def test_bfloat16_adds_up_in_float32(run):
    x, kernel, scale, bias, cotangent = drawn((8, 32, 16, 1), 16, 3)
    # Rounded already: what is left is the rounding of what goes between two operations, which
    # moves values by 2 ** -9 and some past ReLU's corner.
    x, kernel, cotangent = (jnp.bfloat16(part) for part in (x, kernel, cotangent))
    low = x, kernel, scale.astype(np.float32), bias.astype(np.float32), cotangent
    wide = [np.asarray(part, np.float64) for part in low]
    bounds = (5e-3, 2e-3, 2e-3, *[0.05] * 4)
    for ours, theirs, bound in zip(run(*low), exact(wide), bounds, strict=True):
        assert distance(ours, theirs) < bound


POOLED = functools.partial(general, pooled=True)


@pytest.mark.parametrize("run", [general, POOLED, of_form("products"), of_form("convolution")])
def test_devices_share_their_statistics(run):
    """Each of four with a quarter of the batch is the whole batch on one."""
    arguments = [part.astype(np.float32) for part in drawn((8, 7, 16, 1), 5, 3)]
    if run is POOLED:
        arguments[-1] = arguments[-1][:, :3, :8]
    x, kernel, scale, bias, cotangent = arguments
    whole = run(*arguments)

    def parts(array):
        return array.reshape(4, 2, *array.shape[1:])

    mapped = jax.vmap(
        functools.partial(run, axis_name="device"),
        in_axes=(0, None, None, None, 0),
        axis_name="device",
    )
    y, mean, var, d_x, *of_parameters = mapped(parts(x), kernel, scale, bias, parts(cotangent))
    np.testing.assert_allclose(y, parts(whole[0]), atol=1e-5)
    for ours, theirs in ((mean, whole[1]), (var, whole[2])):
        np.testing.assert_allclose(ours, np.broadcast_to(theirs, ours.shape), atol=1e-5)
    np.testing.assert_allclose(d_x, parts(whole[3]), atol=1e-4)
    for each, theirs in zip(of_parameters, whole[4:], strict=True):
        np.testing.assert_allclose(each.sum(0), theirs, atol=2e-4)


def test_the_form_is_chosen_at_lowering():
    x, kernel = jnp.ones((1, 8, 8, 1)), jnp.ones((3, 3, 1, 2))
    scale = bias = jnp.ones(2)

    def gradients(*arguments):
        return jax.grad(
            lambda *inputs: one_channel.one_channel(*inputs, None)[0].sum(), argnums=(0, 1, 2, 3)
        )(*arguments)

    traced = jax.jit(gradients).trace(x, kernel, scale, bias)
    assert "convolution" not in traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "convolution" in traced.lower(lowering_platforms=("tpu",)).as_text()


def test_dropped_edges_are_padded_but_on_nvidias_gpus():
    def gradient(x):
        layer = functools.partial(norm.norm_relu, pooled=True, axis_name=None)
        return jax.grad(lambda x: layer(x, jnp.ones(2), jnp.ones(2))[0].sum())(x)

    traced = jax.jit(gradient).trace(jnp.ones((1, 5, 8, 2)))
    for platform in ("cuda", "tpu", "cpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("gather" in text, "stablehlo.pad" in text) == (
            platform == "cuda",
            platform != "cuda",
        )


def test_a_kernels_gradient_is_turned_on_nvidias_gpus_alone():
    def gradients(x, kernel):
        return jax.grad(lambda *inputs: conv.convolve(*inputs).sum(), argnums=(0, 1))(x, kernel)

    traced = jax.jit(gradients).trace(jnp.ones((1, 8, 8, 2)), jnp.ones((3, 3, 2, 4)))
    for platform in ("cuda", "tpu", "cpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("LayoutConstraint" in text) == (platform == "cuda")


def test_pooling_is_the_mean_of_four_and_leaves_an_axis_of_one():
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype(np.float32)
    expected = (x[:, 0:4:2] + x[:, 1:5:2])[:, :, ::2] + (x[:, 0:4:2] + x[:, 1:5:2])[:, :, 1::2]
    np.testing.assert_allclose(norm.average_pool(x), expected / 4, atol=1e-6)
    assert norm.average_pool(x[:, :1]).shape == (2, 1, 2, 3)
