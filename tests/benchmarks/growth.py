"""How a SimCLR step grows, in time and memory, with the batch, the crop and the devices.

    python tests/benchmarks/growth.py [--encoder=cnn14] [--batches=4,8,16,32]
        [--crops=1,2,4,8] [--devices=1,2,4] [--figure=FILE.png] [--out=FILE.json]

Each point runs in its own process and varies one of the three from `--batch`, `--crop_seconds` and
one device. Memory is XLA's count of a device's temporaries, and of all that a step holds at once,
arguments included. Devices are the machine's, or on a CPU as many as requested, which share its
cores: there, time shows what dividing the same batch costs, not what it gains.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import peers


def measure(options: argparse.Namespace) -> dict:
    """Seconds and bytes of the step that the options describe, in this process."""
    if options.platform == "cpu":
        flags = os.environ.get("XLA_FLAGS", "")
        fake = f"--xla_force_host_platform_device_count={options.device_count}"
        os.environ["XLA_FLAGS"] = f"{flags} {fake}"
    os.environ["JAX_PLATFORMS"] = {"gpu": "cuda,cpu"}.get(options.platform, "cpu")
    import jax

    import ours

    config = ours.config_of("simclr", options)
    config.memory.update({"chunks": options.chunks, "remat": options.remat})
    step = ours.Step("simclr", config, jax.devices()[: options.device_count])
    sizes = step.compiled.memory_analysis()
    held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    seconds = []
    for place in range(1 + options.repeats):
        start = time.perf_counter()
        jax.block_until_ready((step(), step.state))
        if place:
            seconds.append(time.perf_counter() - start)
    return {
        "batch": options.batch,
        "crop_seconds": options.crop_seconds,
        "devices": options.device_count,
        "seconds": seconds,
        "temporary_bytes": sizes.temp_size_in_bytes,
        "total_bytes": sizes.temp_size_in_bytes + held,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


def in_own_process(options: argparse.Namespace, what: str, value: float) -> dict | None:
    """`measure` with one option changed; None if it fails, say out of memory."""
    command = [sys.executable, __file__, *sys.argv[1:], f"--{what}", str(value), "--row"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(f"{what} {value}: failed", flush=True)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def draw(found: dict[str, list[dict]], keys: dict[str, str], path: pathlib.Path) -> None:
    """Small plots of time and memory against each."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        2, len(found), figsize=(3 * len(found), 4), sharey="row", squeeze=False, layout="tight"
    )
    for column, (name, rows) in enumerate(found.items()):
        x = [row[keys[name]] for row in rows]
        medians = [statistics.median(row["seconds"]) for row in rows]
        gigabytes = [row["total_bytes"] / 1e9 for row in rows]
        for line, values in enumerate((medians, gigabytes)):
            axes[line, column].plot(x, values, "o-")
        axes[1, column].set_xlabel(name)
    for axis in axes.flat:  # after all are drawn: a row shares its scale
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("s a step")
    axes[1, 0].set_ylabel("GB a device")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="cnn14")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--platform", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--chunks", type=int, default=1)
    parser.add_argument("--remat", action="store_true")
    parser.add_argument("--batches", default="4,8,16,32", help="clips; empty leaves them out")
    parser.add_argument("--crops", default="1,2,4,8", help="seconds")
    parser.add_argument("--devices", default="1,2,4")
    parser.add_argument("--batch", type=int, default=16, help="where another grows")
    parser.add_argument("--crop_seconds", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--figure", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--row", action="store_true")
    parser.add_argument("--device_count", type=int, default=1)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(measure(options)))
        return
    grows = {
        "clips": ("batch", options.batches, int),
        "seconds of crop": ("crop_seconds", options.crops, float),
        "devices": ("device_count", options.devices, int),
    }
    keys = {"clips": "batch", "seconds of crop": "crop_seconds", "devices": "devices"}
    found: dict[str, list[dict]] = {}
    for name, (what, values, kind) in grows.items():
        if not values:
            continue
        print(f"{name:<18}{'s a step':>10}{'clips/s':>10}{'temp. MB':>10}{'total MB':>10}")
        found[name] = []
        for value in map(kind, values.split(",")):
            row = in_own_process(options, what, value)
            if row is None:
                continue
            found[name].append(row)
            median = statistics.median(row["seconds"])
            print(
                f"{value:<18}{median:>10.3f}{row['batch'] / median:>10.2f}"
                f"{row['temporary_bytes'] / 1e6:>10.0f}{row['total_bytes'] / 1e6:>10.0f}",
                flush=True,
            )
    if options.figure:
        draw(found, keys, options.figure)
    peers.save(options.out, {"options": vars(options), "rows": found})


if __name__ == "__main__":
    main()
