"""What all training recipes share: the fields they accept and the parts these build."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from cryjax.audio import augment, frontend
from cryjax.command import config as config_lib
from cryjax.command.config import boolean, integer, interval, number, one_of, text
from cryjax.command.errors import UserError
from cryjax.models import ENCODERS
from cryjax.training import optimizers, parallel

_TRANSFORMS = (*augment.WAVEFORM, *augment.SPECTROGRAM)
_SHARE = number(0, 1)
# For views, encoder, optimizer and run.
RULES = {
    "data": text(required="a prepared dataset: --config.data=FOLDER (python -m cryjax.prepare)"),
    "init": text(),
    "total": config_lib.LENGTH,
    "batch_size": integer(2),
    "checkpoint_every": config_lib.LENGTH,
    "log_every": config_lib.LENGTH,
    "pictures_every": config_lib.LENGTH,
    "seed": integer(high=2**32 - 1),  # beyond, jax.random.key repeats itself
    "parallel": one_of(*parallel.CHOICES),
    "encoder.name": one_of(*ENCODERS),
    "encoder.width": number(above=0),
    "encoder.dtype": one_of("float32", "bfloat16"),
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
    "optimizer.name": one_of(*optimizers.NAMES),
    "optimizer.learning_rate": number(above=0),
    "optimizer.scaling": one_of(*optimizers.SCALINGS),
    "optimizer.weight_decay": number(0),
    "optimizer.momentum": number(0, 1),
    "optimizer.warmup": config_lib.LENGTH,
    "memory.remat": boolean(),
    "nonfinite": one_of("stop", "skip"),
    "loader.threads": integer(1),
    "loader.buffer": integer(1),
}


def check_devices(config: Any, devices: int, *, grouped: str = "") -> None:
    """Raises UserError if the devices do not divide the batch.

    Args:
      config: the run's config.
      devices: number over all processes.
      grouped: the field, if any, that mixes examples within their group.
    """
    if config.batch_size % devices:
        near = max(config.batch_size // devices, 1) * devices
        raise UserError(
            f"config.batch_size={config.batch_size} is not divisible by {devices} devices; "
            f"use a multiple, such as {near}"
        )
    if grouped and config.batch_size // devices % augment.MIX_GROUP:
        raise UserError(
            f"config.batch_size={config.batch_size} over {devices} devices: {grouped} needs a "
            f"multiple of {augment.MIX_GROUP} on each; use a multiple of "
            f"{devices * augment.MIX_GROUP}, or leave it out"
        )


def without_effect(config: Any) -> str:
    """Names the transforms that the config's front end undoes, or ''."""
    static = [name for name in config.transforms if name in augment.STATIC]
    if not static or frontend.resolve(config.front_end).normalise == "none":
        return ""
    return (
        f"config.transforms: {', '.join(static)} without effect, because config.front_end="
        f"{config.front_end!r} subtracts the mean of each band; leave them out"
    )


def view_recipe(config: Any) -> dict[str, Any]:
    """The keyword arguments of `augment.view` that the config describes."""
    return {
        "settings": frontend.resolve(config.front_end),
        "crop": config.crop.to_dict(),
        "transforms": [(name, config[name].to_dict()) for name in config.transforms],
    }


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run's length, learning rate and batch shapes.

    Attributes:
      settings: front-end settings.
      clip_samples: length of each clip of a batch, from which its views are cropped.
      in_steps: a length as written in configs -> steps.
      total: steps of the run.
      learning_rate: step -> rate.
      optimizer: with that rate.
    """

    settings: frontend.FrontEnd
    clip_samples: int
    in_steps: Callable[[str], int]
    total: int
    learning_rate: optax.Schedule
    optimizer: optax.GradientTransformation

    def batch(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a batch of `size` clips."""
        return {
            "audio": jax.ShapeDtypeStruct((size, self.clip_samples), "int16"),
            "length": jax.ShapeDtypeStruct((size,), "int32"),
        }


def plan(config: Any, examples: int) -> Plan:
    """The plan of a validated config, for epochs of this many examples."""

    def in_steps(length: str) -> int:
        return config_lib.steps(length, batch_size=config.batch_size, examples=examples)

    total, warmup = in_steps(config.total), in_steps(config.optimizer.warmup)
    if not total:
        raise UserError(f"config.total={config.total!r} is zero steps; use a longer run")
    if warmup >= total:
        raise UserError(
            f"config.optimizer.warmup={config.optimizer.warmup!r} is {warmup} steps, but the run "
            f"has {total} (config.total={config.total!r}); use a shorter warm-up"
        )
    longest = config.crop.seconds * max(config.crop.speed[1], 1.0)
    if longest > config.clip_seconds + 1e-9:
        raise UserError(
            f"config.crop.seconds={config.crop.seconds} at speeds of up to {config.crop.speed[1]} "
            f"is more than config.clip_seconds={config.clip_seconds}, from which views are "
            f"cropped; use a clip of {longest:g} seconds"
        )
    settings = frontend.resolve(config.front_end)
    learning_rate = optimizers.schedule(
        optimizers.base_rate(
            config.optimizer.learning_rate, config.batch_size, config.optimizer.scaling
        ),
        total,
        warmup,
    )
    return Plan(
        settings=settings,
        clip_samples=round(config.clip_seconds * settings.sample_rate),
        in_steps=in_steps,
        total=total,
        learning_rate=learning_rate,
        optimizer=optimizers.make_optimizer(
            config.optimizer.name,
            learning_rate,
            weight_decay=config.optimizer.weight_decay,
            momentum=config.optimizer.momentum,
        ),
    )
