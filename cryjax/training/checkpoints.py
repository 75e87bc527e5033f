"""Orbax checkpoints: atomic, asynchronous, in separate items so that each reader loads its part.

`encoder` ({'params', 'batch_stats'}), `head` and `optimizer` are trees of arrays; `meta` is JSON:
what `start.describe` says of the run, the step, the metrics of steps not yet logged, and a checksum
of every array. Resuming reads all of them; fine-tuning and probing read `encoder` and `meta`, on
any number of devices.

A supervised run has a second folder, `best`, without optimizer state: the best step on validation,
or the last if none was scored. Another run's model is read from there, if it exists.
"""

import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import args

from cryjax.command.errors import Unavailable, UserError, away, one_line, passes
from cryjax.training import parallel
from cryjax.training.steps import TrainState

FOLDER = "checkpoints"
BEST = "best"
_SAVE_SECONDS = 600
_READ, _DAMAGED, _AWAY = range(3)  # what came of reading a checkpoint


def _items(state: TrainState) -> dict[str, Any]:
    """The state as the checkpoint's items."""
    head_stats = {k: v for k, v in state.batch_stats.items() if k != "encoder"}
    return {
        "encoder": state.encoder,
        "head": {
            "params": {k: v for k, v in state.params.items() if k != "encoder"},
            "batch_stats": head_stats,
        },
        "optimizer": {"state": state.opt_state, "step": state.step}
        | ({} if state.average is None else {"average": state.average}),
    }


def _named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree, keyed by path."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


