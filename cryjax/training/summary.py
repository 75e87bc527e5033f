"""A table of what is about to be trained, logged once before the first step compiles."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from absl import logging
from flax import linen as nn

from cryjax.training import optimizers
from cryjax.training.parallel import Parallel
from cryjax.training.recipe import Plan
from cryjax.training.steps import TrainState

_DATASETS = 6  # listed by name


@dataclasses.dataclass(frozen=True)
class Layer:
    """A part of a model.

    Attributes:
      name: that of its parameters.
      output: shape of its output, without the batch; None if it has none of its own.
      parameters: how many.
    """

    name: str
    output: tuple[int, ...] | None
    parameters: int


def size(tree: Any) -> int:
    """Number of elements in all leaves."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def layers(module: nn.Module, variables: Any, inputs: Sequence[int]) -> list[Layer]:
    """The parts of a module, in the order of their calls. Nothing is computed.

    Args:
      module: a Flax module, called as `module(x)`.
      variables: its arrays or their shapes.
      inputs: shape of x, without the batch.
    """
    outputs: dict[str, tuple[int, ...]] = {}

    def note(
        call: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext
    ) -> Any:
        found = call(*arguments, **keywords)
        path = context.module.path
        if len(path) == 1 and context.method_name == "__call__":
            outputs[path[0]] = found.shape[1:]
        return found

    with nn.intercept_methods(note):
        jax.eval_shape(module.apply, variables, jax.ShapeDtypeStruct((1, *inputs), "float32"))
    parameters = variables["params"]
    return [
        Layer(name, outputs.get(name), size(parameters.get(name, {})))
        for name in dict.fromkeys((*outputs, *parameters))
    ]


def model_lines(
    encoder: nn.Module, head: nn.Module, state: TrainState, inputs: Sequence[int]
) -> list[str]:
    """One line per encoder block and head layer, and their totals."""

    def line(name: str, output: Sequence[int] | None, parameters: int | None) -> str:
        shape = " x ".join(map(str, output or ()))
        return f"  {name:<20}{shape:<20}{'' if parameters is None else f'{parameters:,}':>14}"

    embedding = (encoder.features,)
    found = [f"  {'layer':<20}{'output':<20}{'parameters':>14}", line("input", inputs, None)]
    found += [line(*dataclasses.astuple(x)) for x in layers(encoder, state.encoder, inputs)]
    found.append(line("encoder", embedding, size(state.params["encoder"])))
    of_head = {"params": state.params["head"]}
    found += [
        line(f"head {x.name}", x.output, x.parameters) for x in layers(head, of_head, embedding)
    ]
    return [*found, line("in all", None, size(state.params))]


def show(
    started: str,
    data: Sequence[str],
    config: Any,
    *,
    examples: int,
    plan: Plan,
    encoder: nn.Module,
    head: nn.Module,
    state: TrainState,
    spread: Parallel,
) -> None:
    """Logs the run and its model in the first process; the others only log where they start.

    Args:
      started: where training starts, from `start.start_state`.
      data: what there is to train on, one line each.
      config: the run's.
      examples: per epoch.
      plan: the run's.
      encoder: [batch, frames, mels] -> [batch, features].
      head: applied to its embeddings.
      state: to train from.
      spread: the devices.
    """
    if jax.process_index():
        logging.info("%s", started)
        return
    settings = plan.settings
    frames = settings.frames(round(config.crop.seconds * settings.sample_rate))
    epochs = plan.total * config.batch_size / examples
    rate = optimizers.base_rate(
        config.optimizer.learning_rate, config.batch_size, config.optimizer.scaling
    )
    warmup = plan.in_steps(config.optimizer.warmup)
    data = [*data[:_DATASETS], *([f"and {len(data) - _DATASETS} more"] * (len(data) > _DATASETS))]
    width = "" if config.encoder.width == 1 else f" at {config.encoder.width:g} of its width"
    rows = [
        ("state", started),
        *(("data" if not place else "", line) for place, line in enumerate(data)),
        ("length", f"{plan.total:,} steps, {epochs:,.3g} epochs of {examples:,} examples"),
        (
            "batch",
            f"{config.batch_size}, {config.batch_size // spread.devices} per device; {spread}",
        ),
        (
            "front end",
            f"{config.front_end}: {settings.sample_rate} Hz, {config.crop.seconds:g} s are "
            f"{frames} frames x {settings.mels} mels",
        ),
        (
            "optimizer",
            f"{config.optimizer.name}, rate {rate:.3g} after {warmup:,} steps of warm-up",
        ),
        ("model", f"{config.encoder.name}{width}, computed in {config.encoder.dtype}"),
    ]
    lines = [f"  {name:<11}{text}" for name, text in rows]
    lines += model_lines(encoder, head, state, (frames, settings.mels))
    logging.info("what is trained\n%s", "\n".join(lines))
