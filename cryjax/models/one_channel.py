"""The first layer, a one-channel convolution, batch norm and ReLU, as matrix products.

Its output is as large as any layer's but depends on very little. With P the shifted copies of the
input and a column of ones, the convolution is P K. Its mean and variance follow from P'P,
normalising turns K into another kernel W, and the layer is relu(P W): the convolution's output is
never in memory. Backward, with G the gradient that ReLU passes, G'P yields the sums and the
kernel's gradient, and G W' and P yield the input's. On an H200 this takes a quarter of the time of
convolution and batch norm, which read and write their maps eleven times.

This form is used on NVIDIA GPUs only. A TPU would lay the rows out anew, which costs more memory,
and on a CPU nothing is gained; there, and wherever batch statistics are not used, the layer is an
ordinary convolution.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from cryjax.models import conv, norm


def _tile(width: int) -> int:
    """Neighbours in a row to compute together: for one alone the product is too narrow."""
    return next(n for n in range(8, 0, -1) if width % n == 0)


@functools.lru_cache(maxsize=16)
def _places(size: int, tile: int) -> np.ndarray:
    """[columns, tile, size * size + 1]: 1 where a column of P meets an element of the kernel.

    A row of P has the inputs that a tile of outputs depends on, a one, and zeros up to a multiple
    of eight columns, as matrix units want. The kernel's last element is the term that is added.
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
    following = -(-2 * margin // tile)  # further tiles that a tile needs part of
    right = following * tile - margin
    padded = jnp.pad(x[..., 0], ((0, 0), (margin, margin), (margin, right)))
    rows = batch, height + 2 * margin, width // tile, tile
    tiles = [padded[:, :, k * tile :][:, :, :width].reshape(rows) for k in range(following + 1)]
    across = jnp.concatenate(tiles, axis=-1)[..., : tile + 2 * margin]
    copies = jnp.concatenate([across[:, i : i + height] for i in range(size)], axis=-1)
    copies = jnp.pad(copies, ((0, 0),) * 3 + ((0, 1),), constant_values=1)
    copies = copies.reshape(batch, -1, copies.shape[-1])
    return jnp.pad(copies, ((0, 0), (0, 0), (0, -copies.shape[-1] % 8)))


# Full precision for float32; bfloat16 accumulates in float32.
_exact = functools.partial(jnp.einsum, precision="highest", preferred_element_type=jnp.float32)


def _products(copies: jax.Array, of: jax.Array) -> jax.Array:
    """P'Q, float32 [columns, ...]; per example first, which divides the work."""
    return _exact("bnp,bnq->bpq", copies, of).sum(0)


def _with_term(kernel: jax.Array, term: jax.Array) -> jax.Array:
    """[k, channels], [channels] -> [k + 1, channels]."""
    return jnp.concatenate([kernel, term[None]])


def _own_moments(copies: jax.Array, places: np.ndarray) -> jax.Array:
    """[k + 1, k + 1]: products of inputs that meet two kernel elements, summed over the maps."""
    return _exact("pqk,pr,rql->kl", places, _products(copies, copies), places)


def _weights(
    kernel: jax.Array, factor: jax.Array, term: jax.Array, places: np.ndarray, dtype: jnp.dtype
) -> jax.Array:
    """W, [columns, tile * channels]: P W is the convolution's output, normalised."""
    normalising = _with_term(kernel * factor[None], term)
    return _exact("pqk,kc->pqc", places, normalising).reshape(len(places), -1).astype(dtype)


def _as_products(
    x: jax.Array, kernel: jax.Array, scale: jax.Array, bias: jax.Array, axis_name: str | None
) -> tuple[jax.Array, ...]:
    copies, places = _copies(x, len(kernel)), _places(len(kernel), _tile(x.shape[2]))
    flat = kernel.reshape(-1, kernel.shape[-1]).astype(jnp.float32)
    moments = norm.total(_own_moments(copies, places), axis_name)
    moments /= moments[-1, -1]
    mean = _exact("k,kc->c", moments[-1, :-1], flat)
    square = _exact("kc,kl,lc->c", flat, moments[:-1, :-1], flat)
    var = jnp.maximum(0.0, square - jnp.square(mean))
    _, factor, term = norm.affine(mean, var, scale, bias)
    y = nn.relu(copies @ _weights(flat, factor, term, places, x.dtype))
    y = y.reshape(*x.shape[:3], -1)
    return y, mean, var, y


def _gradients_as_products(
    x: jax.Array, kernel: jax.Array, scale: jax.Array, bias: jax.Array,
    mean: jax.Array, var: jax.Array, _: jax.Array, cotangent: jax.Array, axis_name: str | None,
) -> tuple[jax.Array, ...]:  # fmt: skip
    copies, pull = jax.vjp(functools.partial(_copies, size=len(kernel)), x)
    places = _places(len(kernel), _tile(x.shape[2]))
    flat = kernel.reshape(-1, kernel.shape[-1]).astype(jnp.float32)
    inverse, factor, term = norm.affine(mean, var, scale, bias)
    # ReLU's mask is recomputed, in the product that masks the gradient: P is a sixteenth of y. The
    # barrier keeps forward and backward from sharing P W, which would write it to memory.
    weights = _weights(flat, factor, term, places, x.dtype)
    weights, cotangent = lax.optimization_barrier((weights, cotangent))
    rows = copies.reshape(-1, len(places))
    passed = jnp.where(rows @ weights > 0, cotangent.reshape(len(rows), -1), 0)
    passed = passed.reshape(*copies.shape[:2], -1)
    by_place = _products(copies, passed).reshape(*places.shape[:2], -1)
    products = _exact("pqk,pqc->kc", places, by_place)
    d_bias = products[-1]
    d_scale = inverse * (jnp.sum(flat * products[:-1], axis=0) - mean * d_bias)
    own = _own_moments(copies, places)
    along, shift = norm.total(jnp.stack([d_scale, d_bias]), axis_name)
    along, shift = (part / norm.total(own[-1, -1], axis_name) for part in (along, shift))
    # Nor is the gradient w.r.t. the convolution's output, passed * factor - P linear, ever formed.
    along *= inverse * factor
    linear = _with_term(flat * along[None], shift * factor - along * mean)
    d_flat = products[:-1] * factor[None] - _exact("kl,lc->kc", own[:-1], linear)
    turned = _exact("pqk,kc->qcp", places[..., :-1], flat)
    scaled = (turned * factor[None, :, None]).reshape(-1, len(places)).astype(x.dtype)
    back = _exact("pqk,kc,qcr->pr", places, linear, turned).astype(x.dtype)
    d_x = pull(passed @ scaled - copies @ back)[0]
    return d_x, d_flat.reshape(kernel.shape).astype(kernel.dtype), d_scale, d_bias


def _as_convolution(
    x: jax.Array, kernel: jax.Array, scale: jax.Array, bias: jax.Array, axis_name: str | None
) -> tuple[jax.Array, ...]:
    convolved = conv.convolve(x, kernel)
    return *norm.norm_relu(convolved, scale, bias, False, axis_name), convolved


def _gradients_as_convolution(
    x: jax.Array, kernel: jax.Array, scale: jax.Array, bias: jax.Array,
    mean: jax.Array, var: jax.Array, convolved: jax.Array, cotangent: jax.Array,
    axis_name: str | None,
) -> tuple[jax.Array, ...]:  # fmt: skip
    kept = convolved, scale, bias, mean, var
    d_convolved, *rest = norm.gradients(False, axis_name, kept, (cotangent, mean, var))
    _, pull = jax.vjp(conv.convolve, x, kernel)
    return *pull(d_convolved), *rest


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def one_channel(
    x: jax.Array, kernel: jax.Array, scale: jax.Array, bias: jax.Array, axis_name: str | None
) -> norm.Normed:
    """`norm_relu` of a one-channel convolution, in the platform's fast form.

    Args:
      x: [batch, height, width, 1].
      kernel: [size, size, 1, channels], size odd; the dtype of `x`.
      scale: float32 [channels].
      bias: float32 [channels].
      axis_name: the device axis over which statistics are taken, if any.

    Returns:
      Same as `norm_relu`.
    """
    return _forward(x, kernel, scale, bias, axis_name)[0]


def _forward(
    x: jax.Array, kernel: jax.Array, scale: jax.Array, bias: jax.Array, axis_name: str | None
) -> tuple[norm.Normed, tuple[jax.Array, ...]]:
    y, mean, var, kept = lax.platform_dependent(
        x, kernel, scale, bias,
        cuda=functools.partial(_as_products, axis_name=axis_name),
        default=functools.partial(_as_convolution, axis_name=axis_name),
    )  # fmt: skip
    return (y, mean, var), (x, kernel, scale, bias, mean, var, kept)


def _backward(
    axis_name: str | None, kept: tuple[jax.Array, ...], cotangents: norm.Normed
) -> tuple[jax.Array, ...]:
    return lax.platform_dependent(
        *kept, cotangents[0],
        cuda=functools.partial(_gradients_as_products, axis_name=axis_name),
        default=functools.partial(_gradients_as_convolution, axis_name=axis_name),
    )  # fmt: skip


one_channel.defvjp(_forward, _backward)
