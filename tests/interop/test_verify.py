"""An export that says something else than the run is not let through."""

import jax
import numpy as np
import pytest

import lively
from cryjax.command.errors import UserError
from cryjax.interop import verify


def test_differences_are_shares_of_the_largest_value():
    wanted = {"noise/embedding": np.array([[1.0, -4.0]]), "noise/probabilities": np.zeros((1, 2))}
    found = {"noise/embedding": np.array([[1.5, -4.0]]), "noise/probabilities": np.zeros((1, 2))}
    assert verify.differences(wanted, found) == {
        "noise/embedding": 0.125,
        "noise/probabilities": 0.0,
    }
    found["noise/probabilities"][0, 1] = np.nan
    assert verify.differences(wanted, found)["noise/probabilities"] == np.inf
    with pytest.raises(UserError, match="has the outputs"):
        verify.differences(wanted, {"noise/embedding": np.zeros((1, 2))})


def test_a_process_that_fails_or_hangs_is_told(monkeypatch):
    with pytest.raises(UserError, match="in a separate process: ValueError: no such file"):
        verify.answers("raise ValueError('no such file')", [], {})
    monkeypatch.setattr(verify, "_SECONDS", 0.2)
    with pytest.raises(UserError, match="took longer"):
        verify.answers("import time; time.sleep(60)", [], {})


def test_the_processor_is_needed(monkeypatch):
    def no_backend(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", no_backend)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(UserError, match="set JAX_PLATFORMS=cuda,cpu"):
        verify.expected(lively.source("cnn6"), {})
