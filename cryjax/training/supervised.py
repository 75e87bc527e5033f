"""Supervised training from a config: what its fields accept and the parts they build."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from cryjax.command import config as config_lib
from cryjax.command.config import integer, number, one_of, text
from cryjax.command.errors import UserError
from cryjax.models import ENCODERS, Classifier, make_encoder
from cryjax.models.encoders import Encoder
from cryjax.training import losses, optimizers, recipe, steps

RULES = recipe.RULES | {
    "task": one_of("auto", "single", "multi"),
    "positive": text(),
    "balance": one_of("none", "weights", "sampling"),
    "label_fraction": number(above=0, high=1),
    "label_seed": integer(),
    "folds": config_lib.FOLDS,
    "fold": integer(),
    "fold_seed": integer(),
    "validation": number(0, 0.5),
    "label_smoothing": number(0, 0.99),
    "mixup": number(0),
    "dropout": number(0, 0.99),
    "encoder_rate": number(above=0),
    "layer_decay": number(above=0, high=1),
    "freeze.blocks": integer(),
    "freeze.thaw_every": config_lib.LENGTH,
    "average_decay": number(0, 0.99999),
    "evaluate_every": config_lib.LENGTH,
    "select": one_of("macro_auc", "average_precision", "accuracy", "balanced_accuracy"),
    "patience": integer(),
    "resamples": integer(20),  # with fewer, an interval says nothing
}


def class_weights(targets: np.ndarray, *, multi_label: bool) -> np.ndarray:
    """Weights that balance the classes, for `losses.classification`.

    Args:
      targets: [examples, classes] of 0 and 1, from the training set.
      multi_label: whether an example may have several labels.

    Returns:
      float32 [classes]. For one label, n / (classes present x count), so that the mean weight of
      an example is 1; for several, negatives / positives. 0 for a class without examples.
    """
    count = targets.sum(axis=0)
    total = len(targets) - count if multi_label else len(targets) / np.count_nonzero(count)
    return np.divide(total, count, out=np.zeros(len(count)), where=count > 0).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Supervised:
    """The parts of a supervised run.

    Attributes:
      encoder: [batch, frames, mels] -> [batch, features].
      head: [batch, features] -> logits [batch, classes].
      plan: the run's plan.
      init: key -> a fresh state.
      step_of: number of frozen blocks -> the pure step that trains the rest.
      frozen: step -> number of frozen blocks.
    """

    encoder: Encoder
    head: Classifier
    plan: recipe.Plan
    init: Callable[[jax.Array], steps.TrainState]
    step_of: Callable[[int], steps.StepFunction]
    frozen: Callable[[int], int]


def _check(config: Any, blocks: int, *, multi_label: bool) -> None:
    """Raises UserError if the encoder's blocks or the labels do not suit the config."""
    if config.freeze.blocks > blocks + 1:
        raise UserError(
            f"config.freeze.blocks={config.freeze.blocks}: {config.encoder.name} has {blocks} "
            f"blocks, and its dense layer counts as one; use up to {blocks + 1}"
        )
    if multi_label and config.select == "balanced_accuracy":
        raise UserError(
            "config.select='balanced_accuracy' is for one label per recording; use 'macro_auc'"
        )


def _loss(config: Any, targets: np.ndarray, *, multi_label: bool) -> Any:
    """The config's (logits, targets) -> [batch]; any class weights are the training set's."""
    weights = np.ones(targets.shape[1], np.float32)
    if config.balance == "weights":
        weights = class_weights(targets, multi_label=multi_label)
    return functools.partial(
        losses.classification,
        multi_label=multi_label,
        class_weights=weights,
        smoothing=config.label_smoothing,
    )


def build(config: Any, targets: np.ndarray, *, multi_label: bool) -> Supervised:
    """The parts that a validated config describes.

    Args:
      config: the run's config.
      targets: [examples, classes] of 0 and 1, from the training set.
      multi_label: whether an example may have several labels.
    """
    blocks = len(ENCODERS[config.encoder.name][0])
    _check(config, blocks, multi_label=multi_label)
    plan = recipe.plan(config, len(targets))
    encoder = make_encoder(**config.encoder).clone(remat=config.memory.remat)
    head = Classifier(targets.shape[1])
    loss = _loss(config, targets, multi_label=multi_label)
    thaw = plan.in_steps(config.freeze.thaw_every)

    def frozen(step: int) -> int:
        """Number of blocks frozen in a step, counted from 1."""
        return max(config.freeze.blocks - ((step - 1) // thaw if thaw else 0), 0)

    thawed = {}
    if thaw and config.optimizer.name == "adamw":
        depths = range(1, config.freeze.blocks + 1)
        thawed = {depth: (config.freeze.blocks + 1 - depth) * thaw for depth in depths}

    def step_of(blocks_frozen: int) -> steps.StepFunction:
        return functools.partial(
            steps.supervised_step,
            encoder=encoder.clone(frozen=blocks_frozen),
            head=head,
            optimizer=optimizers.by_layer(
                plan.optimizer,
                encoder=config.encoder_rate,
                layer_decay=config.layer_decay,
                blocks=blocks,
                frozen=blocks_frozen,
                thawed=thawed,
            ),
            recipe=recipe.view_recipe(config),
            loss=loss,
            mixup=config.mixup,
            dropout=config.dropout,
            decay=config.average_decay,
        )

    return Supervised(
        encoder=encoder,
        head=head,
        plan=plan,
        init=functools.partial(
            steps.init_state,
            encoder=encoder,
            head=head,
            optimizer=plan.optimizer,
            mels=plan.settings.mels,
        ),
        step_of=step_of,
        frozen=frozen,
    )
