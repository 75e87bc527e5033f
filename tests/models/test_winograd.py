"""Winograd's form against the direct convolution in float64, in value and gradients."""

import jax
import numpy as np
import pytest
from scipy import signal

from cryjax.models import conv, winograd


def direct(x, kernel):
    """In float64, by scipy: [batch, height, width, features]."""
    out = np.zeros((*x.shape[:3], kernel.shape[-1]))
    for n, c, f in np.ndindex(len(x), x.shape[-1], kernel.shape[-1]):
        plane, taps = x[n, :, :, c].astype(np.float64), kernel[:, :, c, f].astype(np.float64)
        out[n, :, :, f] += signal.correlate2d(plane, taps, mode="same")
    return out


# Whole maps in a piece; some maps in one; rows of a map, the last piece moved up; odd sides.
@pytest.mark.parametrize("tiles", [1, 6, 1000])
@pytest.mark.parametrize("shape", [(3, 8, 4, 2), (2, 19, 5, 3), (4, 3, 1, 2)])
def test_equals_the_direct_form(shape, tiles, monkeypatch):
    monkeypatch.setattr(winograd, "_TILES", tiles)
    monkeypatch.setattr(winograd, "_NUMBERS", tiles * 4)
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(np.float32)
    kernel = rng.normal(size=(3, 3, shape[-1], 4)).astype(np.float32)
    cotangent = rng.normal(size=(*shape[:3], 4)).astype(np.float32)
    np.testing.assert_allclose(winograd.convolve(x, kernel), direct(x, kernel), atol=3e-5)

    # The gradient is linear in the kernel's place: <gradient, direction> = <cotangent, change>.
    direction = rng.normal(size=kernel.shape).astype(np.float32)
    change = np.vdot(cotangent, direct(x, direction))
    gradient = winograd.kernel_gradient(x, cotangent)
    assert np.vdot(gradient, direction) == pytest.approx(change, rel=1e-4, abs=1e-3)


def test_is_what_a_wide_layer_computes_on_a_cpu():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 33, 40, 32)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 32, 48)).astype(np.float32)
    cotangent = rng.normal(size=(2, 33, 40, 48)).astype(np.float32)
    assert conv._by_winograd(x, kernel)
    ours, pull_ours = jax.vjp(conv.convolve, x, kernel)
    native, pull_native = jax.vjp(conv._convolve_native, x, kernel)
    scale = np.std(native)
    assert np.max(np.abs(ours - native)) < 1e-4 * scale
    for mine, theirs in zip(pull_ours(cotangent), pull_native(cotangent), strict=True):
        assert np.max(np.abs(mine - theirs)) < 1e-4 * np.std(theirs)


def test_bfloat16_is_left_to_the_direct_form():
    x = jax.ShapeDtypeStruct((2, 33, 40, 32), "bfloat16")
    assert not conv._by_winograd(x, jax.ShapeDtypeStruct((3, 3, 32, 48), "bfloat16"))
