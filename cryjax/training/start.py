"""How a run begins: a work directory that all processes agree on, and a state.

The state is a checkpoint of the work directory, another run's encoder, or fresh.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from cryjax import __version__
from cryjax.audio import frontend
from cryjax.command import config as config_lib
from cryjax.command.errors import UserError
from cryjax.training import checkpoints, parallel, recipe, summary
from cryjax.training.parallel import Parallel
from cryjax.training.run import Run, Schedule
from cryjax.training.simclr import SimCLR
from cryjax.training.steps import TrainState
from cryjax.training.supervised import Supervised
from cryjax.training.workdir import Workdir


def digest(text: str) -> str:
    """Identifies a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def inputs_of(data: str) -> dict[str, str]:
    """What a run's numbers depend on besides its config: versions and text digests, by name.

    Args:
      data: what the run is trained on, from `leakage.content`.
    """
    home = pathlib.Path(__file__).parents[1]
    sources = {
        str(file.relative_to(home)): file.read_text(encoding="utf-8")
        for file in sorted(home.rglob("*.py"))
    }
    texts = {"cryjax": json.dumps(sources), "data": data}
    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")}
    return versions | {name: digest(text) for name, text in texts.items()}


def open_workdir(path: str, config: Any, data: str, spread: Parallel) -> Workdir:
    """The work directory of a run, once all processes agree on config, data and code.

    Args:
      path: of the directory.
      config: the run's.
      data: same as in `inputs_of`.
      spread: the devices.

    Raises:
      UserError: if they disagree, it holds a run with a different config, or it is not one folder.
      Unavailable: if another job works in it, or its file server is away.
    """
    given, found = config_lib.to_dict(config), inputs_of(data)
    parallel.agree(config=json.dumps(given), **found)
    found["devices"] = spread.described
    first = jax.process_index() == 0
    workdir = parallel.together(lambda: Workdir(path, given, inputs=found, writes=first))
    if jax.process_count() > 1:
        _see_one_folder(workdir)
    return workdir


def describe(
    program: str,
    workdir: Workdir,
    settings: frontend.FrontEnd,
    *,
    segment_seconds: float,
    synthetic: bool,
    labels: Sequence[str] = (),
    multi_label: bool = False,
) -> dict[str, Any]:
    """What all checkpoints of a run say of it in their `meta`.

    Args:
      program: that makes them.
      workdir: the run's, which has its config and inputs.
      settings: the front end.
      segment_seconds: maximum length of what it was trained on.
      synthetic: whether any audio was synthesised, not recorded.
      labels: class names, of a classifier.
      multi_label: whether a recording may have several of them.
    """
    return {
        "program": program,
        "version": __version__,
        "inputs": workdir.inputs,
        "config": workdir.config,
        "front_end": dataclasses.asdict(settings),
        "segment_seconds": segment_seconds,
        "synthetic": synthetic,
        "labels": list(labels),
        "multi_label": multi_label,
    }


def _see_one_folder(workdir: Workdir) -> None:
    """Waits until all processes see a file that the first has written.

    Without this, the first save would hang where they have different folders.

    Raises:
      UserError: if they do not within two minutes.
    """
    # A name that no host has looked for, so that none remembers that there is no such file.
    token = parallel.everyone(np.frombuffer(os.urandom(8), np.int32))[0]
    mark = workdir.path / f".shared-{token.tobytes().hex()}"
    try:
        if workdir.writes:
            mark.touch()
        for _ in parallel.attempts():
            blind = np.flatnonzero(~parallel.everyone(np.array(mark.exists())))
            if not blind.size:
                return
    finally:
        if workdir.writes:
            mark.unlink(missing_ok=True)
    raise UserError(
        f"{workdir.path}: process {', '.join(map(str, blind))} of this job does not see what the "
        "first writes there; give all hosts one file system for --workdir"
    )


