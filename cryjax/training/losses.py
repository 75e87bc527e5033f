"""NT-Xent, SimCLR's contrastive loss (Chen et al., 2020, equation 1), and cross-entropy."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax

# Above this many similarities per device, the matrix is not held whole: 2 ** 24 floats are 64 MiB,
# and the dense form holds about four such arrays.
_DENSE_LIMIT = 2**24
_TILE = 512
# Stands in for minus infinity, whose differences would be NaN.
_LOW = -1e30
# Per row: the largest similarity so far, and the sum over columns of exp(similarity - largest).
_Sums = tuple[jax.Array, jax.Array]


def unit_norm(x: jax.Array) -> jax.Array:
    """Scales the rows of [batch, features] to length one, in float32; a zero row stays zero."""
    x = x.astype(jnp.float32)
    return x * lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))


def gather(x: jax.Array, axis_name: str | None) -> jax.Array:
    """[batch, ...] of each device -> [global batch, ...]; gradients flow back to every device."""
    return x if axis_name is None else lax.all_gather(x, axis_name, tiled=True)


def _similarity(rows: jax.Array, columns: jax.Array, temperature: float) -> jax.Array:
    return jnp.matmul(rows, columns.T, precision="highest") / temperature


def _gather_views(rows: jax.Array, axis_name: str | None) -> jax.Array:
    """[2b, ...], first views above second, of each device -> [2B, ...] in the same order."""
    if axis_name is None:
        return rows
    return jnp.concatenate([gather(half, axis_name) for half in jnp.split(rows, 2)])


def _own_columns(batch: int, axis_name: str | None) -> jax.Array:
    """[2b]: the place of each of this device's views among the global 2B."""
    if axis_name is None:
        return jnp.arange(2 * batch)
    own = lax.axis_index(axis_name) * batch + jnp.arange(batch)
    return jnp.concatenate([own, own + lax.axis_size(axis_name) * batch])


def _positives(rows: jax.Array, temperature: float) -> jax.Array:
    """[2b, d] -> [b]: the similarity of each example's two views."""
    first, second = jnp.split(rows, 2)
    return jnp.sum(first * second, axis=-1) / temperature


def _mean_over_devices(x: jax.Array, axis_name: str | None) -> jax.Array:
    return x if axis_name is None else lax.pmean(x, axis_name)


