"""Random views of a waveform, under jit: one function per transform, composed as the config lists.

Every transform is written for one example and takes its key first; `view` maps them over a batch.
Each example's key is folded with its place in the global batch, and each transform's with the
transform's place in the list, so that views depend neither on the devices nor on each other.

There are two kinds: those in `WAVEFORM` take [samples], those in `SPECTROGRAM` take [frames, mels]
in decibels. A filter multiplies the spectrum, so on a log-mel spectrogram it is an addition: exact
as far as the filter is smooth across one mel band, and far cheaper than a second transform of the
waveform.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cryjax.audio import frontend

Range = tuple[float, float]


def _uniform(key: jax.Array, limits: Range) -> jax.Array:
    return jax.random.uniform(key, (), minval=limits[0], maxval=limits[1])


def _amplitude(decibels: jax.Array) -> jax.Array:
    return 10.0 ** (decibels / 20.0)


def _power(x: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(x))


def random_crop(
    key: jax.Array, clip: jax.Array, length: jax.Array, samples: int, speed: Range = (1.0, 1.0)
) -> jax.Array:
    """A random crop of a clip, played at a random speed.

    A clip shorter than the crop is repeated to fill it. The speed is log-uniform and changes pitch
    and tempo together, by linear interpolation between samples.

    Args:
      key: this example's key.
      clip: [clip samples], any dtype; padded after `length`.
      length: int scalar, the true number of samples, at least 1.
      samples: of the result.
      speed: lowest and highest; 1 means unchanged.

    Returns:
      float32 [samples] in [-1, 1].
    """
    start_key, speed_key = jax.random.split(key)
    start = jax.random.uniform(start_key)
    if speed == (1.0, 1.0):
        first = jnp.floor(start * jnp.maximum(length - samples + 1, 1)).astype(jnp.int32)
        first = jnp.where(length < samples, (start * length).astype(jnp.int32), first)
        return frontend.to_float(clip[(first + jnp.arange(samples)) % length])
    rate = jnp.exp(_uniform(speed_key, (math.log(speed[0]), math.log(speed[1]))))
    span = samples * rate
    room = jnp.where(length < span, length, length - span)
    # Whole samples and fraction apart: float32 does not resolve large positions.
    first = jnp.floor(start * room).astype(jnp.int32)
    offset = jnp.arange(samples) * rate
    whole = jnp.floor(offset).astype(jnp.int32)
    fraction = offset - whole
    left = frontend.to_float(clip[(first + whole) % length])
    right = frontend.to_float(clip[(first + whole + 1) % length])
    return left + fraction * (right - left)


def gain(key: jax.Array, waveform: jax.Array, *, decibels: Range) -> jax.Array:
    """Changes the level by a uniform number of decibels."""
    return waveform * _amplitude(_uniform(key, decibels))


def add_noise(key: jax.Array, waveform: jax.Array, *, snr_decibels: Range) -> jax.Array:
    """Adds white Gaussian noise at a uniform signal-to-noise ratio in decibels."""
    level_key, noise_key = jax.random.split(key)
    scale = jnp.sqrt(_power(waveform)) / _amplitude(_uniform(level_key, snr_decibels))
    return waveform + scale * jax.random.normal(noise_key, waveform.shape)


def mix(
    key: jax.Array, waveform: jax.Array, background: jax.Array, *, snr_decibels: Range
) -> jax.Array:
    """Adds another clip as background, at a uniform power ratio in decibels."""
    ratio = _amplitude(_uniform(key, snr_decibels))
    scale = jnp.sqrt(_power(waveform) / jnp.maximum(_power(background), 1e-10)) / ratio
    return waveform + scale * background


def time_shift(key: jax.Array, waveform: jax.Array, *, most: float) -> jax.Array:
    """Rolls the waveform by up to `most` of its length, in either direction."""
    samples = waveform.shape[0]
    shift = jnp.round(_uniform(key, (-most, most)) * samples).astype(jnp.int32)
    return waveform[(jnp.arange(samples) - shift) % samples]


def band_pass(
    key: jax.Array, log_mel: jax.Array, *, low: float, high: float, slope: float = 6.0
) -> jax.Array:
    """A band-limited channel: attenuates bands below one random edge and above another.

    Args:
      low: the lower edge lies within this share of the bands, from the bottom.
      high: the upper edge lies within this share, from the top.
      slope: decibels per band beyond an edge, up to 60 dB in all.
    """
    mels = log_mel.shape[-1]
    low_key, high_key = jax.random.split(key)
    band = jnp.arange(mels)
    lower = _uniform(low_key, (0.0, low)) * mels
    upper = (1.0 - _uniform(high_key, (0.0, high))) * mels
    beyond = jnp.maximum(lower - band, 0.0) + jnp.maximum(band - (upper - 1.0), 0.0)
    return log_mel - jnp.minimum(slope * beyond, 60.0)[None, :]


def equalise(key: jax.Array, log_mel: jax.Array, *, decibels: float, knots: int = 5) -> jax.Array:
    """A smooth random filter: linear between `knots` Gaussian gains spread over the bands.

    Args:
      decibels: standard deviation of a knot's gain.
    """
    mels = log_mel.shape[-1]
    gains = decibels * jax.random.normal(key, (knots,))
    curve = jnp.interp(jnp.linspace(0.0, knots - 1.0, mels), jnp.arange(knots), gains)
    return log_mel + curve[None, :]


def time_warp(key: jax.Array, log_mel: jax.Array, *, most: float) -> jax.Array:
    """SpecAugment's time warp (Park et al., 2019): moves a random frame and stretches the rest.

    Args:
      most: how far the frame may move either way, as a share of the frames; under 0.5.
    """
    frames = log_mel.shape[0]
    place_key, move_key = jax.random.split(key)
    last = frames - 1.0
    target = _uniform(place_key, (most, 1.0 - most)) * last
    source = target + _uniform(move_key, (-most, most)) * last
    position = jnp.interp(
        jnp.arange(frames), jnp.stack([0.0, target, last]), jnp.stack([0.0, source, last])
    )
    left = jnp.clip(jnp.floor(position).astype(jnp.int32), 0, max(frames - 2, 0))
    fraction = (position - left)[:, None]
    right = jnp.minimum(left + 1, frames - 1)
    return (1.0 - fraction) * log_mel[left] + fraction * log_mel[right]


def _mask(key: jax.Array, log_mel: jax.Array, axis: int, count: int, most: float) -> jax.Array:
    """Replaces `count` random stretches of an axis with the mean of each band.

    One mean for all bands would show, beside a filter's output or an unnormalised spectrogram.
    """
    size = log_mel.shape[axis]
    width_key, start_key = jax.random.split(key)
    width = jax.random.uniform(width_key, (count, 1)) * most * size
    start = jax.random.uniform(start_key, (count, 1)) * (size - width)
    middle = jnp.arange(size)[None, :] + 0.5
    hidden = jnp.any((middle >= start) & (middle < start + width), axis=0)
    mean = jnp.mean(log_mel, axis=0, keepdims=True)
    return jnp.where(jnp.expand_dims(hidden, 1 - axis), mean, log_mel)


def frequency_mask(key: jax.Array, log_mel: jax.Array, *, count: int, most: float) -> jax.Array:
    """SpecAugment's frequency masks: `count` of them, each up to `most` of the bands."""
    return _mask(key, log_mel, 1, count, most)


