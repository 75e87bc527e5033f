"""The front end against librosa, and its shape law."""

import dataclasses
import functools

import jax
import librosa
import numpy as np
import pytest

from cryjax.audio import frontend


def librosa_mel_power(waveform: np.ndarray, settings: frontend.FrontEnd) -> np.ndarray:
    power = librosa.feature.melspectrogram(
        y=waveform.astype(np.float64),
        sr=settings.sample_rate,
        n_fft=settings.window_length,
        hop_length=settings.hop_length,
        window=settings.window,
        pad_mode=settings.padding,
        n_mels=settings.mels,
        fmin=settings.lowest_hz,
        fmax=settings.highest_hz,
        htk=settings.htk,
        norm=None if settings.htk else "slaney",
    )
    return np.swapaxes(power, -1, -2)


@pytest.mark.parametrize("preset", frontend.PRESETS)
@pytest.mark.parametrize("seconds", [0.5, 1.237])
def test_equals_librosa(preset, seconds):
    settings = frontend.PRESETS[preset]
    rng = np.random.default_rng(0)
    samples = round(seconds * settings.sample_rate)
    time = np.arange(samples) / settings.sample_rate
    noise = rng.normal(size=(2, samples)) * 0.01
    waveform = (np.sin(2 * np.pi * 440 * time) * 0.3 + noise).astype(np.float32)
    expected = librosa_mel_power(waveform, settings)

    power = jax.jit(functools.partial(frontend.mel_power, settings=preset))(waveform)
    np.testing.assert_allclose(power, expected, rtol=2e-4, atol=1e-7 * expected.max())

    log = 10 * np.log10(np.maximum(expected, 1e-10))
    if settings.normalise == "sentence":
        log -= log.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(frontend.log_mel(waveform, preset), log, atol=2e-3)


@pytest.mark.parametrize("preset", frontend.PRESETS)
def test_shape_law(preset):
    settings = frontend.PRESETS[preset]
    hop = settings.hop_length
    for samples in (1, hop - 1, hop, settings.window_length // 2, 7 * hop + 3):
        shape = jax.eval_shape(
            functools.partial(frontend.log_mel, settings=settings),
            jax.ShapeDtypeStruct((3, samples), np.float32),
        ).shape
        assert shape == (3, 1 + samples // hop, settings.mels)
        assert settings.frames(samples) == shape[1]


@pytest.mark.parametrize("form", ["_mel_power", "_mel_power_on_cpu", "_mel_power_on_tpu"])
@pytest.mark.parametrize("preset", frontend.PRESETS)
@pytest.mark.filterwarnings("ignore:n_fft=")  # librosa, of the short one
def test_platforms_do_not_differ(form, preset):
    """27 clips, of which the CPU's form leaves a rest, and one too short to reflect."""
    settings = frontend.PRESETS[preset]
    rng = np.random.default_rng(0)
    for clips, samples in ((27, 2 * settings.sample_rate), (1, settings.window_length // 2)):
        audio = rng.integers(-9000, 9000, (clips, samples), np.int16)
        power = jax.jit(functools.partial(getattr(frontend, form), settings=settings))(audio)
        padding = settings.padding if samples > settings.window_length // 2 else "constant"
        expected = librosa_mel_power(audio / 32768, dataclasses.replace(settings, padding=padding))
        np.testing.assert_allclose(power, expected, rtol=1e-3, atol=1e-6 * expected.max())


@pytest.mark.parametrize("form", ["_mel_power", "_mel_power_on_cpu", "_mel_power_on_tpu"])
@pytest.mark.parametrize("padding", ["reflect", "constant"])
@pytest.mark.parametrize("samples", [200, 201, 202, 402, 1005])
def test_odd_windows(form, padding, samples):
    """Padded by one more at the end, which some clips need: hops divide them."""
    settings = frontend.FrontEnd(8_000, 401, 67, 20, 50.0, 4_000.0, padding=padding)
    waveform = np.random.default_rng(0).normal(size=(2, samples)).astype(np.float32)
    power = jax.jit(functools.partial(getattr(frontend, form), settings=settings))(waveform)
    mode = padding if samples > 201 else "constant"
    padded = np.pad(waveform.astype(float), ((0, 0), (200, 201)), mode=mode)
    frames = np.lib.stride_tricks.sliding_window_view(padded, 401, axis=-1)[:, ::67]
    window = librosa.filters.get_window("hann", 401)
    expected = np.abs(np.fft.rfft(frames * window)) ** 2 @ frontend.mel_filters(settings)
    np.testing.assert_allclose(power, expected, rtol=1e-3, atol=1e-6 * expected.max())


def test_one_band():
    settings = dataclasses.replace(frontend.PRESETS["small_8k"], mels=1)
    waveform = np.random.default_rng(0).normal(size=(2, 2000)).astype(np.float32)
    expected = librosa_mel_power(waveform, settings)
    np.testing.assert_allclose(frontend.mel_power(waveform, settings), expected, rtol=1e-4)


def test_int16_is_scaled_exactly():
    audio = np.array([-32768, -1, 0, 1, 32767], np.int16)
    np.testing.assert_array_equal(frontend.to_float(audio), audio / np.float32(32768))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"highest_hz": 9_000.0}, "9000"),
        ({"padding": "wrap"}, "padding"),
        ({"normalise": "yes"}, "normalise"),
        ({"hop_length": 0}, "hop_length"),
    ],
)
def test_impossible_settings_are_named(change, named):
    good = {"sample_rate": 16_000, "window_length": 400, "hop_length": 160, "mels": 64}
    good |= {"lowest_hz": 50.0, "highest_hz": 8_000.0}
    frontend.FrontEnd(**good)
    with pytest.raises(ValueError, match=named):
        frontend.FrontEnd(**good | change)


def test_unknown_preset_lists_the_known():
    with pytest.raises(ValueError, match="cssl_sound"):
        frontend.resolve("cssl")
