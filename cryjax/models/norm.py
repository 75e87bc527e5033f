"""Batch norm, ReLU and pooling after a convolution, forward and backward, written out.

On an accelerator these cost as much as the convolutions they follow, and all of it is memory: how
often a map is read and written. Automatic differentiation keeps what it need not, so gradients
(those of Ioffe and Szegedy, 2015, section 3) are given here, from the convolution's output alone:

- `norm_relu`: one pass for the statistics, one for the result; backward one for the two sums, one
  for the gradient. What pooling spreads over its four elements is never written at full size.
- `one_channel`: the first layer, whose output is as large as any and a function of very little.
  With P the shifted copies of the input and a column of ones, the convolution's output is P K. Its
  mean and variance come from P'P, normalising is another kernel W, and the layer is relu(P W): what
  the convolution gives is never in memory. Its gradients need G'P, for G the gradient that ReLU
  lets through, and G itself.

Statistics are those of all devices of `axis_name`, as `flax.linen.BatchNorm` has them, and so are
the sums over the batch in the gradients; what is summed for a parameter stays the device's own.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from cryjax.models import conv

EPSILON = 1e-5  # as in PyTorch
MOMENTUM = 0.9  # of the running statistics

# Of a layer's output: what follows, and float32 [channels], the batch's mean and variance.
Normed = tuple[jax.Array, jax.Array, jax.Array]


def _total(x: jax.Array, axis_name: str | None) -> jax.Array:
    return x if axis_name is None else lax.psum(x, axis_name)


def _per_channel(x: jax.Array) -> jax.Array:
    """[channels] -> [1, 1, 1, channels]."""
    return x[None, None, None]


def _affine(mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array) -> list[jax.Array]:
    """1 / deviation, and the factor and the term that normalise and scale."""
    inverse = lax.rsqrt(var + EPSILON)
    factor = scale * inverse
    return [inverse, factor, bias - mean * factor]


def _windows(x: jax.Array) -> tuple[int, int]:
    """Height and width of what is pooled together: an axis of one element is left alone."""
    return min(2, x.shape[1]), min(2, x.shape[2])


def average_pool(x: jax.Array) -> jax.Array:
    """2 x 2 average pooling of [batch, height, width, channels]; odd edges are dropped.

    A reshape and a mean, because the pooling operation converts badly to ONNX. An axis of one
    element is left alone, so that a short input still reaches the end.
    """
    return _by_window(x).mean((2, 4))


def _by_window(x: jax.Array) -> jax.Array:
    """[batch, height, width, channels] -> [batch, height / 2, 2, width / 2, 2, channels]."""
    batch, height, width, channels = x.shape
    down, across = _windows(x)
    x = x[:, : height // down * down, : width // across * across]
    return x.reshape(batch, height // down, down, width // across, across, channels)


def _unpool(x: jax.Array, like: jax.Array) -> jax.Array:
    """The transpose of `average_pool`, of a gradient by its result; zero at dropped edges."""
    down, across = _windows(like)
    spread = x[:, :, None, :, None] / (down * across)
    batch, height, _, width, _, channels = spread.shape
    spread = jnp.broadcast_to(spread, (batch, height, down, width, across, channels))
    spread = spread.reshape(batch, height * down, width * across, channels)
    missing = (like.shape[axis] - spread.shape[axis] for axis in (1, 2))
    return jnp.pad(spread, ((0, 0), *((0, more) for more in missing), (0, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def norm_relu(
    x: jax.Array, scale: jax.Array, bias: jax.Array, pooled: bool, axis_name: str | None
) -> Normed:
    """Batch norm by the batch's statistics and ReLU; with `pooled`, `average_pool`, too.

    Args:
      x: [batch, height, width, channels], a convolution's output.
      scale: float32 [channels].
      bias: float32 [channels].
      pooled: whether to pool.
      axis_name: the device axis of which the statistics are, if there is one.

    Returns:
      The result, of `x`'s type, and mean and variance, float32 [channels]. No gradient flows
      through these two.
    """
    values = x.astype(jnp.float32)
    moments = jnp.stack([values.mean((0, 1, 2)), jnp.square(values).mean((0, 1, 2))])
    mean, square = moments if axis_name is None else lax.pmean(moments, axis_name)
    var = jnp.maximum(0.0, square - jnp.square(mean))
    _, factor, term = _affine(mean, var, scale, bias)
    y = nn.relu(values * _per_channel(factor) + _per_channel(term))
    return (average_pool(y) if pooled else y).astype(x.dtype), mean, var


def _norm_relu_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, pooled: bool, axis_name: str | None
) -> tuple[Normed, tuple[jax.Array, ...]]:
    y, mean, var = norm_relu(x, scale, bias, pooled, axis_name)
    return (y, mean, var), (x, scale, bias, mean, var)


def _norm_relu_backward(
    pooled: bool, axis_name: str | None, kept: tuple[jax.Array, ...], cotangents: Normed
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale, bias, mean, var = kept
    gradient = cotangents[0].astype(jnp.float32)
    inverse, factor, term = map(_per_channel, _affine(mean, var, scale, bias))

    def normalised_and_open(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The normalised values, and where ReLU is open."""
        values = x.astype(jnp.float32)
        return (values - _per_channel(mean)) * inverse, values * factor + term > 0

    def summed(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        normalised, opened = normalised_and_open(x)
        passed = jnp.where(opened, gradient, 0.0)
        return passed, passed * normalised

    if pooled:
        # The elements of a window side by side: a sum over them first would be a second pass.
        windows, (down, across) = _by_window(x), _windows(x)
        share = gradient / (down * across)
        parts = [summed(windows[:, :, i, :, j], share) for i in range(down) for j in range(across)]
        sums = [functools.reduce(jnp.add, part) for part in zip(*parts, strict=True)]
        gradient = _unpool(gradient, x)
    else:
        sums = list(summed(x, gradient))
    d_bias, d_scale = (part.sum((0, 1, 2)) for part in sums)
    count = x.size // x.shape[-1] * _total(jnp.ones(()), axis_name)
    means = _total(jnp.stack([d_bias, d_scale]), axis_name) / count
    normalised, opened = normalised_and_open(x)
    passed = jnp.where(opened, gradient, 0.0)
    d_x = factor * (passed - _per_channel(means[0]) - normalised * _per_channel(means[1]))
    return d_x.astype(x.dtype), d_scale, d_bias


norm_relu.defvjp(_norm_relu_forward, _norm_relu_backward)


def _tile(width: int) -> int:
    """Neighbours in a row that are computed together: of one alone a product is too narrow."""
    return next(n for n in range(8, 0, -1) if width % n == 0)


@functools.lru_cache(maxsize=16)
def _places(size: int, tile: int) -> np.ndarray:
    """[columns, tile, size * size + 1]: the column of P that an element of a kernel meets.

    A row of P has the inputs that a tile of outputs is a function of, a one, and zeros up to whole
    eights of columns, which matrix units want. The kernel's last element is the term that is added.
    """
    across = tile + size - 1
    places = np.zeros((-(-(size * across + 1) // 8) * 8, tile, size * size + 1), np.float32)
    for place in range(tile):
        for i in range(size):
            for j in range(size):
                places[i * across + place + j, place, i * size + j] = 1
        places[size * across, place, -1] = 1
    return places


def _copies(x: jax.Array, size: int) -> jax.Array:
    """P, [batch, height * width / tile, columns], of [batch, height, width, 1]."""
    batch, height, width, _ = x.shape
    margin, tile = size // 2, _tile(width)
    following = -(-2 * margin // tile)  # tiles that a tile needs something of
    right = following * tile - margin
    padded = jnp.pad(x[..., 0], ((0, 0), (margin, margin), (margin, right)))
    rows = batch, height + 2 * margin, width // tile, tile
    tiles = [padded[:, :, k * tile :][:, :, :width].reshape(rows) for k in range(following + 1)]
    across = jnp.concatenate(tiles, axis=-1)[..., : tile + 2 * margin]
    copies = jnp.concatenate([across[:, i : i + height] for i in range(size)], axis=-1)
    copies = jnp.pad(copies, ((0, 0),) * 3 + ((0, 1),), constant_values=1)
    copies = copies.reshape(batch, -1, copies.shape[-1])
    return jnp.pad(copies, ((0, 0), (0, 0), (0, -copies.shape[-1] % 8)))


# Of float32 as it is; of bfloat16 added up in float32.
_exact = functools.partial(jnp.einsum, precision="highest", preferred_element_type=jnp.float32)


def _products(copies: jax.Array, of: jax.Array) -> jax.Array:
    """P'Q, float32 [columns, ...]; example by example first, which divides the work."""
    return _exact("bnp,bnq->bpq", copies, of).sum(0)


def _with_term(kernel: jax.Array, term: jax.Array) -> jax.Array:
    """[k, channels], [channels] -> [k + 1, channels]."""
    return jnp.concatenate([kernel, term[None]])


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def one_channel(
    x: jax.Array, kernel: jax.Array, scale: jax.Array, bias: jax.Array, axis_name: str | None
) -> Normed:
    """`norm_relu` of a convolution of one channel.

    Args:
      x: [batch, height, width, 1].
      kernel: [size, size, 1, channels], size odd; the dtype of `x`.
      scale: float32 [channels].
      bias: float32 [channels].
      axis_name: the device axis of which the statistics are, if there is one.

    Returns:
      As `norm_relu`.
    """
    return _one_channel_forward(x, kernel, scale, bias, axis_name)[0]


def _one_channel_forward(
    x: jax.Array, kernel: jax.Array, scale: jax.Array, bias: jax.Array, axis_name: str | None
) -> tuple[Normed, tuple[jax.Array, ...]]:
    copies, places = _copies(x, len(kernel)), _places(len(kernel), _tile(x.shape[2]))
    flat = kernel.reshape(-1, kernel.shape[-1]).astype(jnp.float32)
    # [k + 1, k + 1]: what meets two elements of the kernel, multiplied and added over the maps.
    own = _exact("pqk,pr,rql->kl", places, _products(copies, copies), places)
    moments = _total(own, axis_name)
    moments /= moments[-1, -1]
    mean = _exact("k,kc->c", moments[-1, :-1], flat)
    square = _exact("kc,kl,lc->c", flat, moments[:-1, :-1], flat)
    var = jnp.maximum(0.0, square - jnp.square(mean))
    _, factor, term = _affine(mean, var, scale, bias)
    weights = _exact("pqk,kc->pqc", places, _with_term(flat * factor[None], term))
    y = nn.relu(copies @ weights.reshape(len(places), -1).astype(x.dtype))
    y = y.reshape(*x.shape[:3], -1)
    return (y, mean, var), (x, kernel, scale, bias, mean, var, own, y)


def _one_channel_backward(
    axis_name: str | None, kept: tuple[jax.Array, ...], cotangents: Normed
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    x, kernel, scale, bias, mean, var, own, y = kept
    copies, pull = jax.vjp(functools.partial(_copies, size=len(kernel)), x)
    places = _places(len(kernel), _tile(x.shape[2]))
    flat = kernel.reshape(-1, kernel.shape[-1]).astype(jnp.float32)
    inverse, factor, _ = _affine(mean, var, scale, bias)
    passed = jnp.where(y > 0, cotangents[0], 0).reshape(*copies.shape[:2], -1)
    by_place = _products(copies, passed).reshape(*places.shape[:2], -1)
    products = _exact("pqk,pqc->kc", places, by_place)
    d_bias = products[-1]
    d_scale = inverse * (jnp.sum(flat * products[:-1], axis=0) - mean * d_bias)
    count = _total(own[-1, -1], axis_name)
    means = _total(jnp.stack([d_bias, d_scale]), axis_name) / count
    # The gradient by the convolution's output, passed * factor - P linear, is never formed either.
    along = means[1] * inverse * factor
    linear = _with_term(flat * along[None], means[0] * factor - along * mean)
    d_flat = products[:-1] * factor[None] - _exact("kl,lc->kc", own[:-1], linear)
    turned = _exact("pqk,kc->qcp", places[..., :-1], flat)
    scaled = turned * factor[None, :, None]
    back = _exact("pqk,kc,qcr->pr", places, linear, turned).astype(x.dtype)
    d_copies = passed @ scaled.reshape(-1, len(places)).astype(x.dtype) - copies @ back
    d_kernel = d_flat.reshape(kernel.shape).astype(kernel.dtype)
    return pull(d_copies)[0], d_kernel, d_scale, d_bias


one_channel.defvjp(_one_channel_forward, _one_channel_backward)


class NormRelu(nn.Module):
    """Of a convolution: batch norm, ReLU and, if asked, pooling.

    Parameters and statistics are those of `flax.linen.BatchNorm`.

    Attributes:
      learns: whether to take the statistics of the batch, and to update the running ones.
      pooled: whether `average_pool` follows.
      axis_name: the device axis over which statistics are synchronised.
    """

    learns: bool
    pooled: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """[batch, height, width, channels], [size, size, channels, features] -> the result."""
        features = kernel.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, features)
        var = self.variable("batch_stats", "var", jnp.ones, features)
        scale = self.param("scale", nn.initializers.ones, (features,))
        bias = self.param("bias", nn.initializers.zeros, (features,))
        if not self.learns:
            _, factor, term = _affine(mean.value, var.value, scale, bias)
            x = conv.convolve(x, kernel).astype(jnp.float32)
            x = nn.relu(x * _per_channel(factor) + _per_channel(term)).astype(kernel.dtype)
            return average_pool(x) if self.pooled else x
        if x.shape[-1] == 1:
            x, *batch = one_channel(x, kernel, scale, bias, self.axis_name)
            x = average_pool(x) if self.pooled else x
        else:
            convolved = conv.convolve(x, kernel)
            x, *batch = norm_relu(convolved, scale, bias, self.pooled, self.axis_name)
        for running, now in zip((mean, var), batch, strict=True):
            running.value = MOMENTUM * running.value + (1 - MOMENTUM) * now
        return x
