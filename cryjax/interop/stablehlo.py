"""StableHLO export by `jax.export`: one file that JAX runs on CPU, CUDA and TPU.

NAME.stablehlo.json beside it holds the description of the model. Without cryjax:

    exported = jax.export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
    exported.call(waveform)["embedding"]  # waveform: float32 [batch, samples]

`jax.export` needs flatbuffers, which JAX does not install.
"""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from cryjax.command.errors import UserError
from cryjax.interop import weights
from cryjax.interop.model import Description, Function, Source

PLATFORMS = ("cpu", "cuda", "tpu")


def _check_packages() -> None:
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError('StableHLO needs flatbuffers: pip install "cryjax[export]"')


def _beside(path: pathlib.Path) -> pathlib.Path:
    """model.stablehlo -> model.stablehlo.json: a model.json may be another's."""
    return path.with_name(f"{path.name}.json")


def write(source: Source, path: pathlib.Path, kind: str) -> None:
    """Writes a model; batch and number of samples stay symbolic.

    Args:
      source: the model.
      path: of the file to write.
      kind: of the weights, one of `weights.KINDS`.
    """
    _check_packages()
    stored = jax.tree.map(lambda x: weights.store(x, kind), source.variables)

    def call(waveform: jax.Array) -> dict[str, jax.Array]:
        whole = jax.tree.map(weights.restore, stored, is_leaf=lambda x: isinstance(x, weights.Int8))
        return source.function(whole, waveform)

    least = source.description.least_samples
    shape = jax.export.symbolic_shape(
        "batch, samples", constraints=["batch >= 1", f"samples >= {least}"]
    )
    exported = jax.export.export(jax.jit(call), platforms=PLATFORMS)(
        jax.ShapeDtypeStruct(shape, jnp.float32)
    )
    path.write_bytes(exported.serialize())
    _beside(path).write_text(source.description.to_json() + "\n", encoding="utf-8")


def open_file(path: pathlib.Path) -> tuple[Description, Function]:
    """The description and function of a file. Raises UserError if it is not an export."""
    _check_packages()
    try:
        description = Description.from_json(_beside(path).read_bytes())
        exported = jax.export.deserialize(bytearray(path.read_bytes()))
    except OSError as error:
        raise UserError(
            f"{error.filename}: cannot be read ({error.strerror}); keep the "
            "NAME.stablehlo and NAME.stablehlo.json of python -m cryjax.export together"
        ) from error
    except Exception as error:  # flatbuffers raises what struct and indexing raise
        raise UserError(
            f"{path}: not a model from python -m cryjax.export ({type(error).__name__})"
        ) from error
    # Or another model's labels would stand over these probabilities.
    widths = [output.shape[-1] for output in exported.out_avals]  # in the order of their names
    told = [description.features, len(description.labels)][: len(description.output_names)]
    if widths != told:
        raise UserError(
            f"{_beside(path)} describes another model, with outputs of {told}, not {widths}; keep "
            "the NAME.stablehlo and NAME.stablehlo.json of python -m cryjax.export together"
        )
    call = jax.jit(exported.call)
    return description, lambda x: {name: np.asarray(y) for name, y in call(x).items()}


# Runs the file in a fresh process that has only JAX and flatbuffers: a file of waveforms in, a file
# of outputs out.
CHECK = """
import sys, jax, numpy as np
import jax.export
exported = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
inputs = np.load(sys.argv[2])
found = {}
for name in inputs.files:
    for output, value in exported.call(inputs[name]).items():
        found[name + "/" + output] = np.asarray(value)
np.savez(sys.argv[3], **found)
"""
