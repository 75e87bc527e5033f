"""One training step, clips in and parameters out: cryjax, the same in plain Flax, and PyTorch.

    python tests/benchmarks/step.py --torch_python=TORCH_ENV/bin/python [--encoder=cnn10]
        [--task=finetune] [--out=FILE.json]
    python tests/benchmarks/step.py --torch_python=TORCH_ENV/bin/python --platform=gpu \\
        --dtype=bfloat16 --batches=64,128,256,512,1024

A step takes int16 clips of 10 s from the host, draws the views (crops, the waveform and spectrogram
transforms of the recipe in `ours.py`, the front end), and updates encoder and head by NT-Xent and
AdamW; with `--task=finetune` by cross-entropy with one view per clip. 'flax' is our step with
Flax's batch norm and the convolution of its `nn.Conv`. PyTorch runs in channels last with fused
AdamW, under autocast if `--dtype` is bfloat16, in the fastest of `--torch_modes`; its environment
needs torch and numpy. Each peer tries each batch size of `--batches`, skips those that do not fit,
and the table has its best. A step takes gigabytes, so a peer has the machine to itself: its process
ends before the next one starts, `--rounds` times over. On a GPU, which slows down when hot, a
measurement is of many steps, and each peer copies the next batch to it during the current step.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile

import peers


def cryjax_worker(options: argparse.Namespace, native: bool = False) -> None:
    os.environ["JAX_PLATFORMS"] = {"gpu": "cuda,cpu"}.get(options.platform, "cpu")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")  # it has the GPU to itself
    import jax

    import ours
    from cryjax.models import encoders

    if native:
        encoders.NormRelu = plain_flax()

    def prepare():
        step = ours.Step(options.task, ours.config_of(options.task, options))

        def repeat():
            for _ in range(options.steps):
                metrics = step()
            jax.block_until_ready((step.state, metrics))

        return repeat

    said = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    # On a GPU as many as PyTorch needs to find its fastest form: a hot GPU slows down.
    peers.serve(prepare, said, warm=4 if options.platform == "gpu" else 1 if native else 2)


def plain_flax() -> type:
    """Convolution, batch norm and ReLU as in Flax; our pooling."""
    import flax.linen as nn

    from cryjax.models import conv
    from cryjax.models.norm import average_pool

    class NormRelu(nn.Module):
        learns: bool
        pooled: bool = False
        axis_name: str | None = None

        @nn.compact
        def __call__(self, x, kernel):
            x = conv._convolve_native(x, kernel)
            norm = nn.BatchNorm(
                use_running_average=not self.learns, momentum=0.9, dtype=kernel.dtype
            )
            x = nn.relu(norm(x))
            return average_pool(x) if self.pooled else x

    return NormRelu


def flax_worker(options: argparse.Namespace) -> None:
    cryjax_worker(options, native=True)


def torch_worker(options: argparse.Namespace) -> None:
    import numpy as np
    import torch

    import torch_models

    device = {"gpu": "cuda"}.get(options.platform, "cpu")
    if device == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")  # for float32 parts: the front end's projection
    recipe = json.loads((options.folder / "step.json").read_text(encoding="utf-8"))
    arrays = [np.load(options.folder / f"{name}.npy") for name in ("window", "filters")]
    host = {name: torch.from_numpy(x) for name, x in np.load(options.folder / "batch.npz").items()}
    if device == "cuda":
        host = {name: x.pin_memory() for name, x in host.items()}
    task = torch_models.Task(recipe, *arrays, getattr(torch, options.dtype))
    task = task.to(device).to(memory_format=torch.channels_last)
    optimizer = torch_models.optimizer_of(task, recipe)

    beside = torch.cuda.Stream() if device == "cuda" else None

    def placed():
        """The next batch, copied to the device during the current step."""
        with torch.cuda.stream(beside):
            return {name: x.to(device, non_blocking=True) for name, x in host.items()}

    def steps(loss_of):
        following = placed()

        def repeat():
            nonlocal following
            for _ in range(options.steps):
                batch = following
                if beside:
                    torch.cuda.current_stream().wait_stream(beside)
                    for x in batch.values():
                        x.record_stream(torch.cuda.current_stream())
                following = placed()
                loss_of(batch).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            if device == "cuda":
                torch.cuda.synchronize()

        return repeat

    def form(mode):
        return steps(task if mode == "eager" else torch.compile(task, mode=mode, dynamic=False))

    said = {"torch": torch.__version__, "threads": str(torch.get_num_threads())}
    forms = {mode: form(mode) for mode in options.torch_modes.split(",")}
    peers.serve(lambda: peers.fastest(forms, said), said, warm=1)


WORKERS = {"cryjax": cryjax_worker, "flax": flax_worker, "torch": torch_worker}


def measure(options: argparse.Namespace, batch: int, names: list[str]) -> list[dict]:
    """A row for each peer that this batch fits."""
    import numpy as np

    import ours

    options.batch = batch
    with tempfile.TemporaryDirectory() as folder:
        ours.describe(options.task, ours.config_of(options.task, options), pathlib.Path(folder))
        np.savez(pathlib.Path(folder) / "batch.npz", **ours.make_batch(options.task, batch))
        more = ["--batch", str(batch), "--folder", folder, "--steps", str(options.steps)]
        more += ["--torch_modes", options.torch_modes]
        arguments = [*sys.argv[1:], *more]
        seconds: dict[str, list[float]] = {}
        said = {}
        for name in names * options.rounds:
            if "out_of_memory" in said.get(name, {}):
                continue
            python = options.torch_python if name == "torch" else sys.executable
            workers = peers.start({name: python}, __file__, arguments)
            said[name] = workers[name].said
            if "out_of_memory" in said[name]:
                print(f"{name}: no memory for {batch} clips", flush=True)
                workers[name].close()
                continue
            for times in peers.in_turns(workers, options.repeats).values():
                seconds.setdefault(name, []).extend(x / options.steps for x in times)
        rows = []
        for name, each in seconds.items():
            rate = batch / statistics.median(each)
            print(f"{name}: {batch} clips, {rate:.2f} a second", flush=True)
            rows.append({"peer": name, "batch": batch, "seconds": each, "clips_a_second": rate,
                         "said": said[name]})  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch_python", help="python of an environment with PyTorch")
    parser.add_argument("--peers", default="cryjax,torch,flax")
    parser.add_argument("--task", choices=("simclr", "finetune"), default="simclr")
    parser.add_argument("--encoder", default="cnn14")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--platform", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batches", default="16", help="clips; SimCLR has twice as many views")
    parser.add_argument("--crop_seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=2, help="processes of each peer, in turns")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of a process")
    parser.add_argument("--steps", type=int, help="of one measurement; 1 on a CPU, 40 on a GPU")
    parser.add_argument("--torch_modes", help="eager, and modes of torch.compile")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--worker", choices=WORKERS)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--folder", type=pathlib.Path)
    options = parser.parse_args()
    if options.worker:
        WORKERS[options.worker](options)
        return
    on_cpu = options.platform == "cpu"
    options.steps = options.steps or (1 if on_cpu else 40)
    options.torch_modes = options.torch_modes or (
        "eager,default" if on_cpu else "eager,default,max-autotune"
    )
    names = [name for name in options.peers.split(",") if name != "torch" or options.torch_python]
    rows = []
    for batch in map(int, options.batches.split(",")):
        rows += measure(options, batch, names)
    best = {}
    for row in rows:
        known = best.get(row["peer"])
        if known is None or row["clips_a_second"] > known["clips_a_second"]:
            best[row["peer"]] = row
    best = {name: best[name] for name in names if name in best}
    print(f"{options.task}, {options.encoder}, {options.dtype}, crops of {options.crop_seconds} s")
    peers.report(
        {name: row["seconds"] for name, row in best.items()},
        "clips",
        {name: row["batch"] for name, row in best.items()},
        options.out,
        {name: {**row["said"], "batch": row["batch"]} for name, row in best.items()},
        options=vars(options),
        rows=rows,
    )


if __name__ == "__main__":
    main()
