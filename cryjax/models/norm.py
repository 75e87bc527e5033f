"""Batch norm and ReLU after a convolution, and pooling, with the gradients written out.

On an accelerator these cost as much as the convolutions they follow, and all of it is memory: how
often a map is read and written. Automatic differentiation keeps and passes more than it need. Here
the gradient (Ioffe and Szegedy, 2015, section 3) is one of the convolution's output alone, and
takes two passes: one for two sums a channel, one for the result.

Statistics are those of all devices of `axis_name`, as `flax.linen.BatchNorm` has them, and so are
the sums over the batch in the gradient; what is summed for a parameter stays the device's own.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

EPSILON = 1e-5  # as in PyTorch

# What a layer gives, and float32 [channels], the mean and the variance of the batch.
Normed = tuple[jax.Array, jax.Array, jax.Array]


def total(x: jax.Array, axis_name: str | None) -> jax.Array:
    """The sum over the devices of an axis, if there is one."""
    return x if axis_name is None else lax.psum(x, axis_name)


def affine(
    mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """1 / deviation, and the factor and the term that normalise and scale."""
    inverse = lax.rsqrt(var + EPSILON)
    factor = scale * inverse
    return inverse, factor, bias - mean * factor


def _per_channel(x: jax.Array) -> jax.Array:
    """[channels] -> [1, 1, 1, channels]."""
    return x[None, None, None]


def average_pool(x: jax.Array) -> jax.Array:
    """2 x 2 average pooling of [batch, height, width, channels]; odd edges are dropped.

    A reshape and a mean, because the pooling operation converts badly to ONNX. An axis of one
    element is left alone, so that a short input still reaches the end.
    """
    batch, height, width, channels = x.shape
    down, across = min(2, height), min(2, width)
    x = x[:, : height // down * down, : width // across * across]
    return x.reshape(batch, height // down, down, width // across, across, channels).mean((2, 4))


def relu_of(x: jax.Array, factor: jax.Array, term: jax.Array) -> jax.Array:
    """relu(x * factor + term), factor and term of each channel, computed in float32."""
    y = x.astype(jnp.float32) * _per_channel(factor) + _per_channel(term)
    return nn.relu(y).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def norm_relu(x: jax.Array, scale: jax.Array, bias: jax.Array, axis_name: str | None) -> Normed:
    """Batch norm by the batch's statistics, and ReLU.

    Args:
      x: [batch, height, width, channels], a convolution's output.
      scale: float32 [channels].
      bias: float32 [channels].
      axis_name: the device axis of which the statistics are, if there is one.

    Returns:
      The result, of `x`'s shape and type, and the statistics, through which no gradient flows.
    """
    values = x.astype(jnp.float32)
    moments = jnp.stack([values.mean((0, 1, 2)), jnp.square(values).mean((0, 1, 2))])
    mean, square = moments if axis_name is None else lax.pmean(moments, axis_name)
    var = jnp.maximum(0.0, square - jnp.square(mean))
    _, factor, term = affine(mean, var, scale, bias)
    return relu_of(x, factor, term), mean, var


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, axis_name: str | None
) -> tuple[Normed, tuple[jax.Array, ...]]:
    y, mean, var = norm_relu(x, scale, bias, axis_name)
    return (y, mean, var), (x, scale, bias, mean, var)


def gradients(
    axis_name: str | None, kept: tuple[jax.Array, ...], cotangents: Normed
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of `norm_relu`: by x, scale and bias; `kept` are these and the statistics."""
    x, scale, bias, mean, var = kept
    inverse, factor, term = affine(mean, var, scale, bias)
    values = x.astype(jnp.float32)
    normalised = (values - _per_channel(mean)) * _per_channel(inverse)
    opened = values * _per_channel(factor) + _per_channel(term) > 0
    passed = jnp.where(opened, cotangents[0].astype(jnp.float32), 0.0)
    d_scale, d_bias = ((passed * normalised).sum((0, 1, 2)), passed.sum((0, 1, 2)))
    count = x.size // x.shape[-1] * total(jnp.ones(()), axis_name)
    along, shift = total(jnp.stack([d_scale, d_bias]), axis_name) / count
    d_x = passed - _per_channel(shift) - normalised * _per_channel(along)
    return (d_x * _per_channel(factor)).astype(x.dtype), d_scale, d_bias


norm_relu.defvjp(_forward, gradients)
