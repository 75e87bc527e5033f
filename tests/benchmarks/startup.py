"""How long cryjax takes to start: imports, and a run up to its first step.

    python tests/benchmarks/startup.py [--encoder=cnn14] [--batch=4] [--repeats=3] [--out=FILE.json]

Imports are timed in fresh processes, less Python's own start. The run is `cryjax.pretrain` of one
step on a small prepared dataset of synthetic audio, crops of 4 s at 16 kHz: the time from the
command to the step's line in metrics.jsonl, with no persistent compilation cache, with an empty
one, and with the one that the previous run filled (`JAX_COMPILATION_CACHE_DIR`).
"""

import argparse
import pathlib
import statistics
import tempfile
import time

import peers

ROOT = pathlib.Path(__file__).parents[2]
IMPORTS = {
    "nothing": "pass",
    "jax": "import jax",
    "cryjax": "import cryjax",
    "cryjax.load": "from cryjax.interop.model import load",
    "cryjax.pretrain": "import cryjax.pretrain",
    "cryjax.finetune": "import cryjax.finetune",
    "cryjax.linear_probe": "import cryjax.linear_probe",
    "cryjax.predict": "import cryjax.predict",
    "cryjax.prepare": "import cryjax.prepare",
}


def first_step(folder: pathlib.Path, place: str, options: argparse.Namespace, **more: str) -> dict:
    """Seconds up to the first step of a run, and of the whole run."""
    workdir = folder / f"run-{place}"
    start = time.time()
    whole = peers.run_python(
        [
            "-m",
            "cryjax.pretrain",
            f"--config={ROOT / 'configs' / 'pretrain.py'}",
            f"--workdir={workdir}",
            f"--config.data={folder / 'data'}",
            f"--config.batch_size={options.batch}",
            "--config.total=1 step",
            "--config.optimizer.warmup=0 steps",
            "--config.log_every=1 step",
            f"--config.encoder.name={options.encoder}",
            f"--config.encoder.width={options.width}",
            f"--config.encoder.dtype={options.dtype}",
        ],
        **more,
    )
    return {"first step": (workdir / "metrics.jsonl").stat().st_mtime - start, "whole run": whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="cnn14")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()

    imports = {name: [] for name in IMPORTS}
    peers.run_python(
        ["-c", IMPORTS["cryjax.pretrain"]]
    )  # its files are in the system's cache from here on
    for _ in range(options.repeats):
        for name, statement in IMPORTS.items():
            imports[name].append(peers.run_python(["-c", statement]))
    bare = statistics.median(imports["nothing"])
    print(f"{'import':<22}{'median s':>10}")
    for name, seconds in imports.items():
        print(f"{name:<22}{statistics.median(seconds) - (name != 'nothing') * bare:>10.2f}")

    runs: dict[str, list[dict]] = {"no cache": [], "empty cache": [], "warm cache": []}
    megabytes = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        key = {"CRYJAX_SUBJECT_KEY": str(folder / "subject-key")}
        peers.run_python(
            ["-m", "cryjax.prepare", "--synthetic=sounds", f"--out={folder / 'data'}",
             f"--examples={max(options.batch, 8)}"],
            **key,
        )  # fmt: skip
        for place in range(options.repeats):
            cache = folder / f"cache-{place}"
            cached = {"JAX_COMPILATION_CACHE_DIR": str(cache)}
            off = {"JAX_ENABLE_COMPILATION_CACHE": "false"}  # or the user's own is used
            for kind, more in (("no cache", off), ("empty cache", cached), ("warm cache", cached)):
                runs[kind].append(first_step(folder, f"{place}-{kind}", options, **key, **more))
            megabytes.append(sum(file.stat().st_size for file in cache.rglob("*")) / 1e6)
    print(f"{options.encoder}, {options.batch} clips{'':<6}{'first step s':>14}{'whole run s':>14}")
    for kind, found in runs.items():
        medians = [statistics.median(row[part] for row in found) for part in found[0]]
        print(f"{kind:<24}" + "".join(f"{median:>14.1f}" for median in medians))
    print(f"the cache holds {megabytes[-1]:.0f} MB")
    content = {"imports": imports, "runs": runs, "cache_megabytes": megabytes}
    peers.save(options.out, content | {"options": vars(options)})


if __name__ == "__main__":
    main()
