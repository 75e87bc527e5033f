"""What the training loop needs to know of a run."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from cryjax.training.checkpoints import Checkpoints
from cryjax.training.parallel import Parallel
from cryjax.training.recipe import Plan
from cryjax.training.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A run's length and intervals, in steps; 0 is never."""

    total: int
    log_every: int
    checkpoint_every: int
    evaluate_every: int = 0
    pictures_every: int = 0

    @classmethod
    def of(cls, config: Any, plan: Plan, evaluate_every: str) -> "Schedule":
        """Converts a config's lengths to steps; `evaluate_every` is one of them."""
        return cls(
            total=plan.total,
            log_every=max(plan.in_steps(config.log_every), 1),
            checkpoint_every=plan.in_steps(config.checkpoint_every),
            evaluate_every=plan.in_steps(evaluate_every),
            pictures_every=plan.in_steps(config.pictures_every),
        )


@dataclasses.dataclass(frozen=True)
class Run:
    """A run, whatever it trains.

    Attributes:
      key: base key.
      schedule: when to log, save and evaluate.
      learning_rate: of a step, for the log.
      parallel: places batches.
      checkpoints: the run's.
      workdir: the run's.
      meta: stored in every checkpoint.
      skip: whether to go on after a non-finite update, which is never made, up to 20 in a row.
    """

    key: jax.Array
    schedule: Schedule
    learning_rate: Callable[[int], float]
    parallel: Parallel
    checkpoints: Checkpoints
    workdir: Workdir
    meta: dict[str, Any]
    skip: bool = False
