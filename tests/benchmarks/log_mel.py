"""The log-mel front end alone: cryjax, PyTorch, nnAudio and librosa, with the same settings.

    python tests/benchmarks/log_mel.py --torch_python=TORCH_ENV/bin/python \\
        [--presets=panns_32k,panns_16k,cssl_sound,small_8k] [--platform=gpu] [--out=FILE.json]

Input is clips of 4 s, float32 on the device; output is decibels, normalised as the preset says.
PyTorch is `torch.stft`, a product with the filters and the logarithm, eager or compiled, whichever
is faster; nnAudio, if PyTorch's environment has it, is its spectrogram layer, eager or compiled.
librosa is `melspectrogram` or its STFT with precomputed filters, batched or clip by clip, whichever
is faster. Each worker reports the standard deviation of its result, in which all agree. A
measurement is a hundred calls in a row: caches left by a peer's turn should not count, and for up
to half a second Linux may keep both threads that were asleep on one core.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

import peers

SECONDS = 4
CALLS = 100


def waveforms(settings: dict, clips: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    shape = clips, settings["sample_rate"] * SECONDS
    return rng.uniform(-0.5, 0.5, shape).astype(np.float32)


def often(form):
    """The form, `CALLS` times in a row."""

    def calls():
        for _ in range(CALLS):
            form()

    return calls


def cryjax_worker(options: argparse.Namespace, settings: dict) -> None:
    os.environ["JAX_PLATFORMS"] = {"gpu": "cuda,cpu"}.get(options.platform, "cpu")
    import jax

    from cryjax.audio import frontend

    form = jax.jit(lambda x: frontend.log_mel(x, frontend.FrontEnd(**settings)))
    x = jax.device_put(waveforms(settings, options.clips))
    said = {"jax": jax.__version__, "deviation": f"{form(x).std():.4f}"}
    peers.serve(lambda: often(lambda: jax.block_until_ready(form(x))), said)


def librosa_worker(options: argparse.Namespace, settings: dict) -> None:
    import librosa

    x, window = waveforms(settings, options.clips), np.load(options.folder / "window.npy")
    filters = np.load(options.folder / "filters.npy").T.copy()
    size, hop = settings["window_length"], settings["hop_length"]
    transform = {"n_fft": size, "hop_length": hop, "window": window}
    transform["pad_mode"] = settings["padding"]
    bands = {"n_mels": settings["mels"], "fmin": settings["lowest_hz"]}
    bands |= {"fmax": settings["highest_hz"], "htk": settings["htk"]}
    bands["norm"] = None if settings["htk"] else "slaney"

    def as_written(x):
        return librosa.feature.melspectrogram(
            y=x, sr=settings["sample_rate"], power=2.0, **transform, **bands
        )

    def filters_kept(x):
        spectrum = librosa.stft(x, **transform)
        return filters @ (spectrum.real**2 + spectrum.imag**2)

    def finished(mel):
        decibels = librosa.power_to_db(mel, ref=1.0, amin=1e-10, top_db=None)
        if settings["normalise"] == "none":
            return decibels
        return decibels - decibels.mean(axis=-1, keepdims=True)

    forms = {}
    for mel in (as_written, filters_kept):
        forms[f"{mel.__name__}, batch"] = lambda mel=mel: finished(mel(x))
        forms[f"{mel.__name__}, by clip"] = lambda mel=mel: [finished(mel(clip)) for clip in x]
    said = {"librosa": librosa.__version__, "deviation": f"{finished(as_written(x)).std():.4f}"}
    peers.serve(lambda: often(peers.fastest(forms, said)), said)


def _serve_torch(options: argparse.Namespace, settings: dict, module, said: dict) -> None:
    """Serves a module, eager or compiled."""
    import torch

    device = {"gpu": "cuda"}.get(options.platform, "cpu")
    module = module.to(device).eval()
    x = torch.from_numpy(waveforms(settings, options.clips)).to(device)

    def repeats(form):
        def repeat():
            with torch.inference_mode():
                result = form(x)
            if device == "cuda":
                torch.cuda.synchronize()
            return result

        return repeat

    compiled = torch.compile(module, dynamic=False)
    forms = {"eager": repeats(module), "compiled": repeats(compiled)}
    said |= {"torch": torch.__version__, "deviation": f"{forms['eager']().std(correction=0):.4f}"}
    peers.serve(lambda: often(peers.fastest(forms, said)), said)


def torch_worker(options: argparse.Namespace, settings: dict) -> None:
    import torch_models

    window, filters = (np.load(options.folder / f"{name}.npy") for name in ("window", "filters"))
    _serve_torch(options, settings, torch_models.LogMel(settings, window, filters), {})


def nnaudio_worker(options: argparse.Namespace, settings: dict) -> None:
    import nnAudio
    import torch
    from nnAudio.features.mel import MelSpectrogram

    class LogMel(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mel = MelSpectrogram(
                sr=settings["sample_rate"],
                n_fft=settings["window_length"],
                hop_length=settings["hop_length"],
                n_mels=settings["mels"],
                fmin=settings["lowest_hz"],
                fmax=settings["highest_hz"],
                htk=settings["htk"],
                norm=None if settings["htk"] else 1,
                window=settings["window"],
                pad_mode=settings["padding"],
                power=2.0,
                verbose=False,
            )

        def forward(self, x):
            decibels = 10.0 * torch.log10(self.mel(x).clamp(min=1e-10))
            if settings["normalise"] == "none":
                return decibels
            return decibels - decibels.mean(-1, keepdim=True)

    _serve_torch(options, settings, LogMel(), {"nnAudio": nnAudio.__version__})


WORKERS = {
    "cryjax": cryjax_worker,
    "torch": torch_worker,
    "nnAudio": nnaudio_worker,
    "librosa": librosa_worker,
}


def measure(options: argparse.Namespace, preset: str, pythons: dict[str, str]) -> None:
    import ours
    from cryjax.audio import frontend

    settings = frontend.resolve(preset)
    out = options.out and options.out.with_stem(f"{options.out.stem}_{preset}")
    with tempfile.TemporaryDirectory() as folder:
        ours.write_front_end(settings, pathlib.Path(folder))
        text = json.dumps(dataclasses.asdict(settings))
        (pathlib.Path(folder) / "settings.json").write_text(text, encoding="utf-8")
        arguments = [*sys.argv[1:], "--folder", folder]
        workers = peers.start(pythons, __file__, arguments)
        said = {name: worker.said for name, worker in workers.items()}
        seconds = peers.in_turns(workers, options.repeats)
        cpu = {name: worker.cpu_seconds for name, worker in workers.items()}
    print(f"{preset}, {options.clips} clips of {SECONDS} s")
    peers.report(seconds, "clips", CALLS * options.clips, out, said, preset=preset, cpu_seconds=cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch_python", help="python of an environment with PyTorch")
    parser.add_argument("--presets", default="panns_32k,panns_16k,cssl_sound,small_8k")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--platform", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=pathlib.Path, help="one file a preset, named after it")
    parser.add_argument("--worker", choices=WORKERS)
    parser.add_argument("--folder", type=pathlib.Path)
    options = parser.parse_args()
    if options.worker:
        settings = json.loads((options.folder / "settings.json").read_text(encoding="utf-8"))
        WORKERS[options.worker](options, settings)
        return
    pythons = {"cryjax": sys.executable}
    if options.torch_python:
        pythons["torch"] = options.torch_python
        probe = [options.torch_python, "-c", "import nnAudio"]
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            pythons["nnAudio"] = options.torch_python
    pythons["librosa"] = sys.executable
    for preset in options.presets.split(","):
        measure(options, preset, pythons)


if __name__ == "__main__":
    main()
