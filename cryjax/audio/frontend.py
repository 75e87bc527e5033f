"""The log-mel front end: waveform in, log-mel spectrogram out, under jit.

For any settings, a waveform of `samples` gives `1 + samples // hop_length` frames.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import librosa
import numpy as np


@dataclasses.dataclass(frozen=True)
class FrontEnd:
    """Settings of the front end, saved with each checkpoint so that it is used at its own rate.

    Attributes:
      sample_rate: in hertz.
      window_length: samples in the analysis window, which is also the transform's length.
      hop_length: samples between the centres of consecutive frames.
      mels: number of mel bands.
      lowest_hz: lower edge of the lowest band.
      highest_hz: upper edge of the highest band; at most half the sample rate.
      window: any name that `scipy.signal.get_window` knows.
      padding: how half a window is padded at either end: 'reflect', or 'constant' (zeros).
      htk: HTK's mel scale and unit-height filters, instead of Slaney's scale and unit-area filters.
      normalise: 'none', or 'sentence': subtract each band's mean over the frames of the waveform.
    """

    sample_rate: int
    window_length: int
    hop_length: int
    mels: int
    lowest_hz: float
    highest_hz: float
    window: str = "hann"
    padding: str = "reflect"
    htk: bool = False
    normalise: str = "none"

    def __post_init__(self) -> None:
        if not 0 <= self.lowest_hz < self.highest_hz <= self.sample_rate / 2:
            raise ValueError(
                f"front_end: bands from {self.lowest_hz} to {self.highest_hz} Hz; take "
                f"0 <= lowest_hz < highest_hz <= half of {self.sample_rate} Hz"
            )
        if self.padding not in ("reflect", "constant"):
            raise ValueError(f"front_end.padding={self.padding!r}: take 'reflect' or 'constant'")
        if self.normalise not in ("none", "sentence"):
            raise ValueError(f"front_end.normalise={self.normalise!r}: take 'none' or 'sentence'")
        if not 0 < self.hop_length <= self.window_length:
            raise ValueError(
                f"front_end.hop_length={self.hop_length}: take 1 to {self.window_length}"
            )

    def frames(self, samples: int) -> int:
        """Number of frames for `samples`."""
        return 1 + samples // self.hop_length

    @property
    def ends(self) -> tuple[int, int]:
        """Samples padded before and after a waveform: half a window each, rounded up after."""
        return self.window_length // 2, self.window_length - self.window_length // 2

    @property
    def hop_seconds(self) -> float:
        return self.hop_length / self.sample_rate


PRESETS: dict[str, FrontEnd] = {
    # PANNs (Kong et al., 2020): Cnn14 at 32 kHz and Cnn14_16k.
    "panns_32k": FrontEnd(32_000, 1024, 320, 64, 50.0, 14_000.0),
    "panns_16k": FrontEnd(16_000, 512, 160, 64, 50.0, 8_000.0),
    # zhepeiw/cssl_sound, with SpeechBrain's Fbank: 25 ms window, 10 ms hop, 80 bands, mean
    # normalisation.
    "cssl_sound": FrontEnd(
        16_000, 400, 160, 80, 0.0, 8_000.0, "hamming", "constant", htk=True, normalise="sentence"
    ),
    # For telephone-band recordings and small machines: 32 ms window, 10 ms hop.
    "small_8k": FrontEnd(8_000, 256, 80, 40, 60.0, 4_000.0, normalise="sentence"),
}

LEAST_POWER = 1e-10
# Tuned on a CPU: samples in the frames of one group, and how many groups at once.
_CACHED, _AT_ONCE = 430_000, 4
# Windows of at least this many samples are sliced from a padded clip, shorter ones gathered.
_CUT = 1024


def resolve(settings: str | FrontEnd) -> FrontEnd:
    """A preset by its name, or the settings themselves. Raises ValueError for an unknown name."""
    if isinstance(settings, FrontEnd):
        return settings
    if settings not in PRESETS:
        raise ValueError(f"front_end={settings!r}: take one of {', '.join(sorted(PRESETS))}")
    return PRESETS[settings]


@functools.lru_cache(maxsize=16)
def _window(settings: FrontEnd) -> np.ndarray:
    """[window_length]; periodic, as the transform needs it."""
    return librosa.filters.get_window(settings.window, settings.window_length).astype(np.float32)


@functools.lru_cache(maxsize=16)
def mel_filters(settings: FrontEnd) -> np.ndarray:
    """[bins, mels], bins = 1 + window_length // 2."""
    return librosa.filters.mel(
        sr=settings.sample_rate,
        n_fft=settings.window_length,
        n_mels=settings.mels,
        fmin=settings.lowest_hz,
        fmax=settings.highest_hz,
        htk=settings.htk,
        norm=None if settings.htk else "slaney",
    ).T.astype(np.float32)


