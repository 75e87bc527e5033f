"""How a run begins: in a folder, which all processes agree to, and from a state.

That is a checkpoint of the work directory, another run's encoder, or fresh.
"""

import hashlib
import importlib.metadata
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import logging

from cryjax.audio import frontend
from cryjax.command import config as config_lib
from cryjax.command.errors import UserError
from cryjax.training import checkpoints, parallel, summary
from cryjax.training.parallel import Parallel
from cryjax.training.simclr import SimCLR
from cryjax.training.steps import TrainState
from cryjax.training.supervised import Supervised
from cryjax.training.workdir import Workdir


def inputs_of(data: str) -> dict[str, str]:
    """What a run's numbers depend on beside its config, by name: versions, and digests of texts.

    Args:
      data: what the datasets are made of and hold, as of `Prepared.fingerprint`.
    """
    home = pathlib.Path(__file__).parents[1]
    sources = {
        str(file.relative_to(home)): file.read_text(encoding="utf-8")
        for file in sorted(home.rglob("*.py"))
    }
    texts = {"cryjax": json.dumps(sources), "data": data}
    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")}
    return versions | {
        name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in texts.items()
    }


def open_workdir(path: str, config: Any, data: str) -> Workdir:
    """The folder of a run, once all processes were given the same config, data and code.

    Args:
      path: of the folder.
      config: of the run.
      data: as of `inputs_of`.

    Raises:
      UserError: where they were not, or the folder holds a run with another config.
    """
    given, found = config_lib.to_dict(config), inputs_of(data)
    parallel.agree(config=json.dumps(given), **found)
    return Workdir(path, given, inputs=found, writes=jax.process_index() == 0)


def start_state(
    state: TrainState,
    init: str,
    settings: frontend.FrontEnd,
    spread: Parallel,
    saved: checkpoints.Checkpoints,
    *,
    inputs: Mapping[str, str],
    averaged: bool = False,
) -> tuple[TrainState, str]:
    """The state to train from, on the devices, and what it is, for the log.

    Args:
      state: fresh.
      init: work directory of another run whose encoder to take; '' takes none.
      settings: of this run's front end.
      spread: the devices.
      saved: checkpoints of this run.
      inputs: what its numbers depend on, as of `inputs_of`.
      averaged: whether a moving average of the parameters is kept; it starts from them.

    Raises:
      UserError: where the other run's front end or encoder is another, or this run's data are.
    """

    def with_average(state: TrainState) -> TrainState:
        return state.replace(average=state.live) if averaged else state

    if saved.latest is not None:
        restored = saved.restore(with_average(state), spread.replicated)
        # Not of `latest`: where that was damaged it is the one before.
        said = f"going on from step {int(restored.step)} of this work directory"
        before = saved.meta.get("inputs", {})
        if before.get("data", inputs["data"]) != inputs["data"]:
            raise UserError(
                "config.data holds other recordings than when this run was begun; take another "
                "--workdir, or bring those back"
            )
        changed = config_lib.differences(before, inputs)
        if changed:
            said += f", but not bit for bit: since it was saved, {'; '.join(changed)}"
            logging.warning("%s", said)
        return restored, said
    if init:
        theirs = frontend.FrontEnd(**checkpoints.read_meta(init)["front_end"])
        if theirs != settings:
            raise UserError(
                f"config.init={init} was trained with another front end ({theirs}); "
                "take the config.front_end that it was trained with"
            )
        loaded = checkpoints.restore_item(init, "encoder", state.encoder, spread.replicated)
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
        inputs=workdir.inputs,
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
