"""cryjax: self-supervised audio representation learning in JAX, for infant cry analysis."""

import typing

if typing.TYPE_CHECKING:
    from cryjax.interop.model import Model

__version__ = "0.1.0"


def load(path: str) -> "Model":
    """Loads a model for use from Python.

        model = cryjax.load("RUN")
        embeddings = model.embed(waveform, sample_rate)

    Args:
      path: work directory of a training run, or the StableHLO or ONNX file or model folder that
        `python -m cryjax.export` made from one.

    Returns:
      The model, with `sample_rate`, `labels`, `embed` and `predict`.

    Raises:
      cryjax.command.errors.UserError: if there is no model, in one line.
    """
    from cryjax.interop.model import load as load_model

    return load_model(path)
