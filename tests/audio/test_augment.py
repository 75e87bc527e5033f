"""Properties of each transform, and what the views may and may not depend on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cryjax.audio import augment, frontend

RATE = 8_000
RECIPE = {
    "settings": "small_8k",
    "crop": {"seconds": 0.5, "speed": (0.8, 1.25)},
    "transforms": [
        ("mix", {"snr_decibels": (0.0, 20.0), "probability": 0.5}),
        ("gain", {"decibels": (-6.0, 6.0)}),
        ("add_noise", {"snr_decibels": (5.0, 30.0), "probability": 0.5}),
        ("time_shift", {"most": 0.2}),
        ("equalise", {"decibels": 4.0}),
        ("band_pass", {"low": 0.2, "high": 0.3}),
        ("time_warp", {"most": 0.1}),
        ("frequency_mask", {"count": 2, "most": 0.2}),
        ("time_mask", {"count": 2, "most": 0.2}),
    ],
}


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 0.1


def decibels(ratio):
    return 10 * np.log10(ratio)


def test_crop_is_a_stretch_of_the_clip():
    clip = np.arange(1000, dtype=np.int16)
    starts = set()
    for key in keys(200):
        crop = np.asarray(augment.random_crop(key, clip, 900, 300)) * 32768
        np.testing.assert_array_equal(np.diff(crop), 1)
        assert crop[0] >= 0 and crop[-1] < 900  # never into the padding
        starts.add(int(crop[0]))
    # Uniform over 601 starts: both ends are reached.
    assert min(starts) < 30 and max(starts) > 570


def test_short_clip_is_repeated():
    clip = np.zeros(500, np.int16)
    clip[:7] = np.arange(1, 8)
    crop = np.asarray(augment.random_crop(jax.random.key(3), clip, 7, 100)) * 32768
    np.testing.assert_array_equal(crop[7:], crop[:-7])
    np.testing.assert_array_equal(np.sort(crop[:7]), np.arange(1, 8))


def test_a_crop_may_be_the_last_of_a_clip():
    crops = jax.vmap(lambda key: augment.random_crop(key, jnp.arange(9, dtype=jnp.int16), 9, 8))
    assert set(np.asarray(crops(keys(50)))[:, 0] * 32768) == {0, 1}


def test_a_crop_at_another_speed_is_a_stretch_of_the_clip_too():
    """Between samples by interpolation, never into the padding, and as often fast as slow."""

    @jax.jit
    def crops_of(clip, length):
        crop = lambda key: augment.random_crop(key, clip, length, 300, (0.5, 2.0))  # noqa: E731
        return jax.vmap(crop)(keys(200)) * 32768

    crops = np.asarray(crops_of(np.arange(1000, dtype=np.int16), 900))
    steps = np.diff(crops)
    np.testing.assert_allclose(steps, steps[:, :1].repeat(299, 1), atol=1e-2)
    assert crops.min() >= 0 and crops.max() < 900 and 0.5 <= steps.min() < steps.max() <= 2.01
    assert abs(np.median(np.log(steps[:, 0]))) < 0.12
    short = np.where(np.arange(1000) < 7, 1000, 0).astype(np.int16)
    np.testing.assert_allclose(crops_of(short, 7), 1000, rtol=1e-5)


@pytest.mark.parametrize("speed", [0.75, 1.0, 1.3])
def test_speed_moves_the_pitch(speed):
    time = np.arange(2 * RATE) / RATE
    clip = (np.sin(2 * np.pi * 500 * time) * 20_000).astype(np.int16)
    crop = augment.random_crop(jax.random.key(0), clip, 2 * RATE, RATE, (speed, speed * (1 + 1e-6)))
    spectrum = np.abs(np.fft.rfft(np.asarray(crop) * np.hanning(RATE)))
    assert abs(spectrum.argmax() - 500 * speed) <= 1.0  # bins are 1 Hz wide


def test_gain_range():
    waveform = noise(4000)
    change = [
        decibels(np.mean(np.square(augment.gain(key, waveform, decibels=(-6.0, 3.0))))
                 / np.mean(waveform**2))
        for key in keys(100)
    ]  # fmt: skip
    assert -6.001 < min(change) < -5 and 2 < max(change) < 3.001


def test_noise_ratio():
    waveform = noise(20_000)
    for key in keys(5):
        added = augment.add_noise(key, waveform, snr_decibels=(10.0, 10.0)) - waveform
        ratio = decibels(np.mean(waveform**2) / np.mean(np.square(added)))
        assert abs(ratio - 10) < 0.3
    silent = augment.add_noise(
        jax.random.key(0), np.zeros(100, np.float32), snr_decibels=(0.0, 1.0)
    )
    np.testing.assert_array_equal(silent, 0.0)


def test_mix_ratio_and_partner():
    waveform, background = noise(5000), noise(5000, seed=1) * 7
    added = augment.mix(jax.random.key(0), waveform, background, snr_decibels=(5.0, 5.0)) - waveform
    assert abs(decibels(np.mean(waveform**2) / np.mean(np.square(added))) - 5) < 1e-2

    silence = augment.mix(jax.random.key(0), waveform, 0 * background, snr_decibels=(5.0, 5.0))
    np.testing.assert_array_equal(silence, waveform)

    batch = np.arange(16, dtype=np.float32)[:, None]
    seen = set()
    for seed in range(20):
        partner = batch[augment._background(keys(16, seed)), 0]
        assert np.all(partner != batch[:, 0])  # never itself
        assert np.all(partner // augment.MIX_GROUP == batch[:, 0] // augment.MIX_GROUP)
        seen |= set(zip(batch[:, 0].tolist(), partner.tolist(), strict=True))
    assert len(seen) == 16 * (augment.MIX_GROUP - 1)  # every neighbour is possible


def test_time_shift_rolls():
    waveform = np.arange(100, dtype=np.float32)
    shifts = set()
    for key in keys(100):
        shifted = np.asarray(augment.time_shift(key, waveform, most=0.1))
        shift = int(np.argmin(shifted))
        shift = shift - 100 if shift > 50 else shift
        np.testing.assert_array_equal(shifted, np.roll(waveform, shift))
        shifts.add(shift)
    assert min(shifts) == -10 and max(shifts) == 10


def test_band_pass_leaves_the_middle():
    log_mel = noise(20, 40)
    for key in keys(20):
        change = np.asarray(augment.band_pass(key, log_mel, low=0.25, high=0.25)) - log_mel
        np.testing.assert_allclose(change, np.broadcast_to(change[:1], change.shape), atol=1e-5)
        np.testing.assert_allclose(change[:, 10:30], 0.0, atol=1e-5)
        assert change.max() < 1e-5 and change.min() >= -60.001


def test_band_pass_cuts_both_ends_each_by_itself_and_by_60_decibels_at_most():
    log_mel = noise(1, 40)
    cut = jax.vmap(lambda key: augment.band_pass(key, log_mel, low=0.25, high=0.25, slope=30.0))
    change = np.asarray(cut(keys(100)))[:, 0] - log_mel
    below, above = change[:, :10].sum(axis=1), change[:, 30:].sum(axis=1)
    assert below.min() < -300 and above.min() < -300 and change.min() >= -60.001
    assert abs(np.corrcoef(below, above)[0, 1]) < 0.5


def test_equalise_is_smooth_and_constant_in_time():
    log_mel = noise(20, 41)
    changes = np.stack(
        [np.asarray(augment.equalise(key, log_mel, decibels=5.0)) - log_mel for key in keys(300)]
    )
    np.testing.assert_allclose(changes, changes[:, :1].repeat(20, 1), atol=1e-4)
    knots = changes[:, 0, ::10]
    assert abs(knots.std() - 5.0) < 0.5
    np.testing.assert_allclose(changes[:, 0, 5], (knots[:, 0] + knots[:, 1]) / 2, atol=1e-4)


def test_time_warp_is_monotone_and_keeps_the_ends():
    frames = 100
    ramp = np.broadcast_to(np.arange(frames, dtype=np.float32)[:, None], (frames, 3))
    moved = 0.0
    for key in keys(50):
        warped = np.asarray(augment.time_warp(key, ramp, most=0.2))[:, 0]
        assert np.all(np.diff(warped) > 0)
        np.testing.assert_allclose(warped[[0, -1]], [0, frames - 1], atol=1e-3)
        moved = max(moved, np.abs(warped - ramp[:, 0]).max())
        assert np.abs(warped - ramp[:, 0]).max() <= 0.2 * frames
    assert moved > 0.1 * frames


@pytest.mark.parametrize(
    ("function", "axis"), [(augment.frequency_mask, 1), (augment.time_mask, 0)]
)
def test_masks(function, axis):
    log_mel = noise(60, 40) + 3.0
    shares = []
    for key in keys(100):
        masked = np.asarray(function(key, log_mel, count=2, most=0.25))
        hidden = np.all(masked != log_mel, axis=1 - axis)
        kept = np.take(masked, np.flatnonzero(~hidden), axis)
        np.testing.assert_array_equal(kept, np.take(log_mel, np.flatnonzero(~hidden), axis))
        means = np.broadcast_to(log_mel.mean(axis=0), log_mel.shape)
        np.testing.assert_allclose(
            *(np.take(x, np.flatnonzero(hidden), axis) for x in (masked, means)), rtol=1e-5
        )
        shares.append(hidden.mean())
    assert max(shares) <= 0.5 + 2 / log_mel.shape[axis] and 0.15 < np.mean(shares) < 0.3


@pytest.mark.parametrize(
    ("function", "axis"), [(augment.frequency_mask, 1), (augment.time_mask, 0)]
)
def test_masks_hide_both_ends_alike(function, axis):
    log_mel = jnp.asarray(noise(12, 12))
    masks = jax.jit(jax.vmap(lambda key: function(key, log_mel, count=1, most=0.5)))
    hidden = np.all(np.asarray(masks(keys(4000))) != np.asarray(log_mel), axis=2 - axis).mean(0)
    assert 0.01 < hidden[0] < hidden[5]
    np.testing.assert_allclose(hidden, hidden[::-1], atol=0.03)


def test_a_front_end_that_subtracts_band_means_undoes_what_is_static():
    """And nothing gives it away, masks included; a front end that does not keeps all of it."""
    audio, lengths = batch()
    static = [
        ("gain", {"decibels": (3.0, 6.0)}),
        ("equalise", {"decibels": 6.0}),
        ("band_pass", {"low": 0.1, "high": 0.2}),
    ]
    assert {name for name, _ in static} == set(augment.STATIC)
    masks = [
        ("frequency_mask", {"count": 1, "most": 0.2}),
        ("time_mask", {"count": 1, "most": 0.2}),
    ]
    for normalise, least, most in (("sentence", 0.0, 1e-3), ("none", 3.0, np.inf)):
        settings = dataclasses.replace(frontend.PRESETS["small_8k"], normalise=normalise)
        with_them, without = (
            augment.view(
                keys(len(audio)), audio, lengths,
                settings=settings, crop={"seconds": 0.5},
                # A transform's randomness follows from its place.
                transforms=[(name, {"probability": share} | how) for name, how in static] + masks,
            )
            for share in (1.0, 0.0)
        )  # fmt: skip
        change = float(np.sqrt(np.mean(np.square(with_them - without))))
        assert least <= change <= most, (normalise, change)


def batch(size=8):
    rng = np.random.default_rng(0)
    return (
        rng.integers(-9000, 9000, (size, RATE)).astype(np.int16),
        rng.integers(RATE // 4, RATE, size).astype(np.int32),
    )


@functools.cache
def compiled():
    return jax.jit(functools.partial(augment.two_views, **RECIPE))


def test_views_differ_and_repeat():
    audio, lengths = batch()
    first, second = compiled()(jax.random.key(0), audio, lengths, 0)
    assert first.shape == second.shape == (8, 51, 40)
    assert np.all(np.isfinite(first)) and not np.allclose(first, second)
    again, _ = compiled()(jax.random.key(0), audio, lengths, 0)
    np.testing.assert_array_equal(first, again)
    other, _ = compiled()(jax.random.key(1), audio, lengths, 0)
    assert not np.allclose(first, other)


def test_views_do_not_depend_on_how_the_batch_is_divided():
    audio, lengths = batch()
    whole = compiled()(jax.random.key(0), audio, lengths, 0)
    for start in (0, 4):
        part = compiled()(
            jax.random.key(0), audio[start : start + 4], lengths[start : start + 4], start
        )
        for mine, theirs in zip(part, whole, strict=True):
            np.testing.assert_allclose(mine, theirs[start : start + 4], atol=1e-3)


def test_probability_leaves_the_rest_alone():
    x = jnp.asarray(noise(400, 50))
    changed = augment._apply(
        "gain", 1, {"decibels": (-6.0, -5.0), "probability": 0.3}, keys(400), x
    )
    share = np.mean(np.any(np.asarray(changed != x), axis=1))
    assert 0.22 < share < 0.38


def test_whether_and_how_an_example_is_changed_are_drawn_apart_and_anew_in_each_place():
    x = jnp.ones((400, 2))
    how = {"decibels": (-6.0, 6.0), "probability": 0.5}
    first, second = (
        np.asarray(augment._apply("gain", place, how, keys(400), x))[:, 0] for place in (1, 2)
    )
    assert abs(np.mean(20 * np.log10(first[first != 1]))) < 1.0
    both = (first != 1) & (second != 1)
    assert 60 < both.sum() < 140 and not np.any(first[both] == second[both])


def test_what_is_mixed_in_is_another_of_the_batch():
    x = jnp.eye(8)
    mix = jax.jit(lambda x: augment._apply("mix", 1, {"snr_decibels": (0.0, 0.0)}, keys(8), x))
    mixed = np.asarray(mix(x))
    np.testing.assert_array_equal((mixed > 0.5).sum(axis=1), 2)


def test_mixup_mixes_targets_as_it_mixes_clips():
    """One-hot clips show how much of which went into each."""
    count = 16
    x = np.eye(count, dtype=np.float32)[:, None, :]
    mixed, targets = augment.mixup(keys(count), x, np.eye(count, dtype=np.float32), 0.4)
    np.testing.assert_allclose(mixed[:, 0], targets, atol=1e-6)
    np.testing.assert_allclose(targets.sum(axis=1), 1.0, atol=1e-6)
    group = np.arange(count) // augment.MIX_GROUP
    assert not np.any(np.asarray(targets)[group[:, None] != group[None]])
    shares = np.diag(targets)
    assert 0 <= shares.min() < 0.3 and 0.7 < shares.max() <= 1


def test_mixup_draws_its_share_from_a_beta_distribution():
    count = 4000
    x = np.zeros((count, 1, 1), np.float32)
    _, targets = augment.mixup(
        keys(count), x, np.tile(np.eye(4, dtype=np.float32), (count // 4, 1)), 2.0
    )
    share = np.asarray(targets)[np.arange(count), np.arange(count) % 4]
    assert share.mean() == pytest.approx(0.5, abs=0.02)
    assert share.var() == pytest.approx(1 / 20, abs=0.005)  # of Beta(2, 2)
