"""NT-Xent, loss and gradient: the tiled form against the dense one, in time and memory.

    python tests/benchmarks/nt_xent.py [--embeddings=1024,16384] [--repeats=5] [--out=FILE.json]

Each size is measured in turns, ours and the peer's, in one process; medians, and their ratio. The
peer is the dense form as one would write it, compiled, the matrix product as fast as ours. Memory
is XLA's own count of temporaries. A peer is left out where it would need more than --most_gib.
"""

import argparse
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import peers
from cryjax.training import losses

FEATURES, TEMPERATURE = 128, 0.1


def dense(first: jax.Array, second: jax.Array) -> jax.Array:
    """The matrix of all similarities, the diagonal masked, and a softmax cross-entropy."""
    rows = losses.unit_norm(jnp.concatenate([first, second]))
    count = len(rows)
    similarity = jnp.matmul(rows, rows.T, precision="highest") / TEMPERATURE
    similarity = jnp.where(jnp.eye(count, dtype=bool), -jnp.inf, similarity)
    positive = (jnp.arange(count) + count // 2) % count
    chosen = jnp.take_along_axis(similarity, positive[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(similarity, axis=1) - chosen)


def ours(first: jax.Array, second: jax.Array) -> jax.Array:
    return losses.nt_xent(first, second, temperature=TEMPERATURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--embeddings", default="1024,4096,16384")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--most_gib", type=float, default=6.0)
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}, {FEATURES} features")
    heads = ("embeddings", "ours s", "dense s", "ratio", "ours MB", "dense MB")
    print("".join(f"{head:>11}" for head in heads))
    found = []
    for count in map(int, options.embeddings.split(",")):
        rng = np.random.default_rng(0)
        views = [
            jnp.asarray(rng.normal(size=(count // 2, FEATURES)), jnp.float32) for _ in range(2)
        ]
        # The dense form holds about four matrices.
        fits = 4 * 4 * count**2 / 2**30 <= options.most_gib
        forms = {"ours": ours} | ({"dense": dense} if fits else {})
        compiled = {
            name: jax.jit(jax.value_and_grad(form, argnums=(0, 1))).lower(*views).compile()
            for name, form in forms.items()
        }
        values = {name: jax.block_until_ready(run(*views)) for name, run in compiled.items()}
        if fits:
            np.testing.assert_allclose(values["ours"][0], values["dense"][0], rtol=1e-5)
        seconds: dict[str, list[float]] = {name: [] for name in forms}
        for _ in range(options.repeats):
            for name, run in compiled.items():
                start = time.perf_counter()
                jax.block_until_ready(run(*views))
                seconds[name].append(time.perf_counter() - start)
        row = {
            "embeddings": count,
            "seconds": {name: statistics.median(times) for name, times in seconds.items()},
            "megabytes": {
                name: run.memory_analysis().temp_size_in_bytes / 1e6
                for name, run in compiled.items()
            },
        }
        found.append(row)
        time_of, memory_of = row["seconds"], row["megabytes"]
        cells = [count, time_of["ours"], time_of.get("dense"), None, memory_of["ours"]]
        if fits:
            cells[3] = time_of["ours"] / time_of["dense"]
        cells.append(memory_of.get("dense"))
        shown = ("-" if x is None else f"{x:.2f}" if isinstance(x, float) else x for x in cells)
        print("".join(f"{cell:>11}" for cell in shown), flush=True)
    peers.save(options.out, found)


if __name__ == "__main__":
    main()
