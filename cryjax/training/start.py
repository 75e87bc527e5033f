"""Where training starts: a checkpoint of the work directory, another run's encoder, or fresh."""

from cryjax.audio import frontend
from cryjax.command.errors import UserError
from cryjax.training import checkpoints
from cryjax.training.parallel import Parallel
from cryjax.training.steps import TrainState


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
