"""Runs in a process of its own, with 8 fake devices: `python devices.py OUT.npz`.

Takes the same three steps on one device, on eight by shard_map and on eight by pmap, for each
optimizer, and the deliberate faults that the real step must not have. Saves what came of each.
"""

import functools
import os
import sys
from unittest import mock

os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from cryjax.models import ProjectionHead, make_encoder
from cryjax.models.encoders import Encoder
from cryjax.training import losses, optimizers, parallel, steps

RECIPE = {
    "settings": "small_8k",
    "crop": {"seconds": 0.4, "speed": (0.8, 1.25)},
    "transforms": [("mix", {"snr_decibels": (5.0, 20.0)}), ("gain", {"decibels": (-6.0, 6.0)})],
}
BATCH = 32


def make_batch(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    return {
        "audio": rng.integers(-9000, 9000, (BATCH, 6000)).astype(np.int16),
        "length": rng.integers(2000, 6000, BATCH).astype(np.int32),
    }


class LocalStatistics(Encoder):
    """The fault of batch statistics that each device takes from its own share."""

    def clone(self, **changes):
        return super().clone(**(changes | {"axis_name": None}))


def run(
    kind: str, devices: int, optimizer_name: str, count: int = 3, make=make_encoder
) -> dict[str, np.ndarray]:
    """Takes `count` steps; every metric of each, and all of the state at the end."""
    encoder, head = make("cnn6", 1 / 16), ProjectionHead(16, 8)
    rate = {"sgd": 0.1, "adamw": 1e-3, "lars": 1.0}[optimizer_name]
    optimizer = optimizers.make_optimizer(optimizer_name, rate, weight_decay=1e-3)
    spread = parallel.Parallel(kind, jax.devices()[:devices])
    state = spread.replicate(steps.init_state(jax.random.key(0), encoder, head, optimizer, 40))
    step = spread.wrap(
        functools.partial(
            steps.simclr_step,
            encoder=encoder,
            head=head,
            optimizer=optimizer,
            recipe=RECIPE,
            temperature=0.2,
        )
    )
    out = {}
    for n in range(count):
        state, metrics = step(state, spread.shard(make_batch(n)), jax.random.key(1))
        out |= {f"step{n}/metrics/{name}": np.asarray(x) for name, x in metrics.items()}
    tree = {"params": state.params, "stats": state.batch_stats, "opt": state.opt_state}
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return out | {jax.tree_util.keystr(path): np.asarray(x) for path, x in flat}


def faulty_encoder(name: str, width: float) -> Encoder:
    right = make_encoder(name, width)
    fields = {field: getattr(right, field) for field in Encoder.__dataclass_fields__}
    return LocalStatistics(**{k: v for k, v in fields.items() if k not in ("parent", "name")})


def loss_gradient(spread: parallel.Parallel, loss, weights, first, second, reduce=jax.lax.pmean):
    """Gradient of a shared linear map under a loss, averaged as the step averages."""

    def step(weights, batch, _key, axis_name=None):
        def of(weights):
            return loss(batch["first"] @ weights, batch["second"] @ weights, axis_name)

        gradient = jax.grad(of)(weights)
        return gradient if axis_name is None else reduce(gradient, axis_name), {}

    batch = spread.shard({"first": first, "second": second})
    return np.asarray(spread.wrap(step)(spread.replicate(weights), batch, jax.random.key(0))[0])


def faulty_gather(x, axis_name):
    return jax.lax.stop_gradient(jax.lax.all_gather(x, axis_name, tiled=True))


def faulty_columns(batch, axis_name):
    own = jax.numpy.arange(batch)  # as if every device were the first
    return jax.numpy.concatenate([own, own + jax.lax.axis_size(axis_name) * batch])


def gradients() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=(BATCH, 12)).astype(np.float32) for _ in range(2))
    weights = rng.normal(size=(12, 6)).astype(np.float32)

    def loss(block_size):
        return lambda a, b, axis_name: losses.nt_xent(
            a, b, temperature=0.1, axis_name=axis_name, block_size=block_size
        )

    one = parallel.Parallel("jit", jax.devices()[:1])
    out = {"one": loss_gradient(one, loss(None), weights, first, second)}
    for kind in ("jit", "pmap"):
        spread = parallel.Parallel(kind)
        out[f"{kind}/dense"] = loss_gradient(spread, loss(None), weights, first, second)
        out[f"{kind}/blocks"] = loss_gradient(spread, loss(3), weights, first, second)
    spread = parallel.Parallel("jit")

    def local(a, b, axis_name):
        return losses.nt_xent(a, b, temperature=0.1)

    out["fault/local negatives"] = loss_gradient(spread, local, weights, first, second)
    out["fault/device count"] = loss_gradient(
        spread, loss(None), weights, first, second, reduce=jax.lax.psum
    )
    for form, block_size in (("dense", None), ("blocks", 3)):
        with mock.patch.object(losses, "_own_columns", faulty_columns):
            out[f"fault/label offsets, {form}"] = loss_gradient(
                spread, loss(block_size), weights, first, second
            )
    with mock.patch.object(losses, "gather", faulty_gather):
        out["fault/gather"] = loss_gradient(spread, loss(None), weights, first, second)
    return out


if __name__ == "__main__":
    found = {f"gradient/{name}": x for name, x in gradients().items()}
    runs = {
        f"{name}/{kind}{devices}": (kind, devices, name)
        for name in optimizers.NAMES
        for kind, devices in (("jit", 1), ("jit", 8), ("pmap", 8))
    }
    for place, arguments in runs.items():
        found |= {f"{place}/{key}": x for key, x in run(*arguments).items()}
    with mock.patch.multiple(losses, _DENSE_LIMIT=0, _TILE=12):
        for kind in ("jit", "pmap"):
            found |= {f"sgd/{kind}8 tiled/{k}": x for k, x in run(kind, 8, "sgd").items()}
    faulty = run("jit", 8, "sgd", 1, faulty_encoder)
    found |= {f"fault/local statistics/{key}": x for key, x in faulty.items()}
    np.savez(sys.argv[1], **found)
