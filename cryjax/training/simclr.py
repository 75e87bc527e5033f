"""SimCLR pre-training from a config: what its fields accept and the parts they build.

The program that trains and the one that plans both take the step from here.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from cryjax.command import config as config_lib
from cryjax.command.config import integer, number, text
from cryjax.command.errors import UserError
from cryjax.models import ProjectionHead, make_encoder
from cryjax.models.encoders import Encoder
from cryjax.training import recipe, steps

RULES = recipe.RULES | {
    "split": text(required="the name of a split"),
    "exclude_subjects": text(),
    "head.hidden": integer(1),
    "head.features": integer(1),
    "temperature": number(above=0),
    "neighbours.every": config_lib.LENGTH,
    "neighbours.split": text(required="the name of a split"),
    "neighbours.most": integer(2),
    "memory.chunks": integer(1),
}


def check_batch(config: Any, examples: int, devices: int) -> None:
    """Raises UserError if the devices or the data do not fit the batch."""
    recipe.check_devices(config, devices, grouped="'mix'" if "mix" in config.transforms else "")
    if config.batch_size // devices % config.memory.chunks:
        raise UserError(
            f"config.memory.chunks={config.memory.chunks} does not divide the "
            f"{config.batch_size // devices} clips of each device; use a divisor"
        )
    if examples < config.batch_size:
        raise UserError(
            f"config.batch_size={config.batch_size} is more than the {examples} examples of split "
            f"{config.split!r}; it would hold examples twice, as their own negatives: use a "
            "smaller batch"
        )


def check_neighbours(config: Any, prepared: Any) -> None:
    """Raises UserError if the nearest-neighbour accuracy on this dataset would be undefined."""
    split = config.neighbours.split
    prepared.source(split)  # names the splits, if there is no such
    labels, subjects = (prepared.counts[split][name] for name in ("labels", "subjects"))
    if len(labels) < 2 or subjects < 2:
        raise UserError(
            f"config.neighbours needs two labels and two subjects, but split {split!r} of "
            f"{prepared.directory} has {len(labels)} and {subjects}; put a labelled dataset first "
            "in config.data, name another config.neighbours.split, or set neighbours.every=0"
        )


@dataclasses.dataclass(frozen=True)
class SimCLR:
    """The parts of a pre-training run.

    Attributes:
      encoder: [batch, frames, mels] -> [batch, features].
      head: [batch, features] -> [batch, projection].
      plan: the run's plan.
      step: pure: `step(state, batch, key, axis_name=None) -> (state, metrics)`.
      init: key -> a fresh state.
    """

    encoder: Encoder
    head: ProjectionHead
    plan: recipe.Plan
    step: steps.StepFunction
    init: Callable[[jax.Array], steps.TrainState]


def build(config: Any, examples: int) -> SimCLR:
    """The parts that a validated config describes, for epochs of this many examples."""
    plan = recipe.plan(config, examples)
    parts = {
        "encoder": make_encoder(**config.encoder).clone(remat=config.memory.remat),
        "head": ProjectionHead(**config.head),
        "optimizer": plan.optimizer,
    }
    return SimCLR(
        encoder=parts["encoder"],
        head=parts["head"],
        plan=plan,
        step=functools.partial(
            steps.simclr_step,
            **parts,
            recipe=recipe.view_recipe(config),
            temperature=config.temperature,
            chunks=config.memory.chunks,
        ),
        init=functools.partial(steps.init_state, **parts, mels=plan.settings.mels),
    )
