"""SGD, AdamW and LARS with warm-up, cosine decay and the usual exclusions."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

NAMES = ("sgd", "adamw", "lars")
SCALINGS = ("none", "linear", "sqrt")
_MOMENT_DECAYS = (0.9, 0.999)  # of AdamW's first and second moment


def base_rate(learning_rate: float, batch_size: int, scaling: str) -> float:
    """The peak learning rate for a global batch (You et al., 2017; Chen et al., 2020, B.1).

    Args:
      learning_rate: at a batch of 256 if 'linear', of 1 if 'sqrt'.
      batch_size: global.
      scaling: 'none', 'linear' or 'sqrt'.
    """
    if scaling not in SCALINGS:
        raise ValueError(f"optimizer.scaling={scaling!r}: use one of {', '.join(SCALINGS)}")
    factor = {"none": 1.0, "linear": batch_size / 256, "sqrt": batch_size**0.5}[scaling]
    return learning_rate * factor


def schedule(peak: float, total_steps: int, warmup_steps: int) -> optax.Schedule:
    """Linear from 0 to `peak` over the warm-up, then a cosine to 0 at `total_steps`."""
    if warmup_steps == 0:
        return optax.cosine_decay_schedule(peak, total_steps)
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, total_steps)


def weights_only(params: Any) -> Any:
    """True for kernels, False for biases and batch norm scales, which have one dimension."""
    return jax.tree.map(lambda x: x.ndim > 1, params)


def make_optimizer(
    name: str, rate: optax.ScalarOrSchedule, *, weight_decay: float, momentum: float = 0.9
) -> optax.GradientTransformation:
    """An optimizer that neither decays nor LARS-scales biases and batch norm.

    Args:
      name: 'sgd' and 'lars' add the decay to the gradient; 'adamw' decouples it.
      rate: learning rate, or a schedule of it.
      weight_decay: at least 0.
      momentum: of 'sgd' and 'lars'.
    """
    if name == "sgd":
        return optax.chain(
            optax.add_decayed_weights(weight_decay, mask=weights_only),
            optax.sgd(rate, momentum=momentum),
        )
    if name == "adamw":
        return optax.adamw(rate, *_MOMENT_DECAYS, weight_decay=weight_decay, mask=weights_only)
    if name == "lars":
        return optax.lars(
            rate,
            weight_decay=weight_decay,
            weight_decay_mask=weights_only,
            trust_coefficient=0.001,
            trust_ratio_mask=weights_only,
            momentum=momentum,
        )
    raise ValueError(f"optimizer.name={name!r}: use one of {', '.join(NAMES)}")


def by_layer(
    optimizer: optax.GradientTransformation,
    *,
    encoder: float = 1.0,
    layer_decay: float = 1.0,
    blocks: int = 0,
    frozen: int = 0,
    thawed: Mapping[int, int] = {},
) -> optax.GradientTransformation:
    """An optimizer whose updates differ by layer; `init` is that of `optimizer`.

    A block's depth is its number; the input's batch norm belongs to the first block, and the dense
    layer is one deeper than the last.

    Args:
      optimizer: for parameters {'encoder', 'head'} as in a classifier's state.
      encoder: rate of the encoder's last layer relative to the head's.
      layer_decay: further factor for each layer below that one (Clark et al., 2020).
      blocks: number of encoder blocks.
      frozen: this many blocks, from the first, do not change: the optimizer sees neither them nor
        their gradients.
      thawed: depth -> steps that it was frozen for; only for AdamW, which corrects the bias of its
        moments by the count of all steps. A block's are empty when it thaws: for hundreds of steps
        its updates would be up to six times too large.
    """

    def depth(path: Any) -> int | None:
        """That of a parameter; None in the head."""
        part, layer = path[0].key, path[1].key
        if part == "head":
            return None
        return {"norm0": 1, "dense": blocks + 1}.get(layer) or int(layer.removeprefix("block"))

    def stays(path: Any) -> bool:
        place = depth(path)
        return place is not None and place <= frozen

    def live(tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, x: jnp.zeros_like(x) if stays(path) else x, tree
        )

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = optimizer.update(live(gradients), state, live(params))

        def scaled(path: Any, x: jax.Array) -> jax.Array:
            place = depth(path)
            if place is None:
                return x
            if stays(path):
                return jnp.zeros_like(x)
            scale: Any = encoder * layer_decay ** (blocks + 1 - place)
            if before := thawed.get(place, 0):
                count = optax.tree.get_all_with_path(state, "count")[0][1]
                scale *= _correction(count - before) / _correction(count)
            return scale * x

        return jax.tree_util.tree_map_with_path(scaled, updates), state

    return optax.GradientTransformation(optimizer.init, update)


def _correction(steps: jax.Array) -> jax.Array:
    """What AdamW's bias correction multiplies an update by after these steps."""
    first, second = (1.0 - decay ** steps.astype(jnp.float32) for decay in _MOMENT_DECAYS)
    return jnp.sqrt(second) / first
