"""Waveforms to embeddings on the CPU: cryjax, PyTorch and onnxruntime on the same CNN14.

    python tests/benchmarks/embedding.py --torch_python=TORCH_ENV/bin/python [--out=FILE.json]

Batches of 10 s windows at 16 kHz, front end included, random weights. PyTorch runs in channels
last, eager or compiled with frozen weights, whichever is faster; its environment needs torch,
safetensors and numpy. onnxruntime runs our export with its default optimisations.
"""

import argparse
import pathlib
import sys
import tempfile

import numpy as np

import peers

RATE, SECONDS = 16_000, 10
CHANNELS = (64, 128, 256, 512, 1024, 2048)  # of CNN14


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
    import torch._inductor.config as inductor
    from safetensors.torch import load_file

    import torch_models

    tensors = load_file(folder / "model.safetensors")
    waveform = torch.from_numpy(audio(batch))
    settings = {"window_length": 512, "hop_length": 160, "padding": "reflect", "normalise": "none"}
    filters = tensors["logmel_extractor.melW"]
    log_mel = torch_models.LogMel(settings, torch.hann_window(512), filters)
    encoder = torch_models.Encoder(filters.shape[1], CHANNELS, 2, 3, 5, CHANNELS[-1])
    encoder.load_state_dict(
        {name: tensors[name] for name, _ in encoder.named_parameters()}
        | {name: tensors.get(name, value) for name, value in encoder.named_buffers()}
    )
    model = torch.nn.Sequential(log_mel, encoder).eval().to(memory_format=torch.channels_last)
    inductor.freezing = True

    def repeats(form):
        def repeat():
            with torch.inference_mode():
                return form(waveform)

        return repeat

    said = {"torch": torch.__version__}
    forms = {"eager": repeats(model), "compiled": repeats(torch.compile(model))}
    peers.serve(lambda: peers.fastest(forms, said), said)


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
        workers = peers.start(pythons, __file__, arguments)
        said = {name: worker.said for name, worker in workers.items()}
        seconds = peers.in_turns(workers, options.repeats)
    peers.report(seconds, "seconds of audio", options.batch * SECONDS, options.out, said)


if __name__ == "__main__":
    main()
