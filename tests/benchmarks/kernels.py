"""The kernels that XLA compiles a SimCLR step to for a GPU, with their bytes; needs no GPU.

    python tests/benchmarks/kernels.py --target=h200.txtpb [--batch=256] [--least=0.06]
        [--hlo=FILE.hlo] [--out=FILE.json]

`--target` is XLA's description of the GPU; those of many are in its repository, under
xla/backends/gpu/target_config/specs. It needs JAX's CUDA plugin (`pip install jax[cuda13]`). What
only a GPU can tell stays unknown: which cuDNN and cuBLAS algorithms are chosen, and the time.

After totals by kind, each kernel that moves at least `--least` GB is printed with the maps that it
reads and writes, in program order: what a change saves shows before it is measured. A convolution
is not bound by its bytes.
"""

import argparse
import collections
import dataclasses
import os
import pathlib
import re

import peers


def program(options: argparse.Namespace) -> str:
    """XLA's optimized program of a step."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    from jax.experimental import topologies

    import ours
    from cryjax.training import parallel, simclr

    jax.devices()  # finds the plugins too
    target = options.target.read_text(encoding="utf-8")
    topology = topologies.get_topology_desc(
        "1x1x1", platform="cuda", topology="1x1x1", target_config=target
    )
    spread = parallel.Parallel("jit", list(topology.devices))
    parts = simclr.build(ours.config_of("simclr", options), examples=1_000_000)
    key = jax.eval_shape(lambda: jax.random.key(0))
    batch = ours.make_batch("simclr", options.batch)
    shapes = spread.abstract(jax.eval_shape(parts.init, key), batch, key)
    return spread.wrap(parts.step).lower(*shapes).compile().as_text()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=pathlib.Path, required=True, help="XLA's text of the GPU")
    parser.add_argument("--encoder", default="cnn14")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--batch", type=int, default=256, help="clips; twice as many views")
    parser.add_argument("--crop_seconds", type=float, default=4.0)
    parser.add_argument("--least", type=float, default=0.06, help="GB of a kernel that is shown")
    parser.add_argument("--hlo", type=pathlib.Path, help="where to write the program")
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    text = program(options)
    if options.hlo:
        options.hlo.write_text(text, encoding="utf-8")
    from cryjax.training import hlo

    kernels = hlo.Module(text, devices=1).kernels
    counts: dict[str, int] = collections.Counter()
    moved: dict[str, int] = collections.Counter()
    for kernel in kernels:
        for kind in (kernel.kind, "all"):
            counts[kind] += kernel.times
            moved[kind] += kernel.times * kernel.bytes
    for kind, total in sorted(moved.items(), key=lambda item: item[1]):
        print(f"{kind:<32}{counts[kind]:>5}{total / 1e9:>9.2f} GB")
    for kernel in kernels:
        if kernel.bytes >= options.least * 1e9:
            # Without layouts, and without arrays per channel or smaller.
            shapes = (shape for shape in kernel.reads if "," in shape.split("]")[0])
            line = f"{kernel.name}: {' '.join(shapes)} -> {kernel.writes} {kernel.origin}"
            print(f"{kernel.bytes / 1e9:6.2f} GB " + re.sub(r"\{[^}]*\}", "", line))
    peers.save(
        options.out, {"options": vars(options), "kernels": [*map(dataclasses.asdict, kernels)]}
    )


if __name__ == "__main__":
    main()
