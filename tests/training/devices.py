"""Runs in a process of its own, with 8 fake devices: `python devices.py OUT.npz`.

Takes the same three steps on one device, on eight by shard_map and on eight by pmap, for each
optimizer, both forms of the loss and the supervised step, and the deliberate faults that the real
step must not have. Saves what came of each. As one of two processes with four devices each, as
CRYJAX_PROCESSES says, it takes the first step of each by shard_map over all eight.
"""

import functools
import os
import sys
from unittest import mock

os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count={8 // int(os.environ.get('CRYJAX_PROCESSES', '1'))} "
    "--xla_backend_optimization_level=0"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from cryjax.models import Classifier, ProjectionHead
from cryjax.models.encoders import Encoder
from cryjax.training import losses, optimizers, parallel, steps

RECIPE = {
    "settings": "small_8k",
    "crop": {"seconds": 0.4, "speed": (0.8, 1.25)},
    "transforms": [("mix", {"snr_decibels": (5.0, 20.0)}), ("gain", {"decibels": (-6.0, 6.0)})],
}
BATCH, CLASSES = 32, 3


def make_batch(step: int) -> dict[str, np.ndarray]:
    """This process's share of the batch of a step."""
    rng = np.random.default_rng(step)
    whole = {
        "audio": rng.integers(-9000, 9000, (BATCH, 6000)).astype(np.int16),
        "length": rng.integers(2000, 6000, BATCH).astype(np.int32),
        "target": np.eye(CLASSES, dtype=np.float32)[rng.integers(CLASSES, size=BATCH)],
    }
    mine = BATCH // jax.process_count()
    start = mine * jax.process_index()
    return {name: x[start : start + mine] for name, x in whole.items()}


# All that an encoder has, and little of it: most of this file's time is compilation.
ENCODER = {"channels": (4, 8), "layers": 1, "size": 3, "pooled": 1, "features": 8}


class LocalStatistics(Encoder):
    """The fault of batch statistics that each device takes from its own share."""

    def clone(self, **changes):
        return super().clone(**(changes | {"axis_name": None}))


def supervised(encoder, head, optimizer, params):
    """The supervised step with all that draws by chance, on a frozen block and decaying rates."""
    return functools.partial(
        steps.supervised_step,
        encoder=encoder.clone(frozen=1),
        head=head,
        optimizer=optimizers.by_layer(optimizer, encoder=0.5, layer_decay=0.8, blocks=2, frozen=1),
        recipe=RECIPE,
        loss=functools.partial(
            losses.classification,
            multi_label=False,
            class_weights=np.array([0.5, 1.0, 1.5], np.float32),
            smoothing=0.1,
        ),
        mixup=0.4,
        dropout=0.3,
        decay=0.9,
    )


def run(
    kind: str,
    devices: int,
    optimizer_name: str,
    count: int = 3,
    make=Encoder,
    labelled: bool = False,
) -> dict[str, np.ndarray]:
    """Takes `count` steps; every metric of each, and all of the state after the first and last."""
    encoder = make(**ENCODER)
    head = Classifier(CLASSES) if labelled else ProjectionHead(16, 8)
    rate = {"sgd": 0.1, "adamw": 1e-3, "lars": 1.0}[optimizer_name]
    optimizer = optimizers.make_optimizer(optimizer_name, rate, weight_decay=1e-3)
    spread = parallel.Parallel(kind, jax.devices()[:devices])
    init = functools.partial(
        steps.init_state, encoder=encoder, head=head, optimizer=optimizer, mels=40
    )
    state = jax.jit(init)(jax.random.key(0))  # compiled as one, which is quicker
    if labelled:
        step = supervised(encoder, head, optimizer, state.params)
        state = state.replace(average=state.live)
    else:
        step = functools.partial(
            steps.simclr_step,
            encoder=encoder,
            head=head,
            optimizer=optimizer,
            recipe=RECIPE,
            temperature=0.2,
        )
    step, state, out = spread.wrap(step), spread.replicate(state), {}
    for n in range(count):
        batch = make_batch(n)
        if not labelled:
            del batch["target"]
        state, metrics = step(state, spread.shard(batch), jax.random.key(1))
        out |= {f"step{n}/metrics/{name}": np.asarray(x) for name, x in metrics.items()}
        tree = {"params": state.params, "stats": state.batch_stats, "opt": state.opt_state}
        tree |= {"average": state.average} if labelled else {}
        flat, _ = jax.tree_util.tree_flatten_with_path(tree)
        for path, x in flat:
            out[jax.tree_util.keystr(path)] = np.asarray(x)
            if n == 0:
                out[f"step0/state{jax.tree_util.keystr(path)}"] = np.asarray(x)
    return out


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


def to_one_device() -> np.ndarray:
    """Values of all devices, taken to one of this process's, as for the pictures of a run."""
    mine = parallel.Parallel(devices=jax.local_devices()[:1])
    values = {"x": np.arange(6, dtype=np.float32)}
    moved = mine.replicate(parallel.Parallel().replicate(values))["x"]
    assert moved.devices() == {jax.local_devices()[0]}
    again = mine.replicate({"x": moved})["x"]
    assert again.unsafe_buffer_pointer() != moved.unsafe_buffer_pointer()
    return np.asarray(again)


def one_process() -> dict[str, np.ndarray]:
    found = {f"gradient/{name}": x for name, x in gradients().items()}
    runs = {
        f"{name}/{kind}{devices}": run(kind, devices, name)
        # What pmap does differently comes before the optimizer: one of them shows it.
        for name, kinds in (("sgd", ("jit", "pmap")), ("adamw", ("jit",)), ("lars", ("jit",)))
        for kind, devices in (("jit", 1), *((kind, 8) for kind in kinds))
    }
    for kind, devices in (("jit", 1), ("jit", 8), ("pmap", 8)):
        runs[f"supervised/{kind}{devices}"] = run(kind, devices, "adamw", labelled=True)
    with mock.patch.multiple(losses, _DENSE_LIMIT=0, _TILE=12):
        runs["sgd/jit8 tiled"] = run("jit", 8, "sgd")
    runs["fault/local statistics"] = run("jit", 8, "sgd", 1, LocalStatistics)
    found["to one device"] = to_one_device()
    return found | {f"{name}/{k}": x for name, values in runs.items() for k, x in values.items()}


def several_processes() -> dict[str, np.ndarray]:
    runs = {"lars": run("jit", 8, "lars", 1)}
    runs["supervised"] = run("jit", 8, "adamw", 1, labelled=True)
    with mock.patch.multiple(losses, _DENSE_LIMIT=0, _TILE=12):
        runs["sgd tiled"] = run("jit", 8, "sgd", 1)
    found = {f"{name}/{k}": x for name, values in runs.items() for k, x in values.items()}
    return found | {"to one device": to_one_device()}


if __name__ == "__main__":
    parallel.join_processes()
    found = one_process() if jax.process_count() == 1 else several_processes()
    if jax.process_index() == 0:
        np.savez(sys.argv[1], **found)
