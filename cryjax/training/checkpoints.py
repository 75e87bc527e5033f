"""Orbax checkpoints: atomic, asynchronous, in separate items so that each user reads its part.

`encoder` ({'params', 'batch_stats'}), `head` and `optimizer` are trees of arrays; `meta` is JSON:
step, config, front end, encoder, labels and the package's version. Resuming reads all of them;
fine-tuning and probing read `encoder` and `meta`, on any number of devices.

A supervised run has a second folder, `best`, without optimizers: what it did best on validation, or
had at its end. Whoever reads another run's model takes it from there, if it is there.
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
from cryjax.command.errors import UserError
from cryjax.models.encoders import Encoder, make_encoder
from cryjax.models.heads import Classifier
from cryjax.training.steps import TrainState

FOLDER = "checkpoints"
BEST = "best"


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
        "optimizer": {"state": state.opt_state, "step": state.step}
        | ({} if state.average is None else {"average": state.average}),
    }


def _shapes(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, workdir: pathlib.Path, *, folder: str = FOLDER, keep: int = 2):
        """Opens, or makes, `workdir/folder`; the newest `keep` are kept."""
        self._folder = workdir.absolute() / folder
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                enable_async_checkpointing=True,
                # Two managers of a run may save at the same step: their processes must not meet.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    barrier_sync_key_prefix=folder
                ),
            ),
        )

    @property
    def latest(self) -> int | None:
        """Step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, step: int, meta: dict[str, Any]) -> None:
        """Starts saving; the arrays are copied before this returns, so the state may be donated."""
        if step == self.latest:
            return
        self._save(_items(state), step, meta)

    def save_model(self, state: TrainState, step: int, meta: dict[str, Any]) -> None:
        """The same without what only training needs; of two kinds of parameters, the average."""
        if step == self.latest:
            return
        if state.average is not None:
            state = state.replace(**state.average)
        items = _items(state)
        self._save({"encoder": items["encoder"], "head": items["head"]}, step, meta)

    def _save(self, items: dict[str, Any], step: int, meta: dict[str, Any]) -> None:
        saved = {name: args.StandardSave(tree) for name, tree in items.items()}
        self._manager.save(
            step, args=args.Composite(meta=args.JsonSave({**meta, "step": step}), **saved)
        )

    def rewind(self, step: int) -> None:
        """Deletes what was saved after `step`: a resumed run will make it again."""
        for later in self._manager.all_steps():
            if later > step:
                self._manager.delete(later)

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
            average=optimizer.get("average"),
        )

    def wait(self) -> None:
        """Waits for a save under way; raises what went wrong in it."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def _newest(run: str) -> tuple[pathlib.Path, int]:
    """The folder of a run's newest checkpoint, and its step."""
    home = pathlib.Path(run).absolute()
    if not (home / FOLDER).is_dir():
        raise UserError(f"{run}: holds no checkpoints; give the --workdir of a training run")
    for folder in (home / BEST, home / FOLDER):
        found = [int(p.name) for p in folder.glob("*") if p.name.isdigit()]
        if found:
            return folder / str(max(found)), max(found)
    raise UserError(f"{run}: no checkpoint was finished yet; let the run reach its first save")


def read_meta(run: str) -> dict[str, Any]:
    """The `meta` item of a run's newest checkpoint. Raises UserError where there is none."""
    folder, _ = _newest(run)
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        return checkpointer.restore(folder / "meta")


def _leaves(tree: Any) -> dict[str, tuple[int, ...]]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in flat}


def restore_item(run: str, item: str, target: Any, sharding: jax.sharding.Sharding) -> Any:
    """An item of a run's model, in the form of `target`; says of every leaf what became of it.

    Args:
      run: work directory of a training run.
      item: 'encoder' or 'head'.
      target: {'params', 'batch_stats'} of arrays or shapes.
      sharding: where the leaves are to lie.

    Returns:
      The tree of `target`, with the checkpoint's values.

    Raises:
      UserError: where the checkpoint's leaves are not those of `target`, naming the first.
    """
    folder, step = _newest(run)
    saved = _leaves(ocp.StandardCheckpointHandler().metadata(folder / item).tree)
    wanted = _leaves(target)
    for name in sorted(saved.keys() | wanted.keys()):
        state = "loaded" if saved.get(name) == wanted.get(name) else "mismatch"
        logging.info("%s %s %s", state, name, saved.get(name, "missing"))
        if state == "mismatch":
            raise UserError(
                f"{run}: {item} leaf {name} is {saved.get(name, 'missing')} in the checkpoint "
                f"and {wanted.get(name, 'missing')} here; give the encoder.name and "
                "encoder.width that it was trained with"
            )
    logging.info("loaded %d %s leaves of step %d from %s", len(wanted), item, step, run)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder / item, _shapes(target, sharding))


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


@dataclasses.dataclass(frozen=True)
class Trained:
    """A classifier with all that is needed to use it.

    Attributes:
      pretrained: its encoder.
      head: [batch, features] -> logits [batch, classes].
      variables: {'params'} of the head.
      labels: names of the classes.
      multi_label: whether a recording may have several.
    """

    pretrained: Pretrained
    head: Classifier
    variables: Any
    labels: tuple[str, ...]
    multi_label: bool


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
    variables = restore_item(run, "encoder", fresh.variables, sharding)
    return dataclasses.replace(
        fresh, variables=variables, synthetic=bool(read_meta(run)["synthetic"])
    )


def load_trained(run: str) -> Trained:
    """A run's classifier. Raises UserError where the run trained none."""
    pretrained, meta = load_pretrained(run), read_meta(run)
    if not meta["labels"]:
        raise UserError(f"{run} has no classifier; give the --workdir of a fine-tuned run")
    head = Classifier(len(meta["labels"]))
    key, embedding = jax.random.key(0), jnp.zeros((1, pretrained.encoder.features))
    target = {"params": {"head": jax.eval_shape(head.init, key, embedding)["params"]}}
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    restored = restore_item(run, "head", target | {"batch_stats": {}}, sharding)
    return Trained(
        pretrained,
        head,
        {"params": restored["params"]["head"]},
        tuple(meta["labels"]),
        meta["multi_label"],
    )