def _dense(rows: jax.Array, temperature: float, axis_name: str | None) -> jax.Array:
    columns = _gather_views(rows, axis_name)
    own = _own_columns(rows.shape[0] // 2, axis_name)
    similarity = _similarity(rows, columns, temperature)
    # A view is not its own negative.
    is_self = own[:, None] == jnp.arange(columns.shape[0])[None, :]
    normaliser = jax.nn.logsumexp(jnp.where(is_self, -jnp.inf, similarity), axis=-1)
    loss = jnp.mean(normaliser) - jnp.mean(_positives(rows, temperature))
    return _mean_over_devices(loss, axis_name)


def _tiles(x: jax.Array, size: int, fill: float = 0.0) -> jax.Array:
    """[rows, ...] -> [tiles, size, ...], the last tile padded."""
    missing = -x.shape[0] % size
    x = jnp.pad(x, ((0, missing),) + ((0, 0),) * (x.ndim - 1), constant_values=fill)
    return x.reshape(-1, size, *x.shape[1:])


def _rows_of(tiles: jax.Array, count: int) -> jax.Array:
    return tiles.reshape(-1, *tiles.shape[2:])[:count]


def _over_tiles(
    function: Callable[..., Any],
    carry: Any,
    rows: jax.Array,
    columns: jax.Array,
    own: jax.Array,
    temperature: float,
    size: int,
    mirrored: bool,
) -> Any:
    """Folds `function(carry, i, j, row, column, similarity, hidden)` over the similarity's tiles.

    Args:
      function: gets the indices of a tile of rows and one of columns, both tiles [size, d], their
        similarity [size, size], and a mask of what to ignore in it: a row with itself, and padding.
      carry: its initial value.
      rows: [2b, d], this device's.
      columns: [2B, d], those of all devices.
      own: [2b], the column of each row.
      temperature: of the similarity.
      size: of a tile.
      mirrored: rows and columns are the same, so tiles below the diagonal are skipped.
    """
    count = columns.shape[0]
    rows, own = _tiles(rows, size), _tiles(own, size, count)
    if mirrored:
        columns, places = rows, np.stack(np.triu_indices(len(rows)))
    else:
        columns = _tiles(columns, size)
        places = np.indices((len(rows), len(columns))).reshape(2, -1)

    def visit(carry: Any, tile: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        i, j = tile
        place = j * size + jnp.arange(size)
        hidden = (own[i][:, None] == place[None, :]) | (place >= count)[None, :]
        hidden |= (own[i] >= count)[:, None]
        row, column = rows[i], columns[j]
        similarity = _similarity(row, column, temperature)
        return function(carry, i, j, row, column, similarity, hidden), None

    first, second = (jnp.asarray(p, jnp.int32) for p in places)
    return lax.scan(visit, carry, (first, second))[0]


def _normalisers(
    rows: jax.Array,
    columns: jax.Array,
    own: jax.Array,
    temperature: float,
    size: int,
    mirrored: bool,
) -> jax.Array:
    """[2b]: log of the sum over the other columns of exp(similarity), in one pass over tiles."""

    def add(state: _Sums, place: jax.Array, similarity: jax.Array, axis: int) -> _Sums:
        """Adds a tile to the running maxima and sums of the rows at `place`."""
        top, total = state
        new = jnp.maximum(top[place], similarity.max(axis))
        terms = jnp.exp(similarity - jnp.expand_dims(new, axis)).sum(axis)
        total = total.at[place].set(total[place] * jnp.exp(top[place] - new) + terms)
        return top.at[place].set(new), total

    def visit(
        state: _Sums,
        i: jax.Array,
        j: jax.Array,
        _row: jax.Array,
        _column: jax.Array,
        similarity: jax.Array,
        hidden: jax.Array,
    ) -> _Sums:
        similarity = jnp.where(hidden, _LOW, similarity)
        state = add(state, i, similarity, 1)
        # Transposed, the tile has the terms of the rows at j; on the diagonal these are already in.
        return add(state, j, jnp.where(i == j, _LOW, similarity), 0) if mirrored else state

    empty = jnp.zeros((-(-rows.shape[0] // size), size))
    top, total = _over_tiles(
        visit, (empty + _LOW, empty), rows, columns, own, temperature, size, mirrored
    )
    return _rows_of(top + jnp.log(total), rows.shape[0])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _tiled(rows: jax.Array, temperature: float, axis_name: str | None, size: int) -> jax.Array:
    return _tiled_forward(rows, temperature, axis_name, size)[0]


def _tiled_forward(
    rows: jax.Array, temperature: float, axis_name: str | None, size: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    columns = _gather_views(rows, axis_name)
    own = _own_columns(rows.shape[0] // 2, axis_name)
    normaliser = _normalisers(rows, columns, own, temperature, size, axis_name is None)
    loss = jnp.mean(normaliser) - jnp.mean(_positives(rows, temperature))
    return _mean_over_devices(loss, axis_name), (rows, normaliser)


def _tiled_backward(
    temperature: float,
    axis_name: str | None,
    size: int,
    residuals: tuple[jax.Array, jax.Array],
    cotangent: jax.Array,
) -> tuple[jax.Array]:
    """The gradient of the global mean, times the number of devices, as `pmean` of it expects.

    With p_ij = exp(s_ij - lse_i) the softmax, the similarity being symmetric, row i receives
    sum_j (p_ij + p_ji) z_j: from its own row of the matrix, and from every other row. So each
    device has the whole gradient of its own rows without a sum over devices. Neither exponent can
    overflow, because s_ij is one of the terms of both lse_i and lse_j.
    """
    rows, normaliser = residuals
    columns, others = (_gather_views(x, axis_name) for x in (rows, normaliser))
    own = _own_columns(rows.shape[0] // 2, axis_name)
    mirrored = axis_name is None
    mine, theirs = _tiles(normaliser, size), _tiles(others, size)

    def visit(
        pull: jax.Array,
        i: jax.Array,
        j: jax.Array,
        row: jax.Array,
        column: jax.Array,
        similarity: jax.Array,
        hidden: jax.Array,
    ) -> jax.Array:
        weight = jnp.exp(similarity - mine[i][:, None]) + jnp.exp(similarity - theirs[j][None, :])
        weight = jnp.where(hidden, 0.0, weight)
        pull = pull.at[i].add(jnp.matmul(weight, column, precision="highest"))
        if mirrored:
            turned = jnp.where(i == j, 0.0, weight).T
            pull = pull.at[j].add(jnp.matmul(turned, row, precision="highest"))
        return pull

    zero = jnp.zeros_like(_tiles(rows, size))
    pull = _over_tiles(visit, zero, rows, columns, own, temperature, size, mirrored)
    # Each positive pair is counted from both ends.
    first, second = jnp.split(rows, 2)
    d_first, d_second = jnp.split(_rows_of(pull, rows.shape[0]), 2)
    pull = jnp.concatenate([d_first - 2.0 * second, d_second - 2.0 * first])
    return (pull * (cotangent / (temperature * rows.shape[0])),)


_tiled.defvjp(_tiled_forward, _tiled_backward)


def nt_xent(
    first: jax.Array,
    second: jax.Array,
    *,
    temperature: float,
    axis_name: str | None = None,
    block_size: int | None = None,
) -> jax.Array:
    """Normalised temperature-scaled cross entropy between two views of each example.

    Each of the 2 x batch rows must find its other view among the 2 x batch - 1 others, by cosine
    similarity divided by the temperature. The mean over all rows is returned.
    (google-research/simclr adds the two directions, so it reports twice that.)

    Args:
      first: [batch, features], one view; any scale and any floating dtype.
      second: [batch, features], the other view, row by row.
      temperature: above 0.
      axis_name: a device axis; the batch is then this device's share, the negatives come from all
        devices, and the mean is over all. Average the gradients of parameters over the axis
        (`pmean`) to get those of the returned value. Inside `shard_map` this needs
        `check_vma=False`, with which differentiation leaves the sum over devices to the caller.
      block_size: side of the similarity matrix's tiles, held one at a time; None holds the whole
        matrix while it is small, and tiles beyond. Value and gradient are the same either way.

    Returns:
      float32 scalar.
    """
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(
            f"need two [batch, features] of one shape, not {first.shape}, {second.shape}"
        )
    rows = jnp.concatenate([unit_norm(first), unit_norm(second)])
    devices = 1 if axis_name is None else lax.axis_size(axis_name)
    if block_size is None and rows.shape[0] ** 2 * devices > _DENSE_LIMIT:
        block_size = _TILE
    if block_size is None:
        return _dense(rows, temperature, axis_name)
    return _tiled(rows, temperature, axis_name, block_size)


def contrastive_metrics(
    first: jax.Array, second: jax.Array, axis_name: str | None = None, most: int = 1024
) -> dict[str, jax.Array]:
    """How a batch's projections lie on the unit sphere. No gradients flow through them.

    Args:
      first: [batch, features], one view.
      second: [batch, features], the other.
      axis_name: a device axis over which the global batch is gathered.
      most: how many examples of the global batch to use, from the first.

    Returns:
      contrastive_accuracy: share of views whose nearest view is their example's other one, in
        [0, 1].
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
    # exp(-2 |a - b|^2) = exp(4 a.b - 4) on the unit sphere; the diagonal, exp(0), is subtracted.
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


def classification(
    logits: jax.Array,
    targets: jax.Array,
    *,
    multi_label: bool,
    class_weights: jax.Array | np.ndarray,
    smoothing: float = 0.0,
) -> jax.Array:
    """Cross-entropy of each example: softmax for one label, or a sigmoid for each of several.

    Args:
      logits: [batch, classes].
      targets: float [batch, classes] in [0, 1], maybe mixed; rows sum to 1 if not `multi_label`.
      multi_label: whether an example may have several labels, or none.
      class_weights: [classes], weights of each class's part of the target or, if `multi_label`, of
        each class's positives.
      smoothing: share of the target that is spread evenly over the classes, or over yes and no.

    Returns:
      float32 [batch].
    """
    if multi_label:
        smooth = targets * (1.0 - smoothing) + 0.5 * smoothing
        yes, no = nn.log_sigmoid(logits), nn.log_sigmoid(-logits)
        return -jnp.mean(class_weights[None] * smooth * yes + (1.0 - smooth) * no, axis=-1)
    smooth = optax.smooth_labels(targets, smoothing)
    return -jnp.sum(class_weights[None] * smooth * nn.log_softmax(logits), axis=-1)
