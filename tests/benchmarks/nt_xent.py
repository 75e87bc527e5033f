"""NT-Xent, loss and gradient: ours in tiles against dense forms, in time and memory.

    python tests/benchmarks/nt_xent.py [--torch_python=TORCH_ENV/bin/python]
        [--embeddings=1024,4096,16384] [--repeats=5] [--out=FILE.json]

'dense' is the whole similarity matrix in plain JAX, compiled; 'optax' is `optax.losses.ntxent`,
compiled; 'torch' is the dense form in PyTorch, eager or compiled, whichever is faster. All get the
same random embeddings of 128 features, and their losses agree. Memory of the three in JAX is XLA's
own count of temporaries; for PyTorch it is the process's growth in its first, eager call, or on a
GPU its peak. A peer is left out if it needs more than --most_gib.
"""

import argparse
import os
import pathlib
import statistics
import sys

import numpy as np

import peers

FEATURES, TEMPERATURE = 128, 0.1

# Float32 matrices of embeddings by embeddings that each holds at once.
MATRICES = {"cryjax": 0, "dense": 4, "torch": 6, "optax": 2 * FEATURES}


def views(count: int) -> list[np.ndarray]:
    """Two views, [count / 2, features] each."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=(count // 2, FEATURES)).astype(np.float32) for _ in range(2)]


def jax_worker(options: argparse.Namespace, form: str) -> None:
    os.environ["JAX_PLATFORMS"] = {"gpu": "cuda,cpu"}.get(options.platform, "cpu")
    import jax
    import jax.numpy as jnp
    import optax

    from cryjax.training import losses

    def cryjax(first, second):
        return losses.nt_xent(first, second, temperature=TEMPERATURE)

    def dense(first, second):
        rows = losses.unit_norm(jnp.concatenate([first, second]))
        count = len(rows)
        similarity = jnp.matmul(rows, rows.T, precision="highest") / TEMPERATURE
        similarity = jnp.where(jnp.eye(count, dtype=bool), -jnp.inf, similarity)
        positive = (jnp.arange(count) + count // 2) % count
        chosen = jnp.take_along_axis(similarity, positive[:, None], axis=1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(similarity, axis=1) - chosen)

    def of_optax(first, second):
        pairs = jnp.tile(jnp.arange(len(first)), 2)
        return optax.losses.ntxent(jnp.concatenate([first, second]), pairs, TEMPERATURE)

    loss = {"cryjax": cryjax, "dense": dense, "optax": of_optax}[form]
    arrays = [jnp.asarray(view) for view in views(options.count)]
    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arrays).compile()
    said = {
        "versions": f"JAX {jax.__version__}, optax {optax.__version__}",
        "megabytes": compiled.memory_analysis().temp_size_in_bytes / 1e6,
        "loss": float(compiled(*arrays)[0]),
    }
    peers.serve(lambda: lambda: jax.block_until_ready(compiled(*arrays)), said)


def torch_worker(options: argparse.Namespace) -> None:
    import resource

    import torch

    device = {"gpu": "cuda"}.get(options.platform, "cpu")

    def loss(first, second):
        rows = torch.nn.functional.normalize(torch.cat([first, second]))
        similarity = (rows @ rows.T / TEMPERATURE).fill_diagonal_(-torch.inf)
        positive = (torch.arange(len(rows), device=device) + len(first)) % len(rows)
        return torch.nn.functional.cross_entropy(similarity, positive)

    arrays = [
        torch.tensor(view, device=device, requires_grad=True) for view in views(options.count)
    ]

    def repeats(form):
        def repeat():
            value = form(*arrays)
            torch.autograd.grad(value, arrays)
            if device == "cuda":
                torch.cuda.synchronize()
            return value

        return repeat

    forms = {"eager": repeats(loss), "compiled": repeats(torch.compile(loss, dynamic=False))}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = {"versions": f"PyTorch {torch.__version__}", "loss": float(forms["eager"]().detach())}
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if device == "cuda":
        grown = torch.cuda.max_memory_allocated()
    said["megabytes"] = grown / 1e6
    peers.serve(lambda: peers.fastest(forms, said), said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch_python", help="python of an environment with PyTorch")
    parser.add_argument("--embeddings", default="1024,4096,16384")
    parser.add_argument("--platform", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--most_gib", type=float, default=8.0)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--worker", choices=MATRICES)
    parser.add_argument("--count", type=int)
    options = parser.parse_args()
    if options.worker == "torch":
        torch_worker(options)
        return
    if options.worker:
        jax_worker(options, options.worker)
        return
    heads = ("embeddings", "", "seconds", "MB", "ours takes", "of memory")
    print("".join(f"{head:>12}" for head in heads))
    found = []
    for count in map(int, options.embeddings.split(",")):
        pythons = dict.fromkeys(MATRICES, sys.executable) | {"torch": options.torch_python}
        pythons = {
            name: python
            for name, python in pythons.items()
            if python and MATRICES[name] * 4 * count**2 <= options.most_gib * 2**30
        }
        workers = peers.start(pythons, __file__, [*sys.argv[1:], "--count", str(count)])
        said = {name: worker.said for name, worker in workers.items()}
        expected = said["cryjax"]["loss"]
        for name in said:
            np.testing.assert_allclose(said[name]["loss"], expected, rtol=1e-4, err_msg=name)
        seconds = peers.in_turns(workers, options.repeats)
        median = {name: statistics.median(times) for name, times in seconds.items()}
        memory = {name: said[name]["megabytes"] for name in said}
        for name in said:
            ratios = median["cryjax"] / median[name], memory["cryjax"] / memory[name]
            cells = f"{count:>12}{name:>12}{median[name]:>12.4f}{memory[name]:>12.1f}"
            print(cells + "".join(f"{ratio:>12.3f}" for ratio in ratios), flush=True)
        found.append({"embeddings": count, "seconds": seconds, "said": said})
    print(
        "; ".join(sorted({worker["versions"] for row in found for worker in row["said"].values()}))
    )
    peers.save(options.out, found)


if __name__ == "__main__":
    main()
