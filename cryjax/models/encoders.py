"""CNN6, CNN10 and CNN14 of PANNs (Kong et al., 2020, table I), waveform front end left outside.

Each takes [batch, frames, mels] and gives [batch, features]: batch norm over mel bands, blocks of
convolutions with 2 x 2 average pooling, the mean over frequency, the sum of the maximum and the
mean over time, and one dense layer. PANNs' dropout is left out: contrastive training brings its
own noise.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from cryjax.models.conv import Conv

NORM_EPSILON = 1e-5  # of batch norm, as in PyTorch


def average_pool(x: jax.Array) -> jax.Array:
    """2 x 2 average pooling of [batch, height, width, channels]; odd edges are dropped.

    A reshape and a mean, because the pooling operation converts badly to ONNX. An axis of one
    element is left alone, so that a short input still reaches the end.
    """
    batch, height, width, channels = x.shape
    down, across = min(2, height), min(2, width)
    x = x[:, : height // down * down, : width // across * across]
    return x.reshape(batch, height // down, down, width // across, across, channels).mean((2, 4))


class ConvBlock(nn.Module):
    """Convolution, batch norm and ReLU, `layers` times; height and width stay."""

    features: int
    layers: int
    size: int
    norm: type[nn.Module] | functools.partial
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in range(1, self.layers + 1):
            x = Conv(self.features, self.size, self.dtype, name=f"conv{layer}")(x)
            x = nn.relu(self.norm(name=f"norm{layer}")(x))
        return x


class Encoder(nn.Module):
    """[batch, frames, mels] -> [batch, features].

    Attributes:
      channels: output channels of each block.
      layers: convolutions in a block.
      size: height and width of the kernels.
      pooled: how many blocks, from the first, are followed by pooling.
      features: width of the embedding.
      dtype: of the convolutions and the dense layer; parameters and statistics stay float32.
      axis_name: the device axis over which training synchronises batch statistics.
      remat: whether to compute the inside of each block again in the backward pass rather than keep
        it: less memory, a third more work.
      frozen: how many blocks, from the first, get no gradient in training and keep their running
        statistics; one more than there are freezes the dense layer too.
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
        """Gives float32 [batch, features]; `train` uses the batch's statistics and updates them."""

        def norm_in(block: int) -> functools.partial:
            learns = train and block > self.frozen
            return functools.partial(
                nn.BatchNorm,
                use_running_average=not learns,
                momentum=0.9,
                epsilon=NORM_EPSILON,
                dtype=self.dtype,
                axis_name=self.axis_name if learns else None,
            )

        # Statistics for each mel band, so bands are the channels here, and the width afterwards.
        x = norm_in(1)(dtype=jnp.float32, name="norm0")(spectrogram)[..., None].astype(self.dtype)
        make_block = functools.partial(
            nn.remat(ConvBlock) if self.remat else ConvBlock,
            layers=self.layers,
            size=self.size,
            dtype=self.dtype,
        )
        for block, channels in enumerate(self.channels, 1):
            x = make_block(channels, norm=norm_in(block), name=f"block{block}")(x)
            if block == self.frozen:
                x = jax.lax.stop_gradient(x)
            if block <= self.pooled:
                x = average_pool(x)
        x = x.mean(axis=2)
        x = x.max(axis=1) + x.mean(axis=1)
        x = nn.relu(nn.Dense(self.features, dtype=self.dtype, name="dense")(x))
        if self.frozen > len(self.channels):
            x = jax.lax.stop_gradient(x)
        return x.astype(jnp.float32)


# name: (channels of the blocks, convolutions a block, kernel, pooled blocks, features)
ENCODERS = {
    "cnn6": ((64, 128, 256, 512), 1, 5, 4, 512),
    "cnn10": ((64, 128, 256, 512), 2, 3, 4, 512),
    "cnn14": ((64, 128, 256, 512, 1024, 2048), 2, 3, 5, 2048),
}


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