def time_mask(key: jax.Array, log_mel: jax.Array, *, count: int, most: float) -> jax.Array:
    """SpecAugment's time masks: `count` of them, each up to `most` of the frames."""
    return _mask(key, log_mel, 0, count, most)


WAVEFORM: dict[str, Callable] = {
    "mix": mix,
    "gain": gain,
    "add_noise": add_noise,
    "time_shift": time_shift,
}
SPECTROGRAM: dict[str, Callable] = {
    "equalise": equalise,
    "band_pass": band_pass,
    "time_warp": time_warp,
    "frequency_mask": frequency_mask,
    "time_mask": time_mask,
}
# What these add to each band is the same in all frames: they have no effect if the front end
# subtracts the mean of each band.
STATIC = ("gain", "equalise", "band_pass")
# A background clip comes from a group of this many neighbours in the global batch. They lie on one
# device if its share of the batch is a multiple of this, so mixing moves no audio between devices,
# and the choice is the same on any number of them. (The loader shuffles: neighbours are random.)
MIX_GROUP = 4


def _background(keys: jax.Array) -> jax.Array:
    """[batch] keys -> int [batch]: for each, the place of another in its group of `MIX_GROUP`."""
    place = jnp.arange(keys.shape[0])
    step = jax.vmap(lambda key: jax.random.randint(key, (), 1, MIX_GROUP))(keys)
    return place // MIX_GROUP * MIX_GROUP + (place + step) % MIX_GROUP


