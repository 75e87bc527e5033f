"""Writes a work directory around weights that come from elsewhere."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from cryjax.audio import frontend
from cryjax.command.errors import UserError
from cryjax.interop.model import SEGMENT_SECONDS
from cryjax.training import checkpoints, start
from cryjax.training.steps import TrainState
from cryjax.training.workdir import Workdir


def write(
    folder: pathlib.Path,
    encoder: str,
    width: float,
    front_end: str,
    window_seconds: float,
    variables: dict[str, Any],
    labels: Sequence[str] = (),
    *,
    multi_label: bool = True,
    synthetic: bool = False,
    segment_seconds: float = SEGMENT_SECONDS,
) -> None:
    """Makes a run with one checkpoint, like a training run's, to probe, fine-tune or export.

    Args:
      folder: of the run.
      encoder: name, as `make_encoder` takes it.
      width: of the encoder.
      front_end: name of a preset.
      window_seconds: length of the windows to embed.
      variables: {'encoder': {'params', 'batch_stats'}}, and {'head': {'params'}} of a classifier.
      labels: of the classifier.
      multi_label: whether each is predicted by itself, or one of all.
      synthetic: whether synthetic audio was used in training.
      segment_seconds: longer recordings are cut into such segments, or windows if those are longer.

    Raises:
      UserError: if the folder holds a run.
    """
    config = {
        "encoder": {"name": encoder, "width": width, "dtype": "float32"},
        "front_end": front_end,
        "crop": {"seconds": window_seconds},
    }
    if any((pathlib.Path(folder) / checkpoints.FOLDER).glob("[0-9]*")):
        raise UserError(f"{folder} already has a run; give another --workdir")
    workdir = Workdir(folder, config)
    params = {"encoder": variables["encoder"]["params"]}
    if labels:
        params["head"] = variables["head"]["params"]
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats={"encoder": variables["encoder"]["batch_stats"]},
        opt_state=(),
    )
    meta = start.describe(
        "import_weights",
        workdir,
        frontend.resolve(front_end),
        segment_seconds=segment_seconds,
        synthetic=synthetic,
        labels=labels,
        multi_label=multi_label,
    )
    saved = checkpoints.Checkpoints(workdir.path)
    saved.save_model(state, 0, meta)
    saved.close()
