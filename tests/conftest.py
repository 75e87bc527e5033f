"""Guard rails for every test: a silent rank promotion or a NaN is an error."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest


@pytest.fixture(autouse=True)
def guard_rails():
    with jax.numpy_rank_promotion("raise"), jax.debug_nans(True):
        yield