def _chosen(init: str) -> tuple[pathlib.Path, dict[str, Any]]:
    """The checkpoint of another run to start from, the same in all processes, and its meta.

    The other run may be saving, or a file server may show some processes an older one.
    """

    def found() -> tuple[pathlib.Path, dict[str, Any]]:
        folder = checkpoints.newest(init)
        return folder, checkpoints.meta_of(folder)

    folder, meta = parallel.together(found)
    which = [folder.parent.name, folder.name, meta.get("checksums", {})]
    parallel.agree(**{f"the newest checkpoint of config.init={init}": json.dumps(which)})
    return folder, meta


def start_state(
    make: Callable[[], TrainState],
    init: str,
    settings: frontend.FrontEnd,
    spread: Parallel,
    saved: checkpoints.Checkpoints,
    *,
    inputs: Mapping[str, str],
    averaged: bool = False,
) -> tuple[TrainState, str]:
    """The state to train from, on the devices, and its description for the log.

    Args:
      make: makes a fresh one; only its shapes are taken if the run resumes.
      init: another run's work directory to take the encoder from; '' for none.
      settings: this run's front end.
      spread: the devices.
      saved: this run's checkpoints.
      inputs: what its numbers depend on, from `inputs_of`.
      averaged: whether to keep a moving average of the parameters, starting from them.

    Raises:
      UserError: if the other run's front end or encoder differs, or this run's data changed.
      Unavailable: if a checkpoint's file server is away.
    """

    def with_average(state: TrainState) -> TrainState:
        return state.replace(average=state.live) if averaged else state

    if saved.latest is not None:
        restored = saved.restore(with_average(jax.eval_shape(make)), spread.replicated)
        # Not `latest`: if that was damaged, an earlier one was restored.
        started = f"resuming from step {int(restored.step)} of this work directory"
        before = saved.meta.get("inputs", {})
        if before.get("data", inputs["data"]) != inputs["data"]:
            raise UserError(
                "config.data, less any config.exclude_subjects, holds different recordings than "
                "when this run began; use another --workdir, or restore the old ones"
            )
        changed = config_lib.differences(before, inputs)
        if changed:
            started += f", but not bit for bit; changed since it was saved: {'; '.join(changed)}"
            logging.warning("%s", started)
        return restored, started
    state = make()
    if init:
        folder, meta = _chosen(init)
        theirs = frontend.FrontEnd(**meta["front_end"])
        if theirs != settings:
            raise UserError(
                f"config.init={init} was trained with another front end ({theirs}); "
                "use the config.front_end that it was trained with"
            )
        loaded = checkpoints.restore_item(
            init, "encoder", state.encoder, spread.replicated, folder=folder
        )
        started = f"starting from the encoder of {init}, with a fresh head and optimizer"
        state = state.replace(
            params=state.params | {"encoder": loaded["params"]},
            batch_stats=state.batch_stats | {"encoder": loaded["batch_stats"]},
        )
    else:
        started = "starting fresh"
    return spread.replicate(with_average(state)), started


def begin(
    config: Any,
    parts: SimCLR | Supervised,
    spread: Parallel,
    workdir: Workdir,
    data: Sequence[str],
    *,
    meta: dict[str, Any],
    examples: int,
    evaluate_every: str,
    averaged: bool = False,
) -> tuple[TrainState, Run]:
    """Gets the state to train from, drops later metrics, and logs a summary.

    Args:
      config: the run's.
      parts: the run's.
      spread: the devices.
      workdir: the run's.
      data: what there is to train on, one line each.
      meta: from `describe`.
      examples: per epoch.
      evaluate_every: a length as in configs.
      averaged: same as in `start_state`.

    Returns:
      The state, on the devices, and what `loop.train` needs to know of the run.

    Raises:
      UserError, Unavailable: same as in `start_state`.
    """
    if vain := recipe.without_effect(config):
        logging.warning("%s", vain)
    saved, key = checkpoints.Checkpoints(workdir.path), jax.random.key(config.seed)
    state, started = start_state(
        functools.partial(jax.jit(parts.init), key),
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
    run = Run(
        key=key,
        schedule=Schedule.of(config, parts.plan, evaluate_every),
        learning_rate=parts.plan.learning_rate,
        parallel=spread,
        checkpoints=saved,
        workdir=workdir,
        meta=meta,
        skip=config.nonfinite == "skip",
    )
    return state, run
