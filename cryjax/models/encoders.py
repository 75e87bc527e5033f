"""CNN6, CNN10 and CNN14 of PANNs (Kong et al., 2020, table I), without the waveform front end.

Each maps [batch, frames, mels] to [batch, features]: batch norm over mel bands, blocks of
convolutions with 2 x 2 average pooling, the mean over frequency, the sum of the maximum and the
mean over time, and one dense layer. PANNs' dropout is left out: contrastive training brings its
own noise.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cryjax.models import conv, norm
from cryjax.models.one_channel import one_channel

_MOMENTUM = 0.9  # of the running statistics


class NormRelu(nn.Module):
    """Convolution, batch norm and ReLU, then optional average pooling.

    Parameters and statistics are those of `flax.linen.BatchNorm`.

    Attributes:
      learns: whether to use batch statistics and update the running ones.
      pooled: whether to pool.
      axis_name: device axis over which batch statistics are synchronised.
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
            _, factor, term = norm.affine(mean.value, var.value, scale, bias)
            x = norm.relu_of(conv.convolve(x, kernel), factor, term)
            return norm.average_pool(x) if self.pooled else x
        if x.shape[-1] == 1:
            x, *batch = one_channel(x, kernel, scale, bias, self.axis_name)
            x = norm.average_pool(x) if self.pooled else x
        else:
            x = conv.convolve(x, kernel)
            x, *batch = norm.norm_relu(x, scale, bias, self.pooled, self.axis_name)
        for running, now in zip((mean, var), batch, strict=True):
            running.value = _MOMENTUM * running.value + (1 - _MOMENTUM) * now
        return x


class ConvBlock(nn.Module):
    """Convolution, batch norm and ReLU, `layers` times, then pooling.

    Attributes:
      features: output channels.
      layers: number of convolutions.
      size: height and width of their kernels.
      pooled: whether to pool.
      learns: whether to use batch statistics and update the running ones.
      axis_name: device axis over which batch statistics are synchronised.
      dtype: of the computation.
    """

    features: int
    layers: int
    size: int
    pooled: bool
    learns: bool
    axis_name: str | None = None
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in range(1, self.layers + 1):
            kernel = conv.Kernel(self.features, self.size, name=f"conv{layer}")(x.shape[-1])
            pooled = self.pooled and layer == self.layers
            norm_relu = NormRelu(self.learns, pooled, self.axis_name, name=f"norm{layer}")
            x = norm_relu(x.astype(self.dtype), kernel.astype(self.dtype))
        return x


class Encoder(nn.Module):
    """[batch, frames, mels] -> [batch, features].

    Attributes:
      channels: output channels of each block.
      layers: convolutions per block.
      size: height and width of the kernels.
      pooled: how many blocks, from the first, are followed by pooling.
      features: width of the embedding.
      dtype: of the convolutions and the dense layer; parameters and statistics stay float32.
      axis_name: device axis over which training synchronises batch statistics.
      remat: whether to recompute the inside of each block in the backward pass: less memory, a
        third more work.
      frozen: how many blocks, from the first, get no gradient in training and keep their running
        statistics; one more than there are blocks freezes the dense layer too.
    """

    channels: tuple[int, ...]
    layers: int
    size: int
    pooled: int
    features: int
    dtype: jax.typing.DTypeLike = jnp.float32
    axis_name: str | None = None
    remat: bool = False
    frozen: int = 0

    @nn.compact
    def __call__(self, spectrogram: jax.Array, train: bool = False) -> jax.Array:
        """Returns float32 [batch, features].

        With `train`, uses batch statistics and updates the running ones.
        """

        def learns(block: int) -> bool:
            return train and block > self.frozen

        # Statistics per mel band: bands are the channels here, and the width afterwards.
        bands = nn.BatchNorm(
            use_running_average=not learns(1),
            momentum=_MOMENTUM,
            epsilon=norm.EPSILON,
            axis_name=self.axis_name if learns(1) else None,
            name="norm0",
        )
        x = bands(spectrogram)[..., None]
        make_block = nn.remat(ConvBlock) if self.remat else ConvBlock
        for block, channels in enumerate(self.channels, 1):
            x = make_block(
                channels,
                self.layers,
                self.size,
                pooled=block <= self.pooled,
                learns=learns(block),
                axis_name=self.axis_name,
                dtype=self.dtype,
                name=f"block{block}",
            )(x)
            if block == self.frozen:
                x = jax.lax.stop_gradient(x)
        x = x.mean(axis=2)
        x = x.max(axis=1) + x.mean(axis=1)
        x = nn.relu(nn.Dense(self.features, dtype=self.dtype, name="dense")(x))
        if self.frozen > len(self.channels):
            x = jax.lax.stop_gradient(x)
        return x.astype(jnp.float32)


# name: (channels of the blocks, convolutions per block, kernel, pooled blocks, features)
ENCODERS = {
    "cnn6": ((64, 128, 256, 512), 1, 5, 4, 512),
    "cnn10": ((64, 128, 256, 512), 2, 3, 4, 512),
    "cnn14": ((64, 128, 256, 512, 1024, 2048), 2, 3, 5, 2048),
}


def fresh(encoder: Encoder, key: jax.Array, mels: int) -> dict[str, Any]:
    """Initial {'params', 'batch_stats'} of an encoder for spectrograms of this many bands."""
    # They do not depend on the number of frames; 64 survive every pooling.
    return dict(encoder.init(key, jnp.zeros((1, 64, mels))))


def make_encoder(name: str, width: float = 1.0, dtype: str = "float32") -> Encoder:
    """A PANNs encoder.

    Args:
      name: 'cnn6', 'cnn10' or 'cnn14'.
      width: multiplies every number of channels; 1 is the published size.
      dtype: of the computation, 'float32' or 'bfloat16'; parameters are float32 either way.

    Returns:
      A Linen module, [batch, frames, mels] -> [batch, features].
    """
    if name not in ENCODERS:
        raise ValueError(f"encoder.name={name!r}: take one of {', '.join(sorted(ENCODERS))}")
    if width <= 0:
        raise ValueError(f"encoder.width={width}: take a number above 0")
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"encoder.dtype={dtype!r}: take 'float32' or 'bfloat16'")
    channels, layers, size, pooled, features = ENCODERS[name]

    def scale(n: int) -> int:
        return max(1, round(n * width))

    return Encoder(
        tuple(map(scale, channels)), layers, size, pooled, scale(features), jnp.dtype(dtype)
    )
