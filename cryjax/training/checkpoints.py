"""Orbax checkpoints: atomic, asynchronous, in separate items so that each user reads its part.

`encoder` ({'params', 'batch_stats'}), `head` and `optimizer` are trees of arrays; `meta` is JSON:
step, config, front end, encoder, labels and the package's version. Resuming reads all of them;
fine-tuning and probing read `encoder` and `meta`, on any number of devices.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import args

from cryjax.audio.frontend import FrontEnd
from cryjax.command.program import UserError
from cryjax.models.encoders import Encoder, make_encoder
from cryjax.training.steps import TrainState

FOLDER = "checkpoints"


def _items(state: TrainState) -> dict[str, Any]:
    """The state in the checkpoint's items."""
    head_stats = {k: v for k, v in state.batch_stats.items() if k != "encoder"}
    return {
        "encoder": {
            "params": state.params["encoder"],
            "batch_stats": state.batch_stats["encoder"],
        },
        "head": {
            "params": {k: v for k, v in state.params.items() if k != "encoder"},
            "batch_stats": head_stats,
        },
        "optimizer": {"state": state.opt_state, "step": state.step},
    }


def _shapes(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, workdir: pathlib.Path, *, keep: int = 2):
        """Opens, or makes, `workdir/checkpoints`; the newest `keep` are kept."""
        self._folder = workdir.absolute() / FOLDER
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True),
        )

    @property
    def latest(self) -> int | None:
        """Step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, step: int, meta: dict[str, Any]) -> None:
        """Starts saving; the arrays are copied before this returns, so the state may be donated."""
        if step == self.latest:
            return
        items = {name: args.StandardSave(tree) for name, tree in _items(state).items()}
        self._manager.save(
            step, args=args.Composite(meta=args.JsonSave({**meta, "step": step}), **items)
        )

    def restore(self, state: TrainState, sharding: jax.sharding.Sharding) -> TrainState:
        """The newest checkpoint, in the form of `state` (whose values are not used)."""
        items = {
            name: args.StandardRestore(_shapes(tree, sharding))
            for name, tree in _items(state).items()
        }
        restored = self._manager.restore(self.latest, args=args.Composite(**items))
        encoder, head, optimizer = restored["encoder"], restored["head"], restored["optimizer"]
        return TrainState(
            step=optimizer["step"],
            params={"encoder": encoder["params"], **head["params"]},
            batch_stats={"encoder": encoder["batch_stats"], **head["batch_stats"]},
            opt_state=optimizer["state"],
        )

    def wait(self) -> None:
        """Waits for a save under way; raises what went wrong in it."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def _newest(run: str) -> tuple[pathlib.Path, int]:
    """The folder of a run's newest checkpoint, and its step."""
    folder = pathlib.Path(run).absolute() / FOLDER
    if not folder.is_dir():
        raise UserError(f"{run}: holds no checkpoints; give the --workdir of a training run")
    found = [int(p.name) for p in folder.iterdir() if p.name.isdigit()]
    if not found:
        raise UserError(f"{run}: no checkpoint was finished yet; let the run reach its first save")
    return folder / str(max(found)), max(found)


def read_meta(run: str) -> dict[str, Any]:
    """The `meta` item of a run's newest checkpoint. Raises UserError where there is none."""
    folder, _ = _newest(run)
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        return checkpointer.restore(folder / "meta")


def _leaves(tree: Any) -> dict[str, tuple[int, ...]]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in flat}


def restore_encoder(run: str, target: Any, sharding: jax.sharding.Sharding) -> Any:
    """A run's encoder, in the form of `target`; says of every leaf what became of it.

    Args:
      run: work directory of a training run.
      target: {'params', 'batch_stats'} of arrays or shapes.
      sharding: where the leaves are to lie.

    Returns:
      The tree of `target`, with the checkpoint's values.

    Raises:
      UserError: where the checkpoint's leaves are not those of `target`, naming the first.
    """
    folder, step = _newest(run)
    saved = _leaves(ocp.StandardCheckpointHandler().metadata(folder / "encoder").tree)
    wanted = _leaves(target)
    for name in sorted(saved.keys() | wanted.keys()):
        state = "loaded" if saved.get(name) == wanted.get(name) else "mismatch"
        logging.info("%s %s %s", state, name, saved.get(name, "missing"))
        if state == "mismatch":
            raise UserError(
                f"{run}: encoder leaf {name} is {saved.get(name, 'missing')} in the checkpoint "
                f"and {wanted.get(name, 'missing')} here; give the encoder.name and "
                "encoder.width that it was trained with"
            )
    logging.info("loaded %d encoder leaves of step %d from %s", len(wanted), step, run)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder / "encoder", _shapes(target, sharding))


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """An encoder with all that is needed to use it.

    Attributes:
      encoder: [batch, frames, mels] -> [batch, features].
      variables: {'params', 'batch_stats'} of it.
      settings: of the front end that it was trained with.
      window_samples: length of the crops that it was trained on.
      synthetic: whether synthetic audio went into it.
    """

    encoder: Encoder
    variables: Any
    settings: FrontEnd
    window_samples: int
    synthetic: bool


def untrained(
    encoder: dict[str, Any], settings: FrontEnd, window_seconds: float, seed: int
) -> Pretrained:
    """A randomly initialised encoder: the floor that any pre-training must beat.

    Args:
      encoder: arguments of `make_encoder`.
      settings: of the front end.
      window_seconds: of the windows it will see.
      seed: of the initialisation.
    """
    made = make_encoder(**encoder)
    variables = jax.jit(made.init)(jax.random.key(seed), jnp.zeros((1, 64, settings.mels)))
    return Pretrained(
        made, dict(variables), settings, round(window_seconds * settings.sample_rate), False
    )


def untrained_like(run: str, seed: int) -> Pretrained:
    """`untrained`, of a run's encoder, front end and window."""
    meta = read_meta(run)
    config = meta["config"]
    return untrained(
        config["encoder"], FrontEnd(**meta["front_end"]), config["crop"]["seconds"], seed
    )


def load_pretrained(run: str) -> Pretrained:
    """The encoder of a run's newest checkpoint, from its `encoder` and `meta` alone."""
    fresh = untrained_like(run, 0)
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    variables = restore_encoder(run, fresh.variables, sharding)
    return dataclasses.replace(
        fresh, variables=variables, synthetic=bool(read_meta(run)["synthetic"])
    )
