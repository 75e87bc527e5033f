"""How a run begins: in a folder, which all processes agree to, and from a state.

That is a checkpoint of the work directory, another run's encoder, or fresh.
"""

import json
from collections.abc import Sequence
from typing import Any

import jax

from cryjax.audio import frontend
from cryjax.command import config as config_lib
from cryjax.command.errors import UserError
from cryjax.training import checkpoints, parallel, summary
from cryjax.training.parallel import Parallel
from cryjax.training.simclr import SimCLR
from cryjax.training.steps import TrainState
from cryjax.training.supervised import Supervised
from cryjax.training.workdir import Workdir, code


def open_workdir(path: str, config: Any, data: str) -> Workdir:
    """The folder of a run, once all processes were given the same config, data and code.

    Args:
      path: of the folder.
      config: of the run.
      data: all that was written about the datasets when they were made.

    Raises:
      UserError: where they were not, or the folder holds a run with another config.
    """
    given = config_lib.to_dict(config)
    parallel.agree(config=json.dumps(given), data=data, code=code())
    return Workdir(path, given, writes=jax.process_index() == 0)


def start_state(
    state: TrainState,
    init: str,
    settings: frontend.FrontEnd,
    spread: Parallel,
    saved: checkpoints.Checkpoints,
    *,
    averaged: bool = False,
) -> tuple[TrainState, str]:
    """The state to train from, on the devices, and what it is, for the log.

    Args:
      state: fresh.
      init: work directory of another run whose encoder to take; '' takes none.
      settings: of this run's front end.
      spread: the devices.
      saved: checkpoints of this run.
      averaged: whether a moving average of the parameters is kept; it starts from them.

    Raises:
      UserError: where the other run's front end or encoder is another.
    """

    def with_average(state: TrainState) -> TrainState:
        return state.replace(average=state.live) if averaged else state

    if saved.latest is not None:
        restored = saved.restore(with_average(state), spread.replicated)
        # Not of `latest`: where that was damaged it is the one before.
        return restored, f"going on from step {int(restored.step)} of this work directory"
    if init:
        theirs = frontend.FrontEnd(**checkpoints.read_meta(init)["front_end"])
        if theirs != settings:
            raise UserError(
                f"config.init={init} was trained with another front end ({theirs}); "
                "take the config.front_end that it was trained with"
            )
        target = {
            "params": state.params["encoder"],
            "batch_stats": state.batch_stats["encoder"],
        }
        loaded = checkpoints.restore_item(init, "encoder", target, spread.replicated)
        said = f"starting from the encoder of {init}; head and optimizer fresh"
        state = state.replace(
            params=state.params | {"encoder": loaded["params"]},
            batch_stats=state.batch_stats | {"encoder": loaded["batch_stats"]},
        )
    else:
        said = "starting fresh"
    return spread.replicate(with_average(state)), said


def begin(
    config: Any,
    parts: SimCLR | Supervised,
    spread: Parallel,
    workdir: Workdir,
    data: Sequence[str],
    *,
    examples: int,
    averaged: bool = False,
) -> tuple[TrainState, checkpoints.Checkpoints]:
    """Takes the state to train from, drops the metrics after it, and shows what is trained.

    Args:
      config: of the run.
      parts: of the run.
      spread: the devices.
      workdir: of the run.
      data: what there is to train on, a line each.
      examples: of an epoch.
      averaged: as of `start_state`.

    Returns:
      The state, on the devices, and the run's checkpoints.

    Raises:
      UserError: as `start_state`.
    """
    saved = checkpoints.Checkpoints(workdir.path)
    state, started = start_state(
        jax.jit(parts.init)(jax.random.key(config.seed)),
        config.init,
        parts.plan.settings,
        spread,
        saved,
        averaged=averaged,
    )
    workdir.rewind(int(state.step))
    summary.show(
        started,
        data,
        config,
        examples=examples,
        plan=parts.plan,
        encoder=parts.encoder,
        head=parts.head,
        state=state,
        spread=spread,
    )
    return state, saved
