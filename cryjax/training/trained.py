"""Trained encoders and classifiers of runs, with all that is needed to use them."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from cryjax.audio.frontend import FrontEnd
from cryjax.command.errors import UserError
from cryjax.models import encoders
from cryjax.models.encoders import Encoder, make_encoder
from cryjax.models.heads import Classifier
from cryjax.training.checkpoints import meta_of, newest, read_meta, restore_item


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """An encoder with all that is needed to use it.

    Attributes:
      encoder: [batch, frames, mels] -> [batch, features].
      variables: its {'params', 'batch_stats'}.
      settings: the front end that it was trained with.
      window_samples: length of the crops that it was trained on.
      synthetic: whether synthetic audio went into it.
    """

    encoder: Encoder
    variables: Any
    settings: FrontEnd
    window_samples: int
    synthetic: bool


@dataclasses.dataclass(frozen=True)
class Trained:
    """A classifier with all that is needed to use it.

    Attributes:
      pretrained: its encoder.
      head: [batch, features] -> logits [batch, classes].
      variables: the head's {'params'}.
      labels: class names.
      multi_label: whether a recording may have several labels.
    """

    pretrained: Pretrained
    head: Classifier
    variables: Any
    labels: tuple[str, ...]
    multi_label: bool


def _untrained_shapes(
    encoder: dict[str, Any], settings: FrontEnd, window_seconds: float
) -> Pretrained:
    """Same as `untrained`, with shapes for variables: drawing them takes a compilation."""
    made = make_encoder(**encoder)
    draw = functools.partial(encoders.fresh, made, mels=settings.mels)
    shapes = jax.eval_shape(draw, jax.random.key(0))
    return Pretrained(made, shapes, settings, round(window_seconds * settings.sample_rate), False)


def untrained(
    encoder: dict[str, Any], settings: FrontEnd, window_seconds: float, seed: int
) -> Pretrained:
    """A randomly initialised encoder: the baseline that pre-training must beat.

    Args:
      encoder: arguments of `make_encoder`.
      settings: the front end.
      window_seconds: length of its windows.
      seed: for the initialisation.
    """
    made = _untrained_shapes(encoder, settings, window_seconds)
    draw = jax.jit(functools.partial(encoders.fresh, made.encoder, mels=settings.mels))
    return dataclasses.replace(made, variables=draw(jax.random.key(seed)))


def untrained_like(run: str, seed: int) -> Pretrained:
    """`untrained`, with a run's encoder, front end and window."""
    return untrained(*_architecture(read_meta(run)), seed)


def _architecture(meta: dict[str, Any]) -> tuple[dict[str, Any], FrontEnd, float]:
    """A run's encoder, front end and window, as `untrained` takes them."""
    config = meta["config"]
    return config["encoder"], FrontEnd(**meta["front_end"]), config["crop"]["seconds"]


def load_pretrained(
    run: str, *, listed: bool = True, folder: pathlib.Path | None = None
) -> Pretrained:
    """The encoder of a run's model, from its `encoder` and `meta` items alone.

    Args:
      run: its work directory.
      listed: whether to log every leaf.
      folder: the checkpoint's; `newest(run)` if None.
    """
    folder = folder or newest(run)
    meta = meta_of(folder)
    made = _untrained_shapes(*_architecture(meta))
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    variables = restore_item(run, "encoder", made.variables, sharding, listed=listed, folder=folder)
    return dataclasses.replace(made, variables=variables, synthetic=bool(meta["synthetic"]))


def load_trained(run: str, *, listed: bool = True, folder: pathlib.Path | None = None) -> Trained:
    """A run's classifier; arguments as in `load_pretrained`.

    Raises:
      UserError: if the run trained none.
    """
    folder = folder or newest(run)  # once: the run may be training, and save meanwhile
    meta = meta_of(folder)
    if not meta["labels"]:
        raise UserError(f"{run} has no classifier; give the --workdir of a fine-tuned run")
    pretrained = load_pretrained(run, listed=listed, folder=folder)
    head = Classifier(len(meta["labels"]))
    key, embedding = jax.random.key(0), jnp.zeros((1, pretrained.encoder.features))
    target = {"params": {"head": jax.eval_shape(head.init, key, embedding)["params"]}}
    target["batch_stats"] = {}
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    restored = restore_item(run, "head", target, sharding, listed=listed, folder=folder)
    return Trained(
        pretrained,
        head,
        {"params": restored["params"]["head"]},
        tuple(meta["labels"]),
        meta["multi_label"],
    )