@functools.lru_cache(maxsize=16)
def windowed_fourier_basis(settings: FrontEnd) -> np.ndarray:
    """[window_length, 2 * bins]: the window times cosines, then sines."""
    length = settings.window_length
    # float64 until the cast.
    angle = 2 * np.pi * np.outer(np.arange(length), np.arange(length // 2 + 1)) / length
    basis = np.concatenate([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    return basis * _window(settings)[:, None]


def _padding(samples: int, settings: FrontEnd) -> str:
    """How the ends of this many samples are padded: too few cannot be reflected."""
    return settings.padding if samples > max(settings.ends) else "constant"


def _frame(waveform: jax.Array, settings: FrontEnd) -> jax.Array:
    """[batch, samples] -> [batch, frames, window_length].

    Hop-sized pieces side by side: slices and one concatenation, cheap on any accelerator.
    """
    window, hop = settings.window_length, settings.hop_length
    batch, samples = waveform.shape
    frames = settings.frames(samples)
    pieces = -(-window // hop)
    padded = jnp.pad(waveform, ((0, 0), settings.ends), mode=_padding(samples, settings))
    # By the most it can need, as an exported program leaves the number of samples open.
    padded = jnp.pad(padded, ((0, 0), (0, pieces * hop)))
    padded = jax.lax.slice_in_dim(padded, 0, (frames + pieces - 1) * hop, axis=1)
    chunks = padded.reshape(batch, frames + pieces - 1, hop)
    framed = jnp.concatenate([chunks[:, k : k + frames] for k in range(pieces)], axis=-1)
    return framed[..., :window]


def _power(real: jax.Array, imaginary: jax.Array) -> jax.Array:
    return jnp.square(real) + jnp.square(imaginary)


def _mel_power(waveform: jax.Array, settings: FrontEnd) -> jax.Array:
    frames = _frame(to_float(waveform), settings) * _window(settings)[None, None]
    spectrum = jnp.fft.rfft(frames)
    power = _power(spectrum.real, spectrum.imag)
    return jnp.matmul(power, mel_filters(settings), precision="highest")


def _mel_power_on_tpu(waveform: jax.Array, settings: FrontEnd) -> jax.Array:
    """By matrix products, which a TPU does far faster than transforms."""
    basis = windowed_fourier_basis(settings)
    parts = jnp.matmul(_frame(to_float(waveform), settings), basis, precision="highest")
    power = _power(*jnp.split(parts, 2, axis=-1))
    return jnp.matmul(power, mel_filters(settings), precision="highest")


def _mel_power_on_cpu(waveform: jax.Array, settings: FrontEnd) -> jax.Array:
    """A few clips at a time, so that frames and spectra stay in the cache.

    Inside a loop XLA runs the transform on one core, so an iteration takes several independent
    groups of clips, each for a free core.

    Frames are gathered, padding included, which XLA fuses with the window; for long ones, padding
    first pays off. Filters are narrow: each half of them needs only part of the bins, the lower
    half few.
    """
    samples = waveform.shape[-1]
    frames, window = settings.frames(samples), settings.window_length
    first = settings.hop_length * jnp.arange(frames)  # in the padded clip
    before, after = settings.ends
    place = first[:, None] + jnp.arange(-before, after)[None, :]
    padding = _padding(samples, settings)
    if padding == "reflect":
        place = samples - 1 - jnp.abs(samples - 1 - jnp.abs(place))
    beyond = "promise_in_bounds" if padding == "reflect" else "fill"
    halves = np.array_split(mel_filters(settings), min(2, settings.mels), axis=1)

    def frame(clip: jax.Array) -> jax.Array:
        if window < _CUT:
            return clip.at[place].get(mode=beyond, fill_value=0, wrap_negative_indices=False)
        padded = jnp.pad(clip, settings.ends, mode=padding)
        return jax.vmap(lambda begin: jax.lax.dynamic_slice_in_dim(padded, begin, window))(first)

    def of_clip(clip: jax.Array) -> jax.Array:
        spectrum = jnp.fft.rfft(to_float(frame(clip)) * _window(settings)[None, :])
        bands = []
        for half in halves:
            used = np.flatnonzero(half.any(axis=1))
            bins = slice(used.min(initial=len(half)), used.max(initial=0) + 1)
            power = _power(spectrum.real[:, bins], spectrum.imag[:, bins])
            bands.append(jnp.matmul(power, half[bins], precision="highest"))
        return jnp.concatenate(bands, axis=-1)

    def of_groups(clips: jax.Array) -> jax.Array:
        return jnp.concatenate([jax.vmap(of_clip)(group) for group in jnp.split(clips, _AT_ONCE)])

    # An exported program leaves the shape open and takes clips one by one.
    if not all(isinstance(size, int) for size in waveform.shape):
        return jax.lax.map(of_clip, waveform)
    together = _AT_ONCE * max(1, _CACHED // (frames * window))
    turns = len(waveform) // together
    found = []
    if turns:
        looped = waveform[: turns * together].reshape(turns, together, samples)
        looped = jax.lax.map(of_groups, looped)
        found.append(looped.reshape(turns * together, frames, settings.mels))
    if turns * together < len(waveform):
        found.append(jax.vmap(of_clip)(waveform[turns * together :]))
    return jnp.concatenate(found)


def mel_power(waveform: jax.Array, settings: str | FrontEnd) -> jax.Array:
    """Mel power spectrogram, same as `librosa.feature.melspectrogram(power=2, center=True)`.

    Args:
      waveform: [batch, samples] in [-1, 1], or int16, at the settings' sample rate.
      settings: a preset's name or `FrontEnd`.

    Returns:
      float32 [batch, 1 + samples // hop_length, mels], at least 0.
    """
    forms = {"tpu": _mel_power_on_tpu, "cpu": _mel_power_on_cpu, "default": _mel_power}
    by_platform = {
        name: functools.partial(form, settings=resolve(settings)) for name, form in forms.items()
    }
    return jax.lax.platform_dependent(waveform, **by_platform)


def decibels(power: jax.Array) -> jax.Array:
    """10 log10 of a power, floored at -100 dB (as PANNs' `LogmelFilterBank` does)."""
    return 10.0 * jnp.log10(jnp.maximum(power, LEAST_POWER))


def normalise(log_mel_spectrogram: jax.Array, settings: str | FrontEnd) -> jax.Array:
    """[batch, frames, mels] -> the same shape, normalised as the settings say."""
    if resolve(settings).normalise == "none":
        return log_mel_spectrogram
    return log_mel_spectrogram - jnp.mean(log_mel_spectrogram, axis=1, keepdims=True)


def log_mel(waveform: jax.Array, settings: str | FrontEnd) -> jax.Array:
    """Log-mel spectrogram in decibels, normalised as the settings say.

    Args:
      waveform: [batch, samples] in [-1, 1], or int16, at the settings' sample rate.
      settings: a preset's name or `FrontEnd`.

    Returns:
      float32 [batch, frames, mels], frames = 1 + samples // hop_length.
    """
    return normalise(decibels(mel_power(waveform, settings)), settings)


def to_float(audio: jax.Array) -> jax.Array:
    """int16 samples -> float32 in [-1, 1); floats pass through. Audio stays int16 until here."""
    if audio.dtype == jnp.int16:
        return audio.astype(jnp.float32) / 32768.0
    return audio.astype(jnp.float32)
