"""Batch norm, ReLU and pooling after a convolution, with hand-written gradients.

On an accelerator these cost as much as the convolutions they follow, all of it memory traffic: how
often a map is read and written. Automatic differentiation stores and moves more than necessary.
Here the gradient (Ioffe and Szegedy, 2015, section 3) needs only the convolution's output, and
takes two passes: one for two sums per channel, one for the result. What pooling spreads over four
elements need not be written, and the second pass needs four numbers per channel, not all those of
the formula: on an H200 fetching them all takes as long as fetching the map.

Statistics are over all devices of `axis_name`, as in `flax.linen.BatchNorm`, and so are the sums
over the batch in the gradient; the gradients of the parameters stay each device's own.
"""

import functools
import math
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

EPSILON = 1e-5  # as in PyTorch

# A layer's output, and the mean and the variance of the batch, float32 [channels].
Normed = tuple[jax.Array, jax.Array, jax.Array]


def total(x: jax.Array, axis_name: str | None) -> jax.Array:
    """The sum over the devices of an axis, if there is one."""
    return x if axis_name is None else lax.psum(x, axis_name)


def affine(
    mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """1 / standard deviation, and the factor and the term that normalise and scale."""
    inverse = lax.rsqrt(var + EPSILON)
    factor = scale * inverse
    return inverse, factor, bias - mean * factor


def _per_channel(x: jax.Array) -> jax.Array:
    """[channels] -> [1, 1, 1, channels]."""
    return x[None, None, None]


def _windows(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of a pooling window: an axis of one element is left alone."""
    return min(2, shape[1]), min(2, shape[2])


def _by_window(x: jax.Array) -> jax.Array:
    """[batch, height, width, channels] -> [batch, height / 2, 2, width / 2, 2, channels]."""
    batch, height, width, channels = x.shape
    down, across = _windows(x.shape)
    x = x[:, : height // down * down, : width // across * across]
    return x.reshape(batch, height // down, down, width // across, across, channels)


def average_pool(x: jax.Array) -> jax.Array:
    """2 x 2 average pooling of [batch, height, width, channels]; odd edges are dropped.

    A reshape and a mean, because the pooling operation converts badly to ONNX. An axis of one
    element is left alone, so that a short input still gets through.
    """
    return _by_window(x).mean((2, 4))


def _unpool(pooled: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[batch, height / 2, width / 2, channels] -> `shape`; zero at dropped edges."""
    batch, height, width, channels = pooled.shape
    down, across = _windows(shape)
    spread = jnp.broadcast_to(
        pooled[:, :, None, :, None], (batch, height, down, width, across, channels)
    ).reshape(batch, height * down, width * across, channels)
    return jnp.pad(spread, [(0, size - n) for size, n in zip(shape, spread.shape, strict=True)])


def _unpool_by_index(pooled: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Same as `_unpool`, for GPUs: XLA reads padded maps there by element, behind a branch."""
    for axis, window in zip((1, 2), _windows(shape), strict=True):
        size, known = shape[axis], pooled.shape[axis]
        if size == window * known:
            pooled = jnp.repeat(pooled, window, axis)
        else:
            place = jnp.arange(size) // window
            pooled = jnp.take(pooled, place, axis, mode="fill", fill_value=0)
    return pooled


def relu_of(x: jax.Array, factor: jax.Array, term: jax.Array) -> jax.Array:
    """relu(x * factor + term), with factor and term per channel, computed in float32."""
    y = x.astype(jnp.float32) * _per_channel(factor) + _per_channel(term)
    return nn.relu(y).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def norm_relu(
    x: jax.Array, scale: jax.Array, bias: jax.Array, pooled: bool, axis_name: str | None
) -> Normed:
    """Batch norm with batch statistics and ReLU; with `pooled`, `average_pool` too.

    Args:
      x: [batch, height, width, channels], a convolution's output.
      scale: float32 [channels].
      bias: float32 [channels].
      pooled: whether to pool.
      axis_name: the device axis over which statistics are taken, if any.

    Returns:
      The result, in `x`'s dtype, and the statistics, through which no gradient flows.
    """
    values = x.astype(jnp.float32)
    moments = jnp.stack([values.mean((0, 1, 2)), jnp.square(values).mean((0, 1, 2))])
    mean, square = moments if axis_name is None else lax.pmean(moments, axis_name)
    var = jnp.maximum(0.0, square - jnp.square(mean))
    _, factor, term = affine(mean, var, scale, bias)
    y = relu_of(x, factor, term)
    return average_pool(y) if pooled else y, mean, var


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, pooled: bool, axis_name: str | None
) -> tuple[Normed, tuple[jax.Array, ...]]:
    y, mean, var = norm_relu(x, scale, bias, pooled, axis_name)
    return (y, mean, var), (x, scale, bias, mean, var)


def _passed(x: jax.Array, gradient: jax.Array, factor: jax.Array, term: jax.Array) -> jax.Array:
    """The gradient where ReLU is open."""
    opened = x.astype(jnp.float32) * _per_channel(factor) + _per_channel(term) > 0
    return jnp.where(opened, gradient.astype(jnp.float32), 0.0)


def _centred(passed: jax.Array, x: jax.Array, mean: jax.Array) -> jax.Array:
    return passed * (x.astype(jnp.float32) - _per_channel(mean))


def _sums(
    x: jax.Array, gradient: jax.Array, mean: jax.Array, factor: jax.Array, term: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Sums, over all elements, of the gradient that ReLU passes, and of it times x - mean."""
    passed = _passed(x, gradient, factor, term)
    return passed.sum((0, 1, 2)), _centred(passed, x, mean).sum((0, 1, 2))


def _sums_of_pooled(
    x: jax.Array, gradient: jax.Array, mean: jax.Array, factor: jax.Array, term: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Same as `_sums`, from the pooled gradient, not yet divided among the elements."""
    return _sums(x, _unpool(gradient, x.shape), mean, factor, term)


def _sums_of_windows(
    x: jax.Array, gradient: jax.Array, mean: jax.Array, factor: jax.Array, term: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Same as `_sums_of_pooled`, a window's elements side by side: each gradient is read once.

    Spares a GPU the index arithmetic, which takes longer than memory access. A TPU would write
    the four parts.
    """
    windows, (down, across) = _by_window(x), _windows(x.shape)
    parts = [windows[:, :, i, :, j] for i in range(down) for j in range(across)]

    def added(of: Callable[[jax.Array], jax.Array]) -> jax.Array:
        return functools.reduce(operator.add, map(of, parts)).sum((0, 1, 2))

    passed = added(lambda part: _passed(part, gradient, factor, term))
    # Compared anew, or XLA would share the mask between both sums and write it: four more maps.
    factor, term = lax.optimization_barrier((factor, term))
    return passed, added(lambda part: _centred(_passed(part, gradient, factor, term), part, mean))


def gradients(
    pooled: bool, axis_name: str | None, kept: tuple[jax.Array, ...], cotangents: Normed
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of `norm_relu` w.r.t. x, scale, bias; `kept` holds these and the statistics."""
    x, scale, bias, mean, var = kept
    inverse, factor, term = affine(mean, var, scale, bias)
    gradient, share = cotangents[0], 1.0
    if pooled:
        d_bias, centred = lax.platform_dependent(
            x, gradient, mean, factor, term, cuda=_sums_of_windows, default=_sums_of_pooled
        )
        gradient = lax.platform_dependent(
            gradient,
            cuda=functools.partial(_unpool_by_index, shape=x.shape),
            default=functools.partial(_unpool, shape=x.shape),
        )
        share = 1 / math.prod(_windows(x.shape))
    else:
        d_bias, centred = _sums(x, gradient, mean, factor, term)
    d_bias, d_scale = share * d_bias, share * inverse * centred
    count = x.size // x.shape[-1] * total(jnp.ones(()), axis_name)
    shift, along = total(jnp.stack([d_bias, d_scale]), axis_name) / count
    # factor * (passed - shift - normalised * along), linear in x where ReLU is closed. The share, a
    # power of two, goes into factor and term, and ReLU stays open where it was.
    slope = factor * inverse * along
    offset = slope * mean - factor * shift
    factor, term = share * factor, share * term
    d_x = (
        _passed(x, gradient, factor, term) * _per_channel(factor)
        - x.astype(jnp.float32) * _per_channel(slope)
        + _per_channel(offset)
    )
    return d_x.astype(x.dtype), d_scale, d_bias


norm_relu.defvjp(_forward, gradients)
