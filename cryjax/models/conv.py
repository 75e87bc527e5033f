"""Convolution, lowered to the form that is fast on each platform.

XLA's own convolution suits GPUs and TPUs. On CPUs an equivalent matrix product is faster, and used
there: a SimCLR step of CNN14, 16 clips, takes 7.5 s instead of 22, batch norm (`norm.py`) included
(`python tests/benchmarks/step.py --peers=cryjax,flax --batches=16`).

- one channel: the k x k shifted copies of the input, each times its row of the kernel, summed in
  one pass;
- 3 x 3 kernels between many channels, on maps that are not small: Winograd's minimal filtering, a
  third of the multiplications (`winograd.py`);
- otherwise: the k x k shifted copies of the input side by side, times the flattened kernel
  ('im2col'). The copies are k x k times as large as the input, so they are made for a few examples
  at a time, which keeps them in the cache, and remade in the backward pass rather than kept. The
  input's gradient is the reverse: the product with the kernel, which need not be transposed for
  it, then its k x k parts, shifted and added.

The choice is made when the program is lowered, not when it is traced: a process that has only a CPU
can compile a program for a TPU.
"""

import functools
import operator

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from cryjax.models import winograd

# Bytes of shifted copies at a time. Forward and backward on two cores, against all at once: 5 times
# faster for 1 channel, 3 for 16, 2 for 32, 1.1 for 64. A quarter or four times as much is slower.
_PATCH_BYTES = 4_000_000

# Winograd's form is used from this many channels and features, and this many tiles: below, the
# transform of the kernel would cost more than it saves.
_WINOGRAD_CHANNELS = 32
_WINOGRAD_TILES = 112


def _convolve_native(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _shifted(x: jax.Array, size: int) -> list[jax.Array]:
    """The size * size shifted copies of the maps, same shape, in a kernel's order."""
    _, height, width, _ = x.shape
    margin = size // 2
    padded = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    return [padded[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]


def _patches(x: jax.Array, size: int) -> jax.Array:
    """[batch, height, width, channels] -> [batch, height, width, size * size * channels]."""
    return jnp.concatenate(_shifted(x, size), axis=-1)


def _sum_of_shifted(patches: jax.Array, size: int) -> jax.Array:
    """The transpose of `_patches`."""
    batch, height, width, _ = patches.shape
    margin = size // 2
    parts = patches.reshape(batch, height, width, size, size, -1)
    parts = jnp.pad(parts, ((0, 0), (margin, margin), (margin, margin), (0, 0), (0, 0), (0, 0)))
    shifted = (
        parts[:, size - 1 - i :, size - 1 - j :][:, :height, :width, i, j]
        for i in range(size)
        for j in range(size)
    )
    return functools.reduce(operator.add, shifted)


def _in_groups(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[batch, ...] -> [groups, batch / groups, ...], with about `_PATCH_BYTES` of patches each.

    `x` is the convolution's input, or the gradient w.r.t. its output.
    """
    batch, height, width, channels = x.shape
    group = 1  # for a batch or a length that an exported program leaves open
    if isinstance(batch, int) and isinstance(height, int):
        patches = height * width * (kernel.nbytes // kernel.shape[-1])
        # Not less than the kernel, which is read (its gradient read and written) for each group.
        most = max(_PATCH_BYTES, kernel.nbytes) // patches
        group = next(n for n in range(min(max(most, 1), batch), 0, -1) if batch % n == 0)
    return x.reshape(batch // group, group, height, width, channels)


def _by_winograd(x: jax.Array, kernel: jax.Array) -> bool:
    """Whether Winograd's form is faster; bfloat16 is too coarse for it."""
    if x.dtype != jnp.float32 or len(kernel) != 3 or min(kernel.shape[2:]) < _WINOGRAD_CHANNELS:
        return False
    maps = x.shape[:3]  # an exported program leaves some open
    return all(isinstance(n, int) for n in maps) and winograd.tiles(*maps) >= _WINOGRAD_TILES


def _convolve_on_cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
    if _by_winograd(x, kernel):
        return winograd.convolve(x, kernel)
    size, _, channels, features = kernel.shape
    flat = kernel.reshape(-1, features)
    if channels == 1:
        terms = (
            copy * row[None, None, None] for copy, row in zip(_shifted(x, size), flat, strict=True)
        )
        return functools.reduce(operator.add, terms)
    out = lax.map(lambda group: _patches(group, size) @ flat, _in_groups(x, kernel))
    return out.reshape(*x.shape[:3], features)


def _gradients_native(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return jax.vjp(_convolve_native, x, kernel)[1](cotangent)


def _gradients_on_cuda(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Lays the kernel's gradient out like the kernel; cuDNN's has the features first.

    Left alone, XLA transposes it where the optimizer reads it, and the kernel and its moments,
    which the optimizer writes, are then not updated in place but copied once more.
    """
    d_x, d_kernel = _gradients_native(x, kernel, cotangent)
    d_kernel = with_layout_constraint(d_kernel, Layout(tuple(range(kernel.ndim))))
    return d_x, lax.optimization_barrier(d_kernel)


def _gradients_on_cpu(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    if _by_winograd(x, kernel):
        # The gradient w.r.t. the input is a convolution with the flipped kernel.
        turned = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
        return winograd.convolve(cotangent, turned), winograd.kernel_gradient(x, cotangent)
    size, _, _, features = kernel.shape
    flat = kernel.reshape(-1, features)

    def add(total: jax.Array, group: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        rows, cotangents = _patches(group[0], size).reshape(-1, len(flat)), group[1]
        product = jnp.matmul(
            rows.T, cotangents.reshape(-1, features), preferred_element_type=jnp.float32
        )
        return total + product, _sum_of_shifted(cotangents @ flat.T, size)

    groups = _in_groups(x, kernel), _in_groups(cotangent, kernel)
    d_kernel, d_x = lax.scan(add, jnp.zeros(flat.shape, jnp.float32), groups)
    return d_x.reshape(x.shape), d_kernel.reshape(kernel.shape).astype(kernel.dtype)


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Two-dimensional convolution, stride 1, zero padding that keeps the size.

    Args:
      x: [batch, height, width, channels].
      kernel: [size, size, channels, features], size odd; the dtype of `x`.

    Returns:
      [batch, height, width, features].
    """
    return lax.platform_dependent(x, kernel, cpu=_convolve_on_cpu, default=_convolve_native)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve(x, kernel), (x, kernel)


def _backward(
    residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return lax.platform_dependent(
        *residuals, cotangent,
        cpu=_gradients_on_cpu, cuda=_gradients_on_cuda, default=_gradients_native,
    )  # fmt: skip


convolve.defvjp(_forward, _backward)


class Kernel(nn.Module):
    """The kernel of a convolution without bias.

    Attributes:
      features: output channels.
      size: height and width of the kernel; odd.
    """

    features: int
    size: int = 3

    @nn.compact
    def __call__(self, channels: int) -> jax.Array:
        """float32 [size, size, channels, features]."""
        # PANNs initialises with Xavier's uniform distribution.
        shape = self.size, self.size, channels, self.features
        return self.param("kernel", nn.initializers.xavier_uniform(), shape)
