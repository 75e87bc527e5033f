"""The kernels that XLA makes of a SimCLR step for a GPU, and the bytes of each; no GPU is needed.

    python tests/benchmarks/kernels.py --target=h200.txtpb [--batch=256] [--least=0.06]
        [--hlo=FILE.hlo] [--out=FILE.json]

`--target` is XLA's description of the GPU; those of many are in its repository, under
xla/backends/gpu/target_config/specs. It needs JAX's CUDA plugin (`pip install jax[cuda13]`). What
only a GPU can tell is left open: which of cuDNN's and cuBLAS's algorithms are taken, and the time.

Of each kernel that moves as much as `--least` GB there are the maps that it reads and writes, in
the order of the program, and before them the sums by kind: what a change saves can be read off
before it is measured. A convolution's bytes are not what bounds it, and what a loop or a branch
does inside counts as one kernel with its operands.
"""

import argparse
import collections
import math
import os
import pathlib
import re

import peers

SIZES = {"f64": 8, "s64": 8, "u64": 8, "c64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2,
         "s16": 2, "u16": 2, "s8": 1, "u8": 1, "pred": 1}  # fmt: skip
# They only name what there is already.
FREE = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant")


def program(options: argparse.Namespace) -> str:
    """XLA's optimized program of a step."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    import ours
    from cryjax.training import simclr

    jax.devices()  # finds the plugins, too
    target = options.target.read_text(encoding="utf-8")
    topology = topologies.get_topology_desc(
        "1x1x1", platform="cuda", topology="1x1x1", target_config=target
    )
    there = SingleDeviceSharding(topology.devices[0])
    config = ours.config_of("simclr", options)
    parts = simclr.build(config, examples=1_000_000)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(parts.init, key)
    batch = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype)
        for name, x in ours.make_batch("simclr", options.batch).items()
    }
    step = jax.jit(parts.step, in_shardings=there, out_shardings=there, donate_argnums=0)
    lowered = step.trace(state, batch, key).lower(lowering_platforms=("cuda",))
    return lowered.compile().as_text()


def size(shape: str) -> int:
    """Bytes of an array or a tuple of them, as 'bf16[8,4]{1,0}' or '(f32[], u8[0])'."""
    return sum(
        SIZES.get(dtype, 0) * math.prod(map(int, filter(None, lengths.split(","))))
        for dtype, lengths in re.findall(r"(\w+)\[([\d,]*)\]", shape)
    )


def closed(text: str, start: int = 0) -> int:
    """Where the bracket that opens at `start` is closed, plus one."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place + 1
    raise ValueError(text)


def kernels(hlo: str) -> list[dict]:
    """What the program's entry computes, one after the other."""
    shapes, found = {}, []
    for line in hlo[hlo.index("\nENTRY") :].splitlines():
        match = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (.*)", line)
        if not match:
            continue
        name, rest = match.groups()
        end = closed(rest) if rest.startswith("(") else rest.index(" ")
        shapes[name], rest = rest[:end], rest[end:].strip()
        operation, begin = rest[: rest.index("(")], rest.index("(")
        if operation in FREE:
            continue
        target = re.search(r'custom_call_target="([^"]*)"', rest)
        arguments = dict.fromkeys(re.findall(r"%([\w.\-]+)", rest[begin : closed(rest, begin)]))
        what = re.search(r'op_name="([^"]*)"', rest)
        found.append({
            "kind": target.group(1) if target else operation,
            "name": name,
            "reads": [shapes[argument] for argument in arguments if argument in shapes],
            "writes": shapes[name],
            "of": what.group(1) if what else "",
        })  # fmt: skip
        found[-1]["bytes"] = sum(map(size, found[-1]["reads"])) + size(shapes[name])
    return found


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
    hlo = program(options)
    if options.hlo:
        options.hlo.write_text(hlo, encoding="utf-8")
    found = kernels(hlo)
    counts = collections.Counter(kernel["kind"] for kernel in found)
    moved: dict[str, int] = collections.Counter()
    for kernel in found:
        moved[kernel["kind"]] += kernel["bytes"]
    for kind, total in sorted(moved.items(), key=lambda item: -item[1]):
        print(f"{kind:<32}{counts[kind]:>5}{total / 1e9:>9.2f} GB")
    print(f"{'all':<32}{len(found):>5}{sum(moved.values()) / 1e9:>9.2f} GB\n")
    for kernel in found:
        if kernel["bytes"] >= options.least * 1e9:
            # Without layouts, and without what is small.
            reads, writes = (
                re.sub(r"\{[^}]*\}", "", shape)
                for shape in (
                    " ".join(x for x in kernel["reads"] if size(x) > 1e6), kernel["writes"]
                )
            )  # fmt: skip
            where = kernel["of"].removeprefix("jit(simclr_step)/")
            print(f"{kernel['bytes'] / 1e9:6.2f} GB {kernel['name']}: {reads} -> {writes} {where}")
    peers.save(options.out, {"options": vars(options), "kernels": found})


if __name__ == "__main__":
    main()
