"""NT-Xent, the contrastive loss of SimCLR (Chen et al., 2020, equation 1)."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

# Above so many similarities a device, the matrix is no longer held: 2 ** 24 floats are 64 MiB, and
# the dense form holds about four such.
_DENSE_LIMIT = 2**24
_BLOCK_ROWS = 256


def unit_norm(x: jax.Array) -> jax.Array:
    """Scales the rows of [batch, features] to length one, in float32; a zero row stays zero."""
    x = x.astype(jnp.float32)
    return x * lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))


def gather(x: jax.Array, axis_name: str | None) -> jax.Array:
    """[batch, ...] of each device -> [global batch, ...]; gradients flow back to every device."""
    return x if axis_name is None else lax.all_gather(x, axis_name, tiled=True)


def _similarity(rows: jax.Array, columns: jax.Array, temperature: float) -> jax.Array:
    return jnp.matmul(rows, columns.T, precision="highest") / temperature


def _views(first: jax.Array, second: jax.Array, axis_name: str | None):
    """Local rows [2b, d], global columns [2B, d], and the column that each row is itself [2b]."""
    batch = first.shape[0]
    columns = jnp.concatenate([gather(first, axis_name), gather(second, axis_name)])
    start = 0 if axis_name is None else lax.axis_index(axis_name) * batch
    own = start + jnp.arange(batch)
    return (
        jnp.concatenate([first, second]),
        columns,
        jnp.concatenate([own, own + columns.shape[0] // 2]),
    )


def _mean_over_devices(x: jax.Array, axis_name: str | None) -> jax.Array:
    return x if axis_name is None else lax.pmean(x, axis_name)


def _dense(first, second, temperature: float, axis_name: str | None) -> jax.Array:
    rows, columns, own = _views(first, second, axis_name)
    similarity = _similarity(rows, columns, temperature)
    # Each view's own copy is no negative.
    is_self = own[:, None] == jnp.arange(columns.shape[0])[None, :]
    similarity = jnp.where(is_self, -jnp.inf, similarity)
    positive = jnp.sum(first * second, axis=-1) / temperature
    normaliser = jax.nn.logsumexp(similarity, axis=-1)
    return _mean_over_devices(jnp.mean(normaliser) - jnp.mean(positive), axis_name)


def _in_blocks(function, block_size: int, *arrays: jax.Array) -> jax.Array:
    """Maps `function` over blocks of rows of the arrays, the last one filled up with zeros."""
    rows = arrays[0].shape[0]
    blocks = -(-rows // block_size)
    padding = blocks * block_size - rows

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, padding),) + ((0, 0),) * (x.ndim - 1))
        return x.reshape(blocks, block_size, *x.shape[1:])

    result = lax.map(lambda block: function(*block), tuple(map(split, arrays)))
    return result.reshape(blocks * block_size, *result.shape[2:])[:rows]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _blockwise(first, second, temperature: float, axis_name: str | None, block_size: int):
    return _blockwise_forward(first, second, temperature, axis_name, block_size)[0]


def _blockwise_forward(first, second, temperature, axis_name, block_size):
    rows, columns, own = _views(first, second, axis_name)

    def normaliser_of(block, own_block):
        similarity = _similarity(block, columns, temperature)
        is_self = own_block[:, None] == jnp.arange(columns.shape[0])[None, :]
        return jax.nn.logsumexp(jnp.where(is_self, -jnp.inf, similarity), axis=-1)

    normaliser = _in_blocks(normaliser_of, block_size, rows, own)
    positive = jnp.sum(first * second, axis=-1) / temperature
    loss = _mean_over_devices(jnp.mean(normaliser) - jnp.mean(positive), axis_name)
    return loss, (first, second, normaliser)


def _blockwise_backward(temperature, axis_name, block_size, residuals, cotangent):
    """The gradient of the global mean, times the number of devices, as `pmean` of it expects.

    With p_ij = exp(s_ij - lse_i) for the softmax, the similarity being symmetric, row i receives
    sum_j (p_ij + p_ji) z_j: its own row of the matrix, and what every other row owes it. So each
    device has the whole gradient of its own rows without a sum over devices. Neither exponent can
    overflow, because s_ij is one of the terms of both lse_i and lse_j.
    """
    first, second, normaliser = residuals
    rows, columns, own = _views(first, second, axis_name)
    halves = jnp.split(normaliser, 2)
    all_normalisers = jnp.concatenate([gather(half, axis_name) for half in halves])

    def gradient_of(block, own_block, normaliser_block):
        similarity = _similarity(block, columns, temperature)
        weight = jnp.exp(similarity - normaliser_block[:, None])
        weight += jnp.exp(similarity - all_normalisers[None, :])
        is_self = own_block[:, None] == jnp.arange(columns.shape[0])[None, :]
        return jnp.matmul(jnp.where(is_self, 0.0, weight), columns, precision="highest")

    pull = _in_blocks(gradient_of, block_size, rows, own, normaliser)
    # Each positive pair is counted from both of its ends.
    pull -= 2.0 * jnp.concatenate([second, first])
    d_first, d_second = jnp.split(pull * (cotangent / (temperature * rows.shape[0])), 2)
    return d_first, d_second


_blockwise.defvjp(_blockwise_forward, _blockwise_backward)


def nt_xent(
    first: jax.Array,
    second: jax.Array,
    *,
    temperature: float,
    axis_name: str | None = None,
    block_size: int | None = None,
) -> jax.Array:
    """Normalised temperature-scaled cross entropy between two views of each example.

    Every one of the 2 x batch rows is to find its other view among the 2 x batch - 1 others, by
    cosine similarity divided by the temperature. The mean over all rows is returned.
    (google-research/simclr adds the two directions, so it reports twice that.)

    Args:
      first: [batch, features], one view; any scale and any floating dtype.
      second: [batch, features], the other, row by row.
      temperature: above 0.
      axis_name: a device axis; the batch is then this device's share, the negatives come from all
        devices, and the mean is over all. Average the gradients of parameters over the axis
        (`pmean`) to have those of the returned value. Inside `shard_map` this asks for
        `check_vma=False`, where differentiation leaves the sum over devices to its user.
      block_size: rows of the similarity matrix to hold at a time; None holds the whole matrix while
        it is small, and blocks beyond. The value and the gradient are the same.

    Returns:
      float32 scalar.
    """
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"two [batch, features] of one shape, not {first.shape}, {second.shape}")
    first, second = unit_norm(first), unit_norm(second)
    devices = 1 if axis_name is None else lax.axis_size(axis_name)
    if block_size is None and 4 * first.shape[0] ** 2 * devices > _DENSE_LIMIT:
        block_size = _BLOCK_ROWS
    if block_size is None:
        return _dense(first, second, temperature, axis_name)
    return _blockwise(first, second, temperature, axis_name, block_size)


def contrastive_metrics(
    first: jax.Array, second: jax.Array, axis_name: str | None = None, most: int = 1024
) -> dict[str, jax.Array]:
    """How the projections of a batch lie on the sphere. No gradients flow through them.

    Args:
      first: [batch, features], one view.
      second: [batch, features], the other.
      axis_name: a device axis over which the global batch is gathered.
      most: how many examples of the global batch are looked at, from the first.

    Returns:
      contrastive_accuracy: share of views whose nearest other view is their own, in [0, 1].
      alignment: mean squared distance of positive pairs, in [0, 4] (Wang and Isola, 2020).
      uniformity: log of the mean of exp(-2 squared distance) between examples, at most 0 (ibid.).
      effective_rank: (sum of l)^2 / sum of l^2 over the covariance's eigenvalues l, in
        [1, features]: the participation ratio; near 1, the embedding has collapsed.
    """
    first, second = (
        gather(unit_norm(lax.stop_gradient(x)), axis_name)[:most] for x in (first, second)
    )
    count = first.shape[0]
    views = jnp.concatenate([first, second])
    similarity = _similarity(views, views, 1.0)
    nearest = jnp.argmax(similarity - 4.0 * jnp.eye(2 * count), axis=-1)
    positive = (jnp.arange(2 * count) + count) % (2 * count)
    # exp(-2 |a - b|^2) = exp(4 a.b - 4) on the unit sphere; the diagonal, exp(0), taken out.
    kernel = jnp.exp(4.0 * similarity[:count, :count] - 4.0)
    pairs = jnp.maximum(count * (count - 1), 1)
    centred = views - views.mean(axis=0, keepdims=True)
    covariance = jnp.matmul(centred.T, centred, precision="highest")
    return {
        "contrastive_accuracy": jnp.mean(nearest == positive),
        "alignment": jnp.mean(jnp.sum(jnp.square(first - second), axis=-1)),
        "uniformity": jnp.log(jnp.maximum((jnp.sum(kernel) - count) / pairs, 1e-30)),
        "effective_rank": jnp.square(jnp.trace(covariance))
        / jnp.maximum(jnp.sum(jnp.square(covariance)), 1e-30),
    }
