"""Runs in a process of its own, with libtpu: `python slices.py OUT.json CHUNKS SLICE...`.

Compiles the training step of a narrow CNN6 for each slice, at one batch a chip, and saves what the
plans say.
"""

import json
import pathlib
import runpy
import sys
from typing import Any

import jax

from cryjax.command.errors import UserError
from cryjax.training import simclr, topology

PER_CHIP, FEATURES = 16, 8
NO_SHAPES = ("v5e:3x5", "v5e:16", "v4:2x2x2x2", "v9:4x4", "v5e")


def make_config(chips: int, chunks: int) -> Any:
    """configs/pretrain.py, so small that it compiles in seconds."""
    path = pathlib.Path(__file__).parents[2] / "configs" / "pretrain.py"
    config = runpy.run_path(str(path))["get_config"]()
    config.batch_size = PER_CHIP * chips
    config.encoder.update({"name": "cnn6", "width": 1 / 16})
    config.head.update({"hidden": 16, "features": FEATURES})
    config.front_end = "small_8k"
    config.clip_seconds, config.crop.seconds = 0.2, 0.05
    config.transforms = ("mix", "gain", "time_mask")
    config.memory.chunks = chunks
    return config


def compile_for(name: str, chunks: int) -> dict[str, Any]:
    where = topology.find_slice(name)
    config = make_config(len(where.devices), chunks)
    parts = simclr.build(config, 1000 * config.batch_size)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(parts.init, key)
    plan = topology.compile_step(
        parts.step, where, (state, parts.plan.batch(config.batch_size), key)
    )
    sizes = {"state": state, "params": state.params}
    return {
        "chips": len(where.devices),
        "hosts": where.hosts,
        "fits": plan.fits,
        "memory": vars(plan.memory),
        "operations": plan.operations,
        "traffic": plan.traffic,
        "seconds": plan.seconds,
        "collectives": [vars(c) for c in plan.collectives],
        "bytes": {k: sum(x.size * 4 for x in jax.tree.leaves(v)) for k, v in sizes.items()},
        "arrays": {k: len(jax.tree.leaves(v)) for k, v in sizes.items()},
    }


def refused(name: str) -> str:
    try:
        topology.find_slice(name)
    except UserError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    topology.use_cpu()
    out, chunks, *names = sys.argv[1:]
    found = {name: compile_for(name, int(chunks)) for name in names}
    found["refused"] = {name: refused(name) for name in NO_SHAPES}
    found["hosts of v5e:16x16"] = topology.find_slice("v5e:16x16").hosts
    pathlib.Path(out).write_text(json.dumps(found))
