"""Waveforms to embeddings on the CPU: cryjax, PyTorch and onnxruntime on the same CNN14.

    python tests/benchmarks/embedding.py --torch_python=TORCH_ENV/bin/python [--out=FILE.json]

Batches of 10 s windows at 16 kHz, front end included, weights random. PyTorch computes in channels
last, compiled with its weights frozen, whichever of that and eager is faster; its environment needs
torch, safetensors and numpy. onnxruntime runs our export with its default optimisations.
"""

import argparse
import pathlib
import sys
import tempfile
import time

import numpy as np

import peers

RATE, SECONDS = 16_000, 10
BLOCKS = 6


def audio(batch: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.uniform(-0.5, 0.5, (batch, RATE * SECONDS)).astype(np.float32)


def make_models(folder: pathlib.Path) -> None:
    """The same random CNN14 as a run, as ONNX and as safetensors."""
    import jax

    from cryjax.audio import frontend
    from cryjax.interop import model, onnx, panns, run
    from cryjax.models import make_encoder

    settings = frontend.PRESETS["panns_16k"]
    encoder = make_encoder("cnn14")
    variables = jax.jit(encoder.init)(jax.random.key(0), np.zeros((1, 64, settings.mels)))
    run.write(folder / "run", "cnn14", 1.0, "panns_16k", SECONDS, {"encoder": dict(variables)})
    source = model.read_run(str(folder / "run"))
    onnx.write(source, folder / "model.onnx", "float32")
    tensors = panns.to_state_dict(source.variables, "cnn14", settings)
    panns.write_tensors(folder / "model.safetensors", tensors, "float32")


def cryjax_worker(folder: pathlib.Path, batch: int) -> None:
    import jax

    import cryjax

    model, waveform = cryjax.load(str(folder / "run")), audio(batch)
    peers.serve(lambda: lambda: model.outputs(waveform), {"jax": jax.__version__})


def onnx_worker(folder: pathlib.Path, batch: int) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        folder / "model.onnx", providers=["CPUExecutionProvider"]
    )
    feed = {"waveform": audio(batch)}
    versions = {"onnxruntime": onnxruntime.__version__}
    peers.serve(lambda: lambda: session.run(["embedding"], feed), versions)


def torch_worker(folder: pathlib.Path, batch: int) -> None:
    import torch
    from safetensors.torch import load_file
    from torch import nn
    from torch.nn import functional

    tensors = load_file(folder / "model.safetensors")
    waveform = torch.from_numpy(audio(batch))

    class Cnn14(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("window", torch.hann_window(512))
            self.register_buffer("filters", tensors["logmel_extractor.melW"])
            self.norm0 = self._norm("bn0")
            self.layers = nn.ModuleList()
            for block in range(1, BLOCKS + 1):
                for layer in (1, 2):
                    weight = tensors[f"conv_block{block}.conv{layer}.weight"]
                    conv = nn.Conv2d(*weight.shape[1::-1], 3, padding=1, bias=False)
                    conv.weight.data = weight
                    self.layers.append(conv)
                    self.layers.append(self._norm(f"conv_block{block}.bn{layer}"))
            self.dense = nn.Linear(2048, 2048)
            self.dense.weight.data = tensors["fc1.weight"]
            self.dense.bias.data = tensors["fc1.bias"]

        def _norm(self, name):
            norm = nn.BatchNorm2d(len(tensors[f"{name}.weight"]))
            for part in ("weight", "bias", "running_mean", "running_var"):
                getattr(norm, part).data = tensors[f"{name}.{part}"]
            return norm

        def forward(self, x):
            spectrum = torch.stft(x, 512, 160, window=self.window, return_complex=True)
            power = spectrum.real.square() + spectrum.imag.square()
            mel = power.transpose(1, 2) @ self.filters
            x = 10.0 * torch.log10(mel.clamp(min=1e-10))[:, None]
            x = self.norm0(x.transpose(1, 3)).transpose(1, 3)
            x = x.contiguous(memory_format=torch.channels_last)
            for place in range(0, len(self.layers), 2):
                x = functional.relu(self.layers[place + 1](self.layers[place](x)))
                if place % 4 == 2 and place // 4 < BLOCKS - 1:
                    x = functional.avg_pool2d(x, 2)
            x = x.mean(3)
            return functional.relu(self.dense(x.amax(2) + x.mean(2)))

    model = Cnn14().eval().to(memory_format=torch.channels_last)

    def best():
        """The faster of eager and compiled."""
        import torch._inductor.config as inductor

        inductor.freezing = True
        forms = {"eager": model, "compiled": torch.compile(model)}
        times = {}
        with torch.inference_mode():
            for name, form in forms.items():
                for _ in range(3):
                    start = time.perf_counter()
                    form(waveform)
                    times[name] = time.perf_counter() - start
        print(times, file=sys.stderr)
        chosen = forms[min(times, key=times.get)]

        def repeat():
            with torch.inference_mode():
                return chosen(waveform)

        return repeat

    peers.serve(best, {"torch": torch.__version__})


WORKERS = {"cryjax": cryjax_worker, "onnxruntime": onnx_worker, "torch": torch_worker}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch_python", help="python of an environment with PyTorch")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--worker", choices=WORKERS)
    parser.add_argument("--models", type=pathlib.Path)
    options = parser.parse_args()
    if options.worker:
        WORKERS[options.worker](options.models, options.batch)
        return
    with tempfile.TemporaryDirectory() as folder:
        make_models(pathlib.Path(folder))
        arguments = ["--models", folder, "--batch", str(options.batch)]
        pythons = {"cryjax": sys.executable, "onnxruntime": sys.executable}
        if options.torch_python:
            pythons["torch"] = options.torch_python
        workers = {
            name: peers.Worker(python, __file__, name, arguments)
            for name, python in pythons.items()
        }
        said = {name: worker.said for name, worker in workers.items()}
        seconds = peers.in_turns(workers, options.repeats)
    peers.report(seconds, "seconds of audio", options.batch * SECONDS, options.out, said)


if __name__ == "__main__":
    main()
