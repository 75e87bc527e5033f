"""3 x 3 convolution by Winograd's minimal filtering, F(4 x 2, 3 x 3), as matrix products.

A tile of 4 x 2 outputs needs 6 x 4 inputs. Sums and small multiples turn tile and kernel into 24
numbers each; there the convolution is an elementwise product, so over channels one matrix product
for each of the 24: a third of the direct form's 72 multiplications per tile (Lavin and Gray, 2016,
"Fast algorithms for convolutional neural networks"). Float32 only: the sums lose a digit or two
of precision. F(4 x 4, 3 x 3) would save a quarter more and lose another digit.

Tiles are transformed a few hundred at a time, so that they stay in the cache between the two
transforms.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_DOWN, _ACROSS = 4, 2  # outputs of a tile

# Approximate tiles at a time. XLA splits a product of small matrices between threads by rows, so
# the forward pass takes more rows for fewer channels: with 64 channels on two cores it is 1.6 times
# faster with 2048 tiles than with 256.
_TILES = 512
_NUMBERS = 2**17  # tiles times channels

# Kernel, input and output transforms of F(4, 3) for the height and F(2, 3) for the width.
_KERNEL_DOWN = np.array(
    [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], np.float32
) / np.float32(24)
_INPUT_DOWN = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
_OUTPUT_DOWN = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
_KERNEL_ACROSS = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]], np.float32) / np.float32(2)
_INPUT_ACROSS = [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]
_OUTPUT_ACROSS = [[1, 1, 1, 0], [0, 1, -1, -1]]
# [24, 9]: both kernel transforms as one product, which reads and writes large kernels once.
_KERNEL = np.kron(_KERNEL_DOWN, _KERNEL_ACROSS)


def tiles(batch: int, height: int, width: int) -> int:
    """Number of tiles in maps of this shape."""
    return batch * -(-height // _DOWN) * -(-width // _ACROSS)


def _combine(matrix: list[list[int]], parts: list[jax.Array], axis: int) -> jax.Array:
    """The matrix times the parts, stacked; as sums, since most factors are 0, 1 or -1."""
    rows = []
    for row in matrix:
        terms = [part if by == 1 else by * part for by, part in zip(row, parts, strict=True) if by]
        rows.append(sum(terms[1:], terms[0]))
    # Stacked, so that each is computed once: fused into its users, it is computed in each.
    return jnp.stack(rows, axis)


def _transposed(matrix: list[list[int]]) -> list[list[int]]:
    return [list(column) for column in zip(*matrix, strict=True)]


class _Pieces:
    """Maps of one shape, cut into pieces: several whole maps, or rows of tiles of one map.

    Attributes:
      count: number of pieces.
      height, width: of a piece, multiples of a tile's.
    """

    def __init__(self, shape: tuple[int, ...], at_a_time: int):
        batch, self._height, self._width = shape[:3]
        rows, self._across = -(-self._height // _DOWN), -(-self._width // _ACROSS)
        if rows * self._across >= at_a_time:
            self._examples = 1
            self._rows = -(-rows // -(-rows * self._across // at_a_time))
        else:
            most = min(batch, at_a_time // (rows * self._across))
            self._examples = next(n for n in range(most, 0, -1) if batch % n == 0)
            self._rows = rows
        self._down = -(-rows // self._rows)  # pieces of an example
        self.count = batch // self._examples * self._down
        self.height, self.width = self._rows * _DOWN, self._across * _ACROSS

    def start(self, number: jax.Array) -> tuple[jax.Array | int, ...]:
        """Where a piece begins."""
        example = number // self._down * self._examples
        return example, number % self._down * self.height, 0, 0

    def cut(self, maps: jax.Array, margin: int, height: int) -> Callable[[jax.Array], jax.Array]:
        """Returns piece number -> piece, with a margin of its neighbours or of zeros.

        Args:
          maps: [batch, height, width, channels].
          margin: on each of the four sides.
          height: to pad the maps to, with zeros. A piece that would reach beyond is moved up, as
            both `dynamic_slice` and `dynamic_update_slice` do.
        """
        below, right = height - self._height + margin, self.width - self._width + margin
        padded = jnp.pad(maps, ((0, 0), (margin, below), (margin, right), (0, 0)))
        sides = (self.height + 2 * margin, self.width + 2 * margin, maps.shape[-1])
        return lambda n: lax.dynamic_slice(padded, self.start(n), (self._examples, *sides))

    def inputs(self, piece: jax.Array) -> jax.Array:
        """A piece with a margin of 1 -> [24, tiles, channels]."""
        down, across = self.height - _DOWN + 1, self.width - _ACROSS + 1
        rows = _combine(_INPUT_DOWN, [piece[:, k : k + down : _DOWN] for k in range(6)], 0)
        columns = [rows[:, :, :, k : k + across : _ACROSS] for k in range(4)]
        return _combine(_INPUT_ACROSS, columns, 1).reshape(24, -1, piece.shape[-1])

    def outputs(self, products: jax.Array) -> jax.Array:
        """[24, tiles, features] -> a piece without margin."""
        features = products.shape[-1]
        parts = products.reshape(6, 4, self._examples, self._rows, self._across, features)
        rows = _combine(_OUTPUT_ACROSS, [parts[:, k] for k in range(4)], 4)
        piece = _combine(_OUTPUT_DOWN, list(rows), 2)
        return piece.reshape(self._examples, self.height, self.width, features)

    def cotangents(self, piece: jax.Array) -> jax.Array:
        """The transpose of `outputs`: a piece without margin -> [24, tiles, features]."""
        down, across = _transposed(_OUTPUT_DOWN), _transposed(_OUTPUT_ACROSS)
        rows = _combine(down, [piece[:, k::_DOWN] for k in range(_DOWN)], 0)
        columns = [rows[:, :, :, k::_ACROSS] for k in range(_ACROSS)]
        return _combine(across, columns, 1).reshape(24, -1, piece.shape[-1])


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution, stride 1, zero padding that keeps the size.

    Args:
      x: float32 [batch, height, width, channels].
      kernel: float32 [3, 3, channels, features].

    Returns:
      float32 [batch, height, width, features].
    """
    batch, height, width, channels = x.shape
    # At least as many rows as kernels have, or reading those would take longer than using them.
    pieces = _Pieces(x.shape, max(channels, _NUMBERS // max(kernel.shape[2:])))
    transformed = jnp.matmul(_KERNEL, kernel.reshape(9, -1), precision="highest")
    transformed = transformed.reshape(24, *kernel.shape[2:])
    cut = pieces.cut(x, 1, max(height, pieces.height))

    def add(number: jax.Array, maps: jax.Array) -> jax.Array:
        piece = pieces.outputs(jnp.matmul(pieces.inputs(cut(number)), transformed))
        return lax.dynamic_update_slice(maps, piece[:, :height, :width], pieces.start(number))

    maps = jnp.zeros((batch, height, width, kernel.shape[-1]), x.dtype)
    return lax.fori_loop(0, pieces.count, add, maps)


def kernel_gradient(x: jax.Array, cotangent: jax.Array) -> jax.Array:
    """The gradient w.r.t. `convolve`'s kernel, given that w.r.t. its result.

    Args:
      x: float32 [batch, height, width, channels].
      cotangent: float32 [batch, height, width, features].

    Returns:
      float32 [3, 3, channels, features].
    """
    pieces = _Pieces(x.shape, max(_TILES, x.shape[-1]))
    full = -(-x.shape[1] // pieces.height) * pieces.height
    inputs, cotangents = pieces.cut(x, 1, full), pieces.cut(cotangent, 0, full)

    def add(number: jax.Array, total: jax.Array) -> jax.Array:
        left = jnp.swapaxes(pieces.inputs(inputs(number)), 1, 2)
        return total + jnp.matmul(left, pieces.cotangents(cotangents(number)))

    total = jnp.zeros((24, x.shape[-1], cotangent.shape[-1]), x.dtype)
    total = lax.fori_loop(0, pieces.count, add, total).reshape(24, -1)
    gradient = jnp.matmul(_KERNEL.T, total, precision="highest")
    return gradient.reshape(3, 3, x.shape[-1], cotangent.shape[-1])
