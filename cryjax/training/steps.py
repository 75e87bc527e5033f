"""Pure training steps: `step(state, batch, key) -> (state, metrics)`.

Written for one device. With `axis_name` the same function is one device's part of a step over many:
it gathers projections, averages gradients and synchronises batch statistics over that axis.
`parallel.py` wraps it; nothing here knows about meshes.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cryjax.audio import augment, frontend
from cryjax.models import encoders
from cryjax.training import losses

# 'audio': int16 [batch, samples], 'length': int32 [batch]; with labels, 'target': float32
# [batch, classes], 1 where the clip has the label
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class TrainState(flax.struct.PyTreeNode):
    """All that a step reads and writes.

    Attributes:
      step: int32 scalar, steps done.
      params: {'encoder': ..., 'head': ...}, float32.
      batch_stats: {'encoder': ...}, float32.
      opt_state: the optimizer's state.
      average: exponential moving average of `live`, if one is kept.
    """

    step: jax.Array
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    opt_state: optax.OptState
    average: Any = None

    @property
    def encoder(self) -> dict[str, Any]:
        """The encoder's variables, as its `apply` takes them."""
        return {"params": self.params["encoder"], "batch_stats": self.batch_stats["encoder"]}

    @property
    def live(self) -> dict[str, Any]:
        """What the average covers: parameters and the batch statistics that go with them."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def _guarded(
    old: TrainState, new: TrainState, loss: jax.Array, gradients: Any
) -> tuple[TrainState, Metrics]:
    """The new state or, if the loss or a gradient is not finite, the old one a step later.

    So no saved or continued state has ever seen a non-finite value.
    """
    norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        # Counts go on, or the learning rate would fall behind its schedule.
        counts = jnp.issubdtype(new.dtype, jnp.integer)
        return new if counts else jnp.where(finite, new, old)

    kept = jax.tree.map(choose, new, old)
    return kept.replace(step=old.step + 1), {
        "gradient_norm": norm,
        "skipped": 1.0 - finite.astype(jnp.float32),
    }


def init_state(
    key: jax.Array,
    encoder: encoders.Encoder,
    head: nn.Module,
    optimizer: optax.GradientTransformation,
    mels: int,
) -> TrainState:
    """A fresh state. Every leaf is a function of `key` alone, so every process makes the same."""
    encoder_key, head_key = jax.random.split(key)
    variables = encoders.fresh(encoder, encoder_key, mels)
    embedding = jnp.zeros((1, encoder.features))
    params = {"encoder": variables["params"], "head": head.init(head_key, embedding)["params"]}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats={"encoder": variables["batch_stats"]},
        opt_state=optimizer.init(params),
    )


def _gradients(
    params: Any,
    batch_stats: Any,
    views: tuple[jax.Array, jax.Array],
    encoder: nn.Module,
    head: nn.Module,
    loss_of: Callable[[jax.Array, jax.Array], jax.Array],
    chunks: int,
) -> tuple[jax.Array, Any, Any, tuple[jax.Array, jax.Array]]:
    """The loss of two views, its gradients, the new batch statistics and the projections.

    Several chunks are encoded one at a time, keeping only projections; the loss and its gradient
    are taken over all projections, and each chunk is encoded again to backpropagate its share (the
    gradient cache of Gao et al., 2021). The gradients are exact: those of the loss over all
    negatives.
    """
    batch = views[0].shape[0]
    # Both views of an example in one chunk and one pass: batch statistics over two passes would
    # differ between the views and give the positive away.
    parts = jnp.stack([x.reshape(chunks, batch // chunks, *x.shape[1:]) for x in views], axis=1)
    parts = parts.reshape(chunks, 2 * batch // chunks, *views[0].shape[1:])

    def encode(params: Any, part: jax.Array) -> tuple[jax.Array, Any]:
        embeddings, changed = encoder.apply(
            {"params": params["encoder"], "batch_stats": batch_stats},
            part,
            train=True,
            mutable=["batch_stats"],
        )
        projections: Any = head.apply({"params": params["head"]}, embeddings)
        return projections, changed["batch_stats"]

    def halves(projections: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[chunks, 2 x batch / chunks, features] -> the two views, [batch, features] each."""
        split = projections.reshape(chunks, 2, batch // chunks, -1)
        return split[:, 0].reshape(batch, -1), split[:, 1].reshape(batch, -1)

    def loss_and_projections(
        projections: jax.Array,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        first, second = halves(projections)
        return loss_of(first, second), (first, second)

    differentiate = functools.partial(jax.value_and_grad, has_aux=True)
    if chunks == 1:

        def whole(params: Any) -> tuple[jax.Array, Any]:
            projections, stats = encode(params, parts[0])
            loss, views = loss_and_projections(projections[None])
            return loss, (stats, views)

        (loss, (stats, projections)), gradients = differentiate(whole)(params)
        return loss, gradients, stats, projections

    projections = jax.lax.map(lambda part: encode(params, part)[0], parts)
    (loss, projections), cotangents = differentiate(loss_and_projections)(projections)

    def pull_back(total: Any, chunk: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
        part, cotangent = chunk
        _, pull, stats = jax.vjp(lambda params: encode(params, part), params, has_aux=True)
        return jax.tree.map(jnp.add, total, pull(cotangent)[0]), stats

    zeros = jax.tree.map(jnp.zeros_like, params)
    gradients, stats = jax.lax.scan(pull_back, zeros, (parts, cotangents))
    return loss, gradients, jax.tree.map(lambda x: x.mean(axis=0), stats), projections


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
    chunks: int = 1,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """One step of SimCLR (Chen et al., 2020, algorithm 1).

    Args:
      state: the same on every device.
      batch: this device's share of the global batch, in order.
      key: the run's base key; the step's own is folded from it.
      encoder: [batch, frames, mels] -> [batch, features].
      head: [batch, features] -> [batch, projection].
      optimizer: from optax.
      recipe: for the views: 'settings', 'crop' and 'transforms' of `augment.view`.
      temperature: of NT-Xent.
      chunks: encode this device's share in this many pieces, to save memory for a third more work.
        The loss still has all negatives. Batch statistics are then those of a chunk (over all
        devices), and the running ones follow their mean over the chunks.
      axis_name: the device axis, if any.

    Returns:
      The new state, and scalars of the global batch, the same on every device.
    """
    audio, lengths = batch["audio"], batch["length"]
    start = 0 if axis_name is None else jax.lax.axis_index(axis_name) * audio.shape[0]
    views = augment.two_views(jax.random.fold_in(key, state.step), audio, lengths, start, **recipe)
    loss, gradients, batch_stats, (first, second) = _gradients(
        state.params,
        state.batch_stats["encoder"],
        views,
        encoder.clone(axis_name=axis_name),
        head,
        functools.partial(losses.nt_xent, temperature=temperature, axis_name=axis_name),
        chunks,
    )
    if axis_name is not None:
        gradients = jax.lax.pmean(gradients, axis_name)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    updated = state.replace(
        params=optax.apply_updates(state.params, updates),
        batch_stats={"encoder": batch_stats},
        opt_state=opt_state,
    )
    state, guarded = _guarded(state, updated, loss, gradients)
    return state, {
        "loss": loss,
        **guarded,
        **losses.contrastive_metrics(first, second, axis_name),
    }


def _dropout(keys: jax.Array, embeddings: jax.Array, share: float) -> jax.Array:
    """Zeroes this share of each example's features, by its own key, and scales up the others."""
    kept = jax.vmap(lambda key, row: jax.random.bernoulli(key, 1.0 - share, row.shape))(
        keys, embeddings
    )
    return jnp.where(kept, embeddings / (1.0 - share), 0.0)


def _accuracy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Share of examples whose highest logit is one of their labels; if mixed, the weightiest."""
    best = jnp.argmax(logits, axis=-1)[:, None]
    most = targets.max(axis=-1)
    hits = (jnp.take_along_axis(targets, best, axis=-1)[:, 0] >= most) & (most > 0)
    return jnp.mean(hits)


def _averaged(state: TrainState, decay: float) -> TrainState:
    """The state with its moving average, if kept, moved towards its present values.

    The average covers the steps before this one; in the first steps it forgets faster.
    """
    if state.average is None:
        return state
    keep = jnp.minimum(decay, (state.step + 1) / (10.0 + state.step))
    average = jax.tree.map(
        lambda old, new: keep * old + (1.0 - keep) * new, state.average, state.live
    )
    return state.replace(average=average)


def supervised_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    encoder: nn.Module,
    head: nn.Module,
    optimizer: optax.GradientTransformation,
    recipe: dict[str, Any],
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    mixup: float = 0.0,
    dropout: float = 0.0,
    decay: float = 0.0,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """One step of supervised training: from scratch or from a pre-trained encoder.

    Args:
      state: the same on every device.
      batch: this device's share of the global batch, with 'target'.
      key: the run's base key.
      encoder: [batch, frames, mels] -> [batch, features]; `frozen` of its blocks do not learn.
      head: [batch, features] -> logits [batch, classes].
      optimizer: from optax; `optimizers.by_layer` for rates that differ by layer.
      recipe: for the view: 'settings', 'crop' and 'transforms' of `augment.view`.
      loss: (logits, targets) -> [batch], such as `losses.classification`.
      mixup: alpha of its Beta distribution; 0 mixes nothing.
      dropout: share of the embedding's features that are zeroed.
      decay: of the moving average in `state.average`, if kept; lower in the first steps, so that
        the start is forgotten.
      axis_name: the device axis, if any.

    Returns:
      The new state, and scalars of the global batch, the same on every device.
    """
    audio, targets = batch["audio"], batch["target"]
    start = 0 if axis_name is None else jax.lax.axis_index(axis_name) * audio.shape[0]
    step_key = jax.random.fold_in(key, state.step)
    # An example's keys depend on its place in the global batch, not on the devices.
    keys = jax.vmap(lambda place: jax.random.split(jax.random.fold_in(step_key, place), 3))(
        start + jnp.arange(audio.shape[0])
    )
    x = augment.view(keys[:, 0], audio, batch["length"], **recipe)
    if mixup:
        x, targets = augment.mixup(keys[:, 1], x, targets, mixup)

    def loss_of(params: Any) -> tuple[jax.Array, Any]:
        embeddings, changed = encoder.clone(axis_name=axis_name).apply(
            {"params": params["encoder"], "batch_stats": state.batch_stats["encoder"]},
            x,
            train=True,
            mutable=["batch_stats"],
        )
        if dropout:
            embeddings = _dropout(keys[:, 2], embeddings, dropout)
        logits: Any = head.apply({"params": params["head"]}, embeddings)
        return loss(logits, targets).mean(), (logits, changed["batch_stats"])

    (value, (logits, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(
        state.params
    )
    metrics = {"loss": value, "batch_accuracy": _accuracy(logits, targets)}
    if axis_name is not None:
        gradients, metrics = jax.lax.pmean((gradients, metrics), axis_name)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    updated = state.replace(
        params=optax.apply_updates(state.params, updates),
        batch_stats={"encoder": batch_stats},
        opt_state=opt_state,
    )
    state, guarded = _guarded(state, _averaged(updated, decay), metrics["loss"], gradients)
    return state, metrics | guarded


def embed(
    variables: dict[str, Any],
    audio: jax.Array,
    *,
    encoder: nn.Module,
    settings: frontend.FrontEnd,
) -> jax.Array:
    """Embeds windows in eval mode: [batch, samples] -> float32 [batch, features].

    Unlike in training, a float32 encoder has float32's precision on accelerators too, whose default
    is TF32 or bfloat16.
    """
    spectrogram = frontend.log_mel(audio, settings)
    with jax.default_matmul_precision("highest"):
        embedding: Any = encoder.apply(variables, spectrogram, train=False)
    return embedding


def outputs(
    variables: dict[str, Any],
    audio: jax.Array,
    *,
    encoder: nn.Module,
    settings: frontend.FrontEnd,
    head: nn.Module | None = None,
    multi_label: bool = False,
) -> dict[str, jax.Array]:
    """All outputs of a model for windows, in eval mode, as precise as `embed`.

    Args:
      variables: {'encoder': {'params', 'batch_stats'}, 'head': {'params'}}.
      audio: int16 or float [batch, samples].
      encoder: [batch, frames, mels] -> [batch, features].
      settings: of the front end.
      head: [batch, features] -> logits [batch, classes], if any.
      multi_label: a sigmoid for each class, not a softmax over all.

    Returns:
      'embedding', float32 [batch, features]; with a head 'probabilities', [batch, classes].
    """
    embedding = embed(variables["encoder"], audio, encoder=encoder, settings=settings)
    if head is None:
        return {"embedding": embedding}
    with jax.default_matmul_precision("highest"):
        logits: Any = head.apply(variables["head"], embedding)
    probabilities = nn.sigmoid(logits) if multi_label else nn.softmax(logits)
    return {"embedding": embedding, "probabilities": probabilities}


def classify(variables: dict[str, Any], audio: jax.Array, **model: Any) -> jax.Array:
    """Only the probabilities of `outputs`, of a model with a head."""
    return outputs(variables, audio, **model)["probabilities"]


StepFunction = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]