@jax.jit
def _sums(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    def total(x: jax.Array) -> jax.Array:
        words = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(x, words).astype(jnp.uint32).ravel()
        return jnp.sum(bits * (2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1), dtype=jnp.uint32)

    return jax.tree.map(total, leaves)


def checksums(tree: Any) -> dict[str, int]:
    """One number per leaf, which changes if any one of the leaf's values does.

    The sum of the leaf's words, each times an odd number of its own, modulo 2^32. Computed where
    the arrays are, so it costs one pass over them and no copy.
    """
    return {name: int(total) for name, total in jax.device_get(_sums(_named(tree))).items()}


def _damaged(items: dict[str, Any], meta: dict[str, Any]) -> list[str]:
    """Names of the restored leaves that differ from what was saved."""
    found = checksums(items)
    saved = meta.get("checksums", {})
    return [name for name, total in found.items() if saved.get(name, total) != total]


def _shapes(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _read_items(
    folder: pathlib.Path, items: dict[str, Any], sharding: jax.sharding.Sharding
) -> tuple[dict[str, Any], int, str]:
    """A checkpoint's `meta` and items, in the form of `items`; what came of it, and why.

    Uses Orbax's handlers, not its manager, which makes processes wait for each other, so that one
    that fails would leave the others waiting.
    """
    try:
        restored = {"meta": ocp.JsonCheckpointHandler().restore(folder / "meta")}
        for name, tree in items.items():
            wanted = args.StandardRestore(_shapes(tree, sharding))
            restored[name] = ocp.StandardCheckpointHandler().restore(folder / name, args=wanted)
    except Exception as error:  # whatever Orbax and its storage raise for a torn file
        came = _AWAY if passes(error) else _DAMAGED
        return {}, came, f"{type(error).__name__}: {one_line(error)}"
    if wrong := _damaged({name: restored[name] for name in items}, restored["meta"]):
        return {}, _DAMAGED, f"{wrong[0]} is not what was saved"
    return restored, _READ, ""


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, workdir: pathlib.Path, *, folder: str = FOLDER, keep: int = 2):
        """Opens or creates `workdir/folder`, which keeps the newest `keep` checkpoints.

        Attributes:
          meta: of the restored checkpoint; empty before.
        """
        self.meta: dict[str, Any] = {}
        self._saving = False  # whether a save has begun that `check` has not seen end
        self._folder = workdir.absolute() / folder
        if jax.process_index() == 0:
            # Saves that were killed: no later one need be of the same step and replace it. Orbax
            # would remove them in a thread that outlives the program.
            for left in self._folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
                shutil.rmtree(left, ignore_errors=True)
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                enable_async_checkpointing=True,
                # How long other processes wait for one whose disk fails.
                async_options=ocp.AsyncOptions(timeout_secs=_SAVE_SECONDS),
                # Two managers of a run may save at the same step: their barriers must differ.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    barrier_sync_key_prefix=folder
                ),
            ),
        )
        self._see_the_same()

    def _see_the_same(self) -> None:
        """Waits until all processes see the same checkpoints.

        A file server may show the newest to one process a minute late; that process would resume
        from an older one, and train with other parameters than the rest.

        Raises:
          Unavailable: if they do not within two minutes.
        """
        for _ in parallel.attempts():
            self._manager.reload()
            newest = sorted(self._manager.all_steps())[-8:]
            padded = np.full(8, -1, np.int32)
            padded[: len(newest)] = newest
            seen = parallel.everyone(padded)
            if (seen == seen[0]).all():
                return
        raise Unavailable(
            f"{self._folder}: processes of this job see different checkpoints (this one: "
            f"{newest}); give all hosts one file system for --workdir"
        )

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, step: int, meta: dict[str, Any]) -> None:
        """Starts saving; the arrays are copied before this returns, so the state may be donated."""
        if step == self.latest:
            return
        self._save(_items(state), step, meta)

    def save_model(self, state: TrainState, step: int, meta: dict[str, Any]) -> None:
        """Same as `save`, without training-only state; saves the average parameters, if kept."""
        if step == self.latest:
            return
        if state.average is not None:
            state = state.replace(**state.average)
        items = _items(state)
        model = {name: items[name] for name in ("encoder", "head")}
        self._save({name: tree for name, tree in model.items() if tree["params"]}, step, meta)

    def _save(self, items: dict[str, Any], step: int, meta: dict[str, Any]) -> None:
        sums = checksums(items)
        every = parallel.everyone(np.array([*sums.values()], np.uint32))
        if (apart := (every != every[0]).any(axis=0)).any():
            logging.warning(
                "step %d: %s and %d other arrays differ between processes: a machine computes "
                "wrongly, or they have diverged; resume from an older checkpoint",
                step, [*sums][int(apart.argmax())], apart.sum() - 1,
            )  # fmt: skip
        meta = {**meta, "step": step, "checksums": sums}
        saved = {name: args.StandardSave(tree) for name, tree in items.items()}
        self._manager.save(step, args=args.Composite(meta=args.JsonSave(meta), **saved), force=True)
        self._saving = True

    def check(self) -> None:
        """Raises the error of a failed save as soon as it is known; does not wait.

        Does not use the manager's `check_for_errors`: its thread has taken the error by then.
        """
        if self._saving and not self._manager.is_saving_in_progress():
            self._saving = False  # only once per save: waiting writes lines to the log
            self._manager.wait_until_finished()

    def rewind(self, step: int) -> None:
        """Deletes what was saved after `step`: a resumed run will save it again."""
        for later in self._manager.all_steps():
            if later > step:
                self._manager.delete(later)

    def restore(self, state: TrainState, sharding: jax.sharding.Sharding) -> TrainState:
        """The newest intact checkpoint, in the form of `state` (whose values are not used).

        Damaged ones are warned about and, once an earlier one is found intact, set aside as
        'damaged-STEP'.

        Raises:
          UserError: if none is intact.
          Unavailable: if only some processes can read one, or its file server is away.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for place, step in enumerate(steps):
            restored, reason = self._read(step, state, sharding)
            if restored is not None:
                self._set_aside(steps[:place])
                return restored
            logging.warning("checkpoint %d of %s is damaged: %s", step, self._folder, reason)
        raise UserError(
            f"{self._folder}: none of the checkpoints {', '.join(map(str, steps))} is intact, so "
            "this run cannot resume; use another --workdir to start over"
        )

    def _set_aside(self, steps: Sequence[int]) -> None:
        """Renames damaged checkpoints, so that the run can save those steps again."""
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                before = len([*self._folder.glob(f"damaged-{step}*")])
                aside = f"damaged-{step}" + "-again" * before
                (self._folder / str(step)).rename(self._folder / aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("set damaged checkpoints aside")
        self._manager.reload()

    def _read(
        self, step: int, state: TrainState, sharding: jax.sharding.Sharding
    ) -> tuple[TrainState | None, str]:
        """A checkpoint, or why it cannot be used; the same in every process.

        Raises:
          Unavailable: if only some processes can read it, or its file server is away.
        """
        folder, came, reason = self._folder / str(step), _AWAY, ""
        for _ in parallel.attempts():
            if came != _READ:
                restored, came, reason = _read_items(folder, _items(state), sharding)
            everywhere = parallel.everyone(np.array(came))
            if (everywhere == _DAMAGED).all():
                return None, reason
            if (everywhere == _READ).all():
                break
        else:
            failed = np.flatnonzero(everywhere)
            others = "" if len(failed) == len(everywhere) else ", but others can"
            raise Unavailable(
                f"{folder}: process {', '.join(map(str, failed))} of this job cannot read it"
                f"{others}{f' ({reason})' if reason else ''}; if that stays so, move it away, and "
                "the one before it is used"
            )
        self.meta = restored["meta"]
        encoder, head, optimizer = restored["encoder"], restored["head"], restored["optimizer"]
        return TrainState(
            step=optimizer["step"],
            params={"encoder": encoder["params"], **head["params"]},
            batch_stats={"encoder": encoder["batch_stats"], **head["batch_stats"]},
            opt_state=optimizer["state"],
            average=optimizer.get("average"),
        ), ""

    def wait(self) -> None:
        """Waits for a save in progress; raises its error if it failed."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def newest(run: str) -> pathlib.Path:
    """The folder of a run's newest model, from `best` if it exists. Raises UserError if none."""
    home = pathlib.Path(run).absolute()
    if not (home / FOLDER).is_dir():
        raise UserError(f"{run}: holds no checkpoints; give the --workdir of a training run")
    for folder in (home / BEST, home / FOLDER):
        found = [int(p.name) for p in folder.glob("*") if p.name.isdigit()]
        if found:
            return folder / str(max(found))
    raise UserError(f"{run}: no checkpoint is finished yet; wait for the run's first save")


