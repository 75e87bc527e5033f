"""Checks an export against its model: reloaded in its own process, run on real audio too."""

import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from cryjax.command.errors import UserError
from cryjax.data.records import Prepared
from cryjax.interop.model import Description, Source

_REAL = 8
_SECONDS = 600


def waveforms(description: Description, prepared: Prepared | None) -> dict[str, np.ndarray]:
    """Inputs to test a model: several batch sizes and lengths, and recordings if available.

    Args:
      description: of the model.
      prepared: a dataset at the model's rate, or None.

    Returns:
      name -> float32 [batch, samples] in [-1, 1].
    """
    window, least = description.window_samples, description.least_samples
    rng = np.random.default_rng(0)
    found = {
        "noise": rng.uniform(-1, 1, (2, window)),
        "quiet noise": rng.uniform(-1e-3, 1e-3, (3, window)),
        "shortest": rng.uniform(-1, 1, (1, least)),
        "longer": rng.uniform(-1, 1, (1, max(window, least) * 3 // 2 + 1)),
    }
    if prepared is not None:
        split = next(iter(prepared.splits))
        source = prepared.source(split)
        places = np.linspace(0, len(source) - 1, min(_REAL, len(source))).round().astype(int)
        audio = [source[int(place)]["audio"] for place in places]
        found["recordings"] = np.stack([np.resize(x, max(window, least)) for x in audio]) / 32768.0
    return {name: x.astype(np.float32) for name, x in found.items()}


def expected(source: Source, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The model's own outputs, on the CPU: 'input/output' -> float32 [batch, ...].

    Raises:
      UserError: if JAX may not use the CPU.
    """
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise UserError(
            "an export is tested on the CPU, which JAX_PLATFORMS leaves out; set "
            f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')},cpu"
        ) from error
    function = jax.jit(source.function)
    variables = jax.tree.map(np.asarray, source.variables)
    with jax.default_device(host):
        return {
            f"{name}/{output}": np.asarray(value)
            for name, waveform in inputs.items()
            for output, value in function(variables, waveform).items()
        }


def answers(
    script: str, arguments: Sequence[str], inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The same from a fresh process that runs `script`: arguments, input file, output file."""
    with tempfile.TemporaryDirectory() as folder:
        given, found = pathlib.Path(folder) / "inputs.npz", pathlib.Path(folder) / "outputs.npz"
        with given.open("wb") as file:
            np.savez(file, **dict[str, Any](inputs))  # NumPy 2.0 lacks allow_pickle
        command = [sys.executable, "-c", script, *arguments, str(given), str(found)]
        # This process holds the accelerator, and only a CPU has full precision everywhere.
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_SECONDS, check=False,
                env=environment,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise UserError(f"testing the export took longer than {_SECONDS} s") from None
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no error output"])[-1]
            raise UserError(f"the export cannot be used in a separate process: {last}")
        with np.load(found, allow_pickle=False) as arrays:
            return dict(arrays)


def differences(
    wanted: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """'input/output' -> the largest difference, relative to the largest expected value.

    Infinite where either is NaN.
    """
    if wanted.keys() != found.keys():
        raise UserError(f"the export has the outputs {sorted(found)}, not {sorted(wanted)}")

    def difference(name: str) -> float:
        apart = np.nan_to_num(np.abs(found[name] - wanted[name]), nan=np.inf)
        return float(apart.max() / max(np.abs(wanted[name]).max(), 1e-30))

    return {name: difference(name) for name in wanted}
