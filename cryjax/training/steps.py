"""One training step, pure: `step(state, batch, key) -> (state, metrics)`.

Written for one device. With `axis_name` the same function is one device's part of a step over many:
it gathers embeddings, averages gradients and synchronises batch statistics through that axis.
`parallel.py` wraps it; nothing here knows of meshes.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cryjax.audio import augment, frontend
from cryjax.training import losses

Batch = dict[str, jax.Array]  # 'audio': int16 [batch, samples], 'length': int32 [batch]
Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """All that a step reads and writes.

    Attributes:
      step: int32 scalar, steps done.
      params: {'encoder': ..., 'head': ...}, float32.
      batch_stats: {'encoder': ...}, float32.
      opt_state: the optimizer's.
    """

    step: jax.Array
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    opt_state: optax.OptState


def init_state(
    key: jax.Array,
    encoder: nn.Module,
    head: nn.Module,
    optimizer: optax.GradientTransformation,
    mels: int,
) -> TrainState:
    """A fresh state. Every leaf is a function of `key` alone, so every process makes the same."""
    encoder_key, head_key = jax.random.split(key)
    # Parameters do not depend on the number of frames; 64 pass every pooling.
    variables = encoder.init(encoder_key, jnp.zeros((1, 64, mels)))
    embedding = jnp.zeros((1, encoder.features))
    params = {"encoder": variables["params"], "head": head.init(head_key, embedding)["params"]}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats={"encoder": variables["batch_stats"]},
        opt_state=optimizer.init(params),
    )


def simclr_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    encoder: nn.Module,
    head: nn.Module,
    optimizer: optax.GradientTransformation,
    recipe: dict[str, Any],
    temperature: float,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """One step of SimCLR (Chen et al., 2020, algorithm 1).

    Args:
      state: the same on every device.
      batch: this device's share of the global batch, in its order.
      key: the run's base key; the step's own is folded from it.
      encoder: [batch, frames, mels] -> [batch, features].
      head: [batch, features] -> [batch, projection].
      optimizer: of optax.
      recipe: of the views: 'settings', 'crop' and 'transforms' of `augment.view`.
      temperature: of NT-Xent.
      axis_name: the device axis, if there is one.

    Returns:
      The new state, and scalars of the global batch, each the same on every device.
    """
    audio, lengths = batch["audio"], batch["length"]
    start = 0 if axis_name is None else jax.lax.axis_index(axis_name) * audio.shape[0]
    views = augment.two_views(jax.random.fold_in(key, state.step), audio, lengths, start, **recipe)
    spectrograms = jnp.concatenate(views)

    def loss_of(params):
        # Both views in one pass: batch statistics over two passes would differ between the views
        # and give the positive away.
        embeddings, changed = encoder.clone(axis_name=axis_name).apply(
            {"params": params["encoder"], "batch_stats": state.batch_stats["encoder"]},
            spectrograms,
            train=True,
            mutable=["batch_stats"],
        )
        first, second = jnp.split(head.apply({"params": params["head"]}, embeddings), 2)
        loss = losses.nt_xent(first, second, temperature=temperature, axis_name=axis_name)
        return loss, (first, second, changed["batch_stats"])

    (loss, (first, second, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(
        state.params
    )
    if axis_name is not None:
        gradients = jax.lax.pmean(gradients, axis_name)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    state = TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats={"encoder": batch_stats},
        opt_state=opt_state,
    )
    metrics = {
        "loss": loss,
        "gradient_norm": optax.tree.norm(gradients),
        **losses.contrastive_metrics(first, second, axis_name),
    }
    return state, metrics


def embed(
    variables: dict[str, Any],
    audio: jax.Array,
    *,
    encoder: nn.Module,
    settings: frontend.FrontEnd,
) -> jax.Array:
    """Embeds windows in eval mode: [batch, samples] -> float32 [batch, features]."""
    return encoder.apply(
        variables, frontend.log_mel(frontend.to_float(audio), settings), train=False
    )


StepFunction = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]