def read_meta(run: str) -> dict[str, Any]:
    """The `meta` item of a run's model, as in `newest`; raises as `newest` and `meta_of`."""
    return meta_of(newest(run))


def meta_of(folder: pathlib.Path) -> dict[str, Any]:
    """The `meta` item of the checkpoint in a folder.

    Raises:
      UserError: if it is damaged.
      Unavailable: if its file server is away.
    """
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            return checkpointer.restore(folder / "meta")
    except (OSError, ValueError) as error:
        raise _unreadable(folder, f"meta: {type(error).__name__}", error) from error


def _unreadable(
    folder: pathlib.Path, reason: str, error: Exception | None = None
) -> UserError | Unavailable:
    if error is not None and passes(error):
        return away(folder, error)
    return UserError(
        f"{folder}: damaged ({reason}), unless its run has just replaced it: run the same command "
        "again; if this recurs, move it away, and the one before it is used"
    )


def leaf_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of a tree's leaves, keyed by path, as in 'params/norm0/scale'."""
    return {name: x.shape for name, x in _named(tree).items()}


def restore_item(
    run: str,
    item: str,
    target: Any,
    sharding: jax.sharding.Sharding,
    *,
    listed: bool = True,
    folder: pathlib.Path | None = None,
) -> Any:
    """An item of a run's model, in the form of `target`; logs whether each leaf was loaded.

    Args:
      run: work directory of a training run.
      item: 'encoder' or 'head'.
      target: {'params', 'batch_stats'} of arrays or shapes.
      sharding: where to place the leaves.
      listed: whether to log every leaf, in the first process.
      folder: the checkpoint's; `newest(run)` if None.

    Returns:
      The tree of `target`, with the checkpoint's values.

    Raises:
      UserError: if the item is damaged, or its leaves differ from `target`'s, naming the first.
      Unavailable: if its file server is away.
    """
    folder, listed = folder or newest(run), listed and jax.process_index() == 0
    try:
        saved = leaf_shapes(ocp.StandardCheckpointHandler().metadata(folder / item).tree)
    except Exception as error:  # whatever Orbax and its storage raise for a torn file
        raise _unreadable(folder, type(error).__name__, error) from error
    wanted = leaf_shapes(target)
    for name in sorted(saved.keys() | wanted.keys()):
        state = "loaded" if saved.get(name) == wanted.get(name) else "mismatch"
        if listed:
            logging.info("%s %s %s", state, name, saved.get(name, "missing"))
        if state == "mismatch":
            remedy = (
                "give the encoder.name and encoder.width that it was trained with"
                if item == "encoder"
                else "the run is damaged, make it again"
            )
            raise UserError(
                f"{run}: {item} leaf {name} is {saved.get(name, 'missing')} in the checkpoint "
                f"and {wanted.get(name, 'missing')} here; {remedy}"
            )
    if listed:
        logging.info(
            "loaded %d %s leaves of step %d from %s", len(wanted), item, int(folder.name), run
        )
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            restored = checkpointer.restore(folder / item, _shapes(target, sharding))
    except Exception as error:  # as above
        raise _unreadable(folder, type(error).__name__, error) from error
    if wrong := _damaged({item: restored}, meta_of(folder)):
        raise _unreadable(folder, wrong[0])
    return restored
