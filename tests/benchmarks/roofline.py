"""Where the time of a SimCLR step goes, block by block, against what the machine can do.

    python tests/benchmarks/roofline.py [--encoder=cnn14] [--batch=16] [--out=FILE.json]
    python tests/benchmarks/roofline.py --platform=gpu --dtype=bfloat16 --batch=256

The machine's two peaks are measured first: a matrix product in the step's type, and a pass over a
large array that reads and writes it. Then each block, forward and backward, is compiled and timed
alone: the views with their front end (no gradient), batch norm over bands, each block of
convolutions with its pooling, the dense layer at the end, the projection head with the loss, AdamW.

For each it prints the operations of its convolutions and matrix products in direct form, counted by
hand (a multiply-add is two, the backward pass is two forward ones, zero padding counts), and XLA's
own count of all operations and of the bytes that its program moves. XLA counts a program with each
convolution as one operation: it would count a loop, which is how cryjax computes a convolution on a
CPU, as one iteration. The least time is that of the hand-counted operations or of the bytes,
whichever is longer; the share is the least time over the measured time. A share over 1 is possible:
a CPU's last-level cache is faster than its memory.
"""

import argparse
import functools
import os
import pathlib
import statistics
import time

import ours
import peers


def timed(function, arguments, repeats: int) -> float:
    """Median seconds of a compiled function; the first two calls do not count."""
    import jax

    seconds = []
    for _ in range(2 + repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


def peaks(platform: str, dtype: str) -> tuple[float, float]:
    """Operations and bytes per second, best of several."""
    import jax
    import jax.numpy as jnp

    size, count = (2048, 2**26) if platform == "cpu" else (8192, 2**29)
    x = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
    rates = [2 * size**3 / timed(jax.jit(jnp.matmul), (x, x), 3) for _ in range(3)]
    y = jnp.zeros((count,), jnp.float32)
    # In place: memory that is touched for the first time is slower on a CPU.
    add = jax.jit(lambda y: y + 1.0, donate_argnums=0)

    def once():
        nonlocal y
        y = add(y)
        return y

    copies = [2 * y.nbytes / timed(once, (), 3) for _ in range(3)]
    return max(rates), max(copies)


def blocks_of(config, parts, batch, state):
    """(name, pure function, its arguments, operations in direct form) for each part of a step."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    from cryjax.audio import augment
    from cryjax.models import ProjectionHead, encoders
    from cryjax.training import losses, recipe

    encoder, key = parts.encoder, jax.random.key(0)
    draw = functools.partial(augment.two_views, **recipe.view_recipe(config))
    settings = parts.plan.settings
    views, frames = 2 * config.batch_size, settings.frames(round(config.crop.seconds * 16_000))
    bins = 1 + settings.window_length // 2
    # Only XLA counts the Fourier transform: it is no matrix product.
    filters = 2 * views * frames * bins * settings.mels
    yield "views", draw, (key, batch["audio"], batch["length"]), filters

    class Norm(nn.Module):
        @nn.compact
        def __call__(self, x):
            norm = nn.BatchNorm(use_running_average=False, dtype=jnp.float32, name="norm0")
            return norm(x)[..., None].astype(encoder.dtype)

    class Block(nn.Module):
        features: int
        pooled: bool

        @nn.compact
        def __call__(self, x):
            shape = self.features, encoder.layers, encoder.size
            return encoders.ConvBlock(*shape, self.pooled, learns=True, dtype=encoder.dtype)(x)

    class Top(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = x.mean(axis=2)
            x = x.max(axis=1) + x.mean(axis=1)
            return nn.relu(nn.Dense(encoder.features, dtype=encoder.dtype)(x)).astype(jnp.float32)

    class Loss(nn.Module):
        @nn.compact
        def __call__(self, x):
            first, second = jnp.split(ProjectionHead(**config.head)(x), 2)
            return losses.nt_xent(first, second, temperature=config.temperature)

    def backward(module, x, with_input=True):
        """A module's forward and backward pass, its arguments, its output."""
        variables = jax.jit(module.init)(key, x)
        stats = {name: value for name, value in variables.items() if name != "params"}

        def apply(params, x):
            return module.apply({"params": params, **stats}, x, mutable=["batch_stats"])

        y = jax.jit(lambda params, x: apply(params, x)[0])(variables["params"], x)

        def both(params, x, cotangent):
            if with_input:
                _, pull, changed = jax.vjp(apply, params, x, has_aux=True)
            else:
                _, pull, changed = jax.vjp(lambda p: apply(p, x), params, has_aux=True)
            return pull(cotangent), changed

        return both, (variables["params"], x, jnp.ones_like(y)), y

    x = jax.random.normal(key, (views, frames, settings.mels))
    function, arguments, x = backward(Norm(), x, with_input=False)
    yield "norm of bands", function, arguments, 0
    inputs = 1
    for place, features in enumerate(encoder.channels, 1):
        height, width = x.shape[1:3]
        each = 2 * views * height * width * encoder.size**2
        layers = [inputs, *[features] * (encoder.layers - 1)]
        operations = 3 * each * features * sum(layers)
        function, arguments, x = backward(Block(features, place <= encoder.pooled), x)
        yield f"block {place}", function, arguments, operations
        inputs = features
    function, arguments, x = backward(Top(), x)
    yield "dense", function, arguments, 3 * 2 * views * inputs * encoder.features
    function, arguments, _ = backward(Loss(), x)
    hidden, out = config.head.hidden, config.head.features
    sizes = encoder.features * hidden + hidden * out + views * out
    yield "head and loss", function, arguments, 3 * 2 * views * sizes

    def update(params, gradients, opt_state):
        updates, opt_state = parts.plan.optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    yield "AdamW", update, (state.params, state.params, state.opt_state), 0


def counted(function, arguments) -> tuple[float, float]:
    """XLA's count of operations and bytes, each convolution one operation."""
    import jax

    from cryjax.models import conv

    kept, conv.convolve = conv.convolve, conv._convolve_native
    try:
        # A new function, or the already traced program would be reused.
        lowered = jax.jit(lambda *x: function(*x)).lower(*arguments)
    finally:
        conv.convolve = kept
    operations = lowered.cost_analysis()["flops"]
    analysis = lowered.compile().cost_analysis()
    return operations, analysis["bytes accessed"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="cnn14")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--platform", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, default=16, help="clips; twice as many views")
    parser.add_argument("--crop_seconds", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = {"gpu": "cuda,cpu"}.get(options.platform, "cpu")
    import jax

    compute, memory = peaks(options.platform, options.dtype)
    device = jax.devices()[0].device_kind
    print(f"{device}, JAX {jax.__version__}: {compute / 1e9:.0f} GFLOP/s, {memory / 1e9:.1f} GB/s")
    config = ours.config_of("simclr", options)
    step = ours.Step("simclr", config)
    whole = timed(step, (), options.repeats)
    batch = jax.device_put(ours.make_batch("simclr", options.batch))

    heads = ("direct GF", "XLA's GF", "GB", "ms", "least ms", "bound by", "share", "of step")
    print(f"{'':<15}" + "".join(f"{head:>10}" for head in heads))
    rows = []
    for name, function, arguments, direct in blocks_of(config, step.parts, batch, step.state):
        operations, moved = counted(function, arguments)
        seconds = timed(jax.jit(function), arguments, options.repeats)
        least = max(direct / compute, moved / memory)
        rows.append(
            {"block": name, "direct_flops": direct, "xla_flops": operations, "bytes": moved,
             "seconds": seconds, "least_seconds": least,
             "bound_by": "compute" if direct / compute > moved / memory else "memory"}
        )  # fmt: skip
        show(rows[-1], whole)
    total = {
        name: sum(row[name] for row in rows)
        for name in ("direct_flops", "xla_flops", "bytes", "seconds", "least_seconds")
    }
    show({"block": "all blocks", "bound_by": "", **total}, whole)
    show({"block": "whole step", "bound_by": "", **total, "seconds": whole}, whole)
    lost = sorted(rows, key=lambda row: row["least_seconds"] - row["seconds"])[:4]
    print("most time over the least: " + ", ".join(
        f"{row['block']} {1e3 * (row['seconds'] - row['least_seconds']):.0f} ms" for row in lost
    ))  # fmt: skip
    content = {"device": device, "jax": jax.__version__, "options": vars(options), "step": whole,
               "peak_flops": compute, "peak_bytes": memory, "blocks": rows}  # fmt: skip
    peers.save(options.out, content)


def show(row: dict, whole: float) -> None:
    print(
        f"{row['block']:<15}{row['direct_flops'] / 1e9:>10.1f}{row['xla_flops'] / 1e9:>10.1f}"
        f"{row['bytes'] / 1e9:>10.2f}{1e3 * row['seconds']:>10.1f}"
        f"{1e3 * row['least_seconds']:>10.1f}{row['bound_by']:>10}"
        f"{row['least_seconds'] / row['seconds']:>10.2f}{row['seconds'] / whole:>10.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