def _apply(
    name: str, place: int, arguments: Mapping[str, Any], keys: jax.Array, x: jax.Array
) -> jax.Array:
    """One transform over a batch; each example has its own key and may be left alone."""
    keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, place), 3))(keys)
    arguments = dict(arguments)
    probability = arguments.pop("probability", 1.0)
    extra = (x[_background(keys[:, 1])],) if name == "mix" else ()
    function = (WAVEFORM | SPECTROGRAM)[name]
    changed = jax.vmap(lambda key, *values: function(key, *values, **arguments))(
        keys[:, 0], x, *extra
    )
    if probability >= 1.0:
        return changed
    chosen = jax.vmap(jax.random.uniform)(keys[:, 2]) < probability
    return jnp.where(jnp.expand_dims(chosen, range(1, x.ndim)), changed, x)


def view(
    keys: jax.Array,
    audio: jax.Array,
    lengths: jax.Array,
    *,
    settings: str | frontend.FrontEnd,
    crop: Mapping[str, Any],
    transforms: Sequence[tuple[str, Mapping[str, Any]]],
) -> jax.Array:
    """One random view of each clip of a batch, as the encoder takes it.

    Args:
      keys: [batch] keys, one per example.
      audio: int16 or float [batch, clip samples], each clip padded after its length.
      lengths: int [batch], true samples of each clip, at least 1.
      settings: front-end settings.
      crop: 'seconds' and optionally 'speed', for `random_crop`.
      transforms: (name, arguments) in order of application, waveforms' before spectrograms';
        'probability' among the arguments applies it to that share of the examples.

    Returns:
      float32 [batch, frames, mels] in decibels, normalised as the front end says.
    """
    settings = frontend.resolve(settings)
    samples = round(crop["seconds"] * settings.sample_rate)
    crop_keys = jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys)
    slowest, fastest = crop.get("speed", (1.0, 1.0))
    x = jax.vmap(
        lambda key, clip, length: random_crop(key, clip, length, samples, (slowest, fastest))
    )(crop_keys, audio, lengths)
    for place, (name, arguments) in enumerate(transforms, 1):
        if name in WAVEFORM:
            x = _apply(name, place, arguments, keys, x)
    # Normalised before the spectrogram transforms too, which see what an encoder sees.
    x = frontend.log_mel(x, settings)
    for place, (name, arguments) in enumerate(transforms, 1):
        if name in SPECTROGRAM:
            x = _apply(name, place, arguments, keys, x)
    return frontend.normalise(x, settings)


def two_views(
    key: jax.Array, audio: jax.Array, lengths: jax.Array, start: jax.Array | int = 0, **recipe: Any
) -> tuple[jax.Array, jax.Array]:
    """Two independent views of each clip, [batch, frames, mels] each.

    Args:
      key: this step's key.
      audio: int16 [batch, clip samples].
      lengths: int [batch].
      start: place of the first clip in the global batch.
      **recipe: 'settings', 'crop' and 'transforms' of `view`.
    """
    batch = audio.shape[0]
    places = start + jnp.arange(batch)
    keys = jax.vmap(lambda place: jax.random.split(jax.random.fold_in(key, place), 2))(places)
    # As one batch of twice the size: half the program to compile.
    both = view(
        jnp.concatenate([keys[:, 0], keys[:, 1]]),
        jnp.concatenate([audio, audio]),
        jnp.concatenate([lengths, lengths]),
        **recipe,
    )
    return both[:batch], both[batch:]


def mixup(
    keys: jax.Array, x: jax.Array, targets: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Mixes each example, and its target, with another of its group (Zhang et al., 2018).

    Args:
      keys: [batch].
      x: [batch, frames, mels], batch a multiple of `MIX_GROUP`.
      targets: float [batch, classes].
      alpha: an example's own share is drawn from Beta(alpha, alpha).

    Returns:
      The mixed `x` and `targets`.
    """
    keys = jax.vmap(jax.random.split)(keys)
    share = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys[:, 0])[:, None]
    others = _background(keys[:, 1])
    mixed = share[..., None] * x + (1.0 - share[..., None]) * x[others]
    return mixed, share * targets + (1.0 - share) * targets[others]
