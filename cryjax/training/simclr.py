"""SimCLR pre-training as a config describes it: what its fields accept, and the parts they build.

Both the program that trains and the one that plans take the step from here.
"""

import dataclasses
import functools
from typing import Any

import jax
import optax

from cryjax.audio import augment, frontend
from cryjax.command import config as config_lib
from cryjax.command.config import boolean, integer, interval, number, one_of, text
from cryjax.command.program import UserError
from cryjax.models import ENCODERS, ProjectionHead, make_encoder
from cryjax.models.encoders import Encoder
from cryjax.training import optimizers, parallel, steps

_TRANSFORMS = (*augment.WAVEFORM, *augment.SPECTROGRAM)
_SHARE = number(0, 1)
RULES = {
    "data": text(required="a prepared dataset: --config.data=FOLDER (python -m cryjax.prepare)"),
    "split": text(required="the name of a split"),
    "init": text(),
    "total": config_lib.LENGTH,
    "batch_size": integer(2),
    "checkpoint_every": config_lib.LENGTH,
    "log_every": config_lib.LENGTH,
    "seed": integer(),
    "parallel": one_of(*parallel.CHOICES),
    "encoder.name": one_of(*ENCODERS),
    "encoder.width": number(above=0),
    "encoder.dtype": one_of("float32", "bfloat16"),
    "head.hidden": integer(1),
    "head.features": integer(1),
    "front_end": one_of(*frontend.PRESETS),
    "clip_seconds": number(above=0),
    "crop.seconds": number(above=0),
    "crop.speed": interval(0.1),
    "transforms": config_lib.Rule(
        lambda x: isinstance(x, tuple | list) and all(name in _TRANSFORMS for name in x),
        "a tuple of " + ", ".join(_TRANSFORMS),
    ),
    **{f"{name}.probability": _SHARE for name in _TRANSFORMS},
    "mix.snr_decibels": interval(),
    "gain.decibels": interval(),
    "add_noise.snr_decibels": interval(),
    "time_shift.most": _SHARE,
    "equalise.decibels": number(0),
    "equalise.knots": integer(2),
    "band_pass.low": number(0, 0.5),
    "band_pass.high": number(0, 0.5),
    "band_pass.slope": number(0),
    "time_warp.most": number(0, 0.49),
    "frequency_mask.count": integer(0),
    "frequency_mask.most": _SHARE,
    "time_mask.count": integer(0),
    "time_mask.most": _SHARE,
    "temperature": number(above=0),
    "optimizer.name": one_of(*optimizers.NAMES),
    "optimizer.learning_rate": number(above=0),
    "optimizer.scaling": one_of(*optimizers.SCALINGS),
    "optimizer.weight_decay": number(0),
    "optimizer.momentum": number(0, 1),
    "optimizer.warmup": config_lib.LENGTH,
    "neighbours.every": config_lib.LENGTH,
    "neighbours.split": text(required="the name of a split"),
    "neighbours.most": integer(2),
    "memory.chunks": integer(1),
    "memory.remat": boolean(),
    "loader.threads": integer(1),
    "loader.buffer": integer(1),
}


def check_batch(config: Any, examples: int, devices: int) -> None:
    """Raises UserError where the devices, or the data, do not fit the batch."""
    if config.batch_size % devices:
        near = max(config.batch_size // devices, 1) * devices
        raise UserError(
            f"config.batch_size={config.batch_size} is not divided by {devices} devices; "
            f"take a multiple, as {near}"
        )
    if config.batch_size // devices % config.memory.chunks:
        raise UserError(
            f"config.memory.chunks={config.memory.chunks} does not divide the "
            f"{config.batch_size // devices} clips of each device; take a divisor"
        )
    if "mix" in config.transforms and config.batch_size // devices % augment.MIX_GROUP:
        raise UserError(
            f"config.batch_size={config.batch_size} over {devices} devices: 'mix' needs a multiple "
            f"of {augment.MIX_GROUP} on each; take one of {devices * augment.MIX_GROUP}, or leave "
            "'mix' out of config.transforms"
        )
    if examples < config.batch_size:
        raise UserError(
            f"config.batch_size={config.batch_size} is more than the {examples} examples of split "
            f"{config.split!r}; it would hold examples twice, each the other's negative: take a "
            "smaller batch"
        )


def view_recipe(config: Any) -> dict[str, Any]:
    """The keyword arguments of `augment.view` that the config describes."""
    return {
        "settings": frontend.resolve(config.front_end),
        "crop": config.crop.to_dict(),
        "transforms": [(name, config[name].to_dict()) for name in config.transforms],
    }


@dataclasses.dataclass(frozen=True)
class SimCLR:
    """The parts of a pre-training run.

    Attributes:
      encoder: [batch, frames, mels] -> [batch, features].
      settings: of the front end.
      clip_samples: of each clip of a batch, from which both its views are cropped.
      total: steps of the run.
      learning_rate: of a step.
      step: pure: `step(state, batch, key, axis_name=None) -> (state, metrics)`.
      init: key -> a fresh state.
    """

    encoder: Encoder
    settings: frontend.FrontEnd
    clip_samples: int
    total: int
    learning_rate: optax.Schedule
    step: steps.StepFunction
    init: Any

    def batch(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a batch of `size` clips."""
        return {
            "audio": jax.ShapeDtypeStruct((size, self.clip_samples), "int16"),
            "length": jax.ShapeDtypeStruct((size,), "int32"),
        }


def build(config: Any, examples: int) -> SimCLR:
    """The parts that a validated config describes, for an epoch of so many examples."""

    def in_steps(length: str) -> int:
        return config_lib.steps(length, batch_size=config.batch_size, examples=examples)

    total, warmup = in_steps(config.total), in_steps(config.optimizer.warmup)
    if not total:
        raise UserError(f"config.total={config.total!r} is no step at all; take a longer run")
    if warmup >= total:
        raise UserError(
            f"config.optimizer.warmup={config.optimizer.warmup!r} is {warmup} steps and "
            f"config.total={config.total!r} is {total}; take a shorter warm-up"
        )
    if config.crop.seconds > config.clip_seconds:
        raise UserError(
            f"config.crop.seconds={config.crop.seconds} is more than config.clip_seconds="
            f"{config.clip_seconds}, from which views are cropped; take a longer clip"
        )
    settings = frontend.resolve(config.front_end)
    learning_rate = optimizers.schedule(
        optimizers.base_rate(
            config.optimizer.learning_rate, config.batch_size, config.optimizer.scaling
        ),
        total,
        warmup,
    )
    parts = {
        "encoder": make_encoder(**config.encoder).clone(remat=config.memory.remat),
        "head": ProjectionHead(**config.head),
        "optimizer": optimizers.make_optimizer(
            config.optimizer.name,
            learning_rate,
            weight_decay=config.optimizer.weight_decay,
            momentum=config.optimizer.momentum,
        ),
    }
    return SimCLR(
        encoder=parts["encoder"],
        settings=settings,
        clip_samples=round(config.clip_seconds * settings.sample_rate),
        total=total,
        learning_rate=learning_rate,
        step=functools.partial(
            steps.simclr_step,
            **parts,
            recipe=view_recipe(config),
            temperature=config.temperature,
            chunks=config.memory.chunks,
        ),
        init=functools.partial(steps.init_state, **parts, mels=settings.mels),
    )
