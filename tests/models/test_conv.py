"""The CPU's form of the convolution against XLA's own, in value and gradients."""

import jax
import numpy as np
import pytest

from cryjax.models import conv


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("shape", [(2, 7, 6, 3), (1, 1, 4, 5), (3, 8, 1, 2)])
def test_equals_native_convolution(size, shape):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(np.float32)
    kernel = rng.normal(size=(size, size, shape[-1], 4)).astype(np.float32)
    cotangent = rng.normal(size=(*shape[:3], 4)).astype(np.float32)

    ours, pull_ours = jax.vjp(conv.convolve, x, kernel)
    native, pull_native = jax.vjp(conv._convolve_native, x, kernel)
    np.testing.assert_allclose(ours, native, atol=2e-5)
    for mine, theirs in zip(pull_ours(cotangent), pull_native(cotangent), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)


def test_the_platform_is_chosen_at_lowering():
    x = jax.ShapeDtypeStruct((1, 8, 8, 2), np.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 2, 2), np.float32)
    traced = jax.jit(jax.grad(lambda x, k: conv.convolve(x, k).sum(), argnums=(0, 1))).trace(
        x, kernel
    )
    assert "convolution" not in traced.lower(lowering_platforms=("cpu",)).as_text()
    for platform in ("tpu", "cuda"):
        assert "convolution" in traced.lower(lowering_platforms=(platform,)).as_text()
