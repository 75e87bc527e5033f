"""SGD, AdamW and LARS with warm-up, cosine decay and the usual exclusions."""

from typing import Any

import jax
import optax

NAMES = ("sgd", "adamw", "lars")
SCALINGS = ("none", "linear", "sqrt")


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
        return optax.adamw(rate, weight_decay=weight_decay, mask=weights_only)
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


def rate_scales(
    params: Any, *, encoder: float = 1.0, layer_decay: float = 1.0, blocks: int = 0, frozen: int = 0
) -> Any:
    """Factors for the updates of each leaf, for rates that differ by layer.

    Args:
      params: {'encoder', 'head'} as in a classifier's state.
      encoder: rate of the encoder's last layer relative to the head's.
      layer_decay: further factor for each layer below that one (Clark et al., 2020).
      blocks: number of encoder blocks.
      frozen: this many blocks, from the first, do not change: their scale is 0.

    Returns:
      A tree like `params`, of numbers. A block's depth is its number; the input's batch norm
      belongs to the first block, and the dense layer is one deeper than the last.
    """

    def of_layer(name: str) -> float:
        depth = {"norm0": 1, "dense": blocks + 1}.get(name) or int(name.removeprefix("block"))
        return 0.0 if depth <= frozen else encoder * layer_decay ** (blocks + 1 - depth)

    def filled(tree: Any, scale: float) -> Any:
        return jax.tree.map(lambda _: scale, tree)

    layers = params["encoder"].items()
    return {
        "encoder": {name: filled(leaves, of_layer(name)) for name, leaves in layers},
        "head": filled(params["head"], 1.0),
    }
