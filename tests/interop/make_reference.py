"""Makes reference.npz: what PANNs' and speechbrain's own PyTorch code say, for `test_panns.py`.

    python tests/interop/make_reference.py --panns=FOLDER --speechbrain=Cnn14.py

Needs torch and torchlibrosa beside cryjax, and the two projects' sources: the folder of PANNs'
models.py (github.com/qiuqiangkong/audioset_tagging_cnn) and speechbrain/lobes/models/Cnn14.py
(github.com/speechbrain/speechbrain). Weights are those of `lively.tensor`, so only answers are
stored.
"""

import argparse
import importlib.util
import pathlib
import sys

import numpy as np
import torch

import lively

HERE = pathlib.Path(__file__).parent
CLASSES = 5
PANNS = {
    "Cnn14_16k": (16_000, 512, 160, 64, 50, 8_000),
    "Cnn10": (32_000, 1024, 320, 64, 50, 14_000),
    "Cnn6": (32_000, 1024, 320, 64, 50, 14_000),
}


def module(path: pathlib.Path):
    """A module from its file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def fill(model: torch.nn.Module) -> torch.nn.Module:
    """Gives every parameter and statistic its value; the front end keeps its own."""
    state = {
        name: torch.from_numpy(lively.tensor(name, tuple(x.shape)))
        for name, x in model.state_dict().items()
        if x.is_floating_point() and "extractor" not in name
    }
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert all("extractor" in name or "num_batches" in name for name in missing), missing
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--panns", type=pathlib.Path, required=True)
    parser.add_argument("--speechbrain", type=pathlib.Path, required=True)
    options = parser.parse_args()
    sys.path.insert(0, str(options.panns))
    models = module(options.panns / "models.py")
    found = {}
    for name, settings in PANNS.items():
        model = fill(getattr(models, name)(*settings, CLASSES))
        with torch.no_grad():
            answers = model(torch.from_numpy(lively.waveform(settings[0])))
        found[f"{name}/embedding"] = answers["embedding"].numpy()
        found[f"{name}/probabilities"] = answers["clipwise_output"].numpy()
    model = fill(module(options.speechbrain).Cnn14(80, 2048))
    with torch.no_grad():
        answers = model(torch.from_numpy(lively.spectrogram()))
    found["speechbrain/embedding"] = answers[:, 0].numpy()
    np.savez_compressed(HERE / "reference.npz", **found)
    print({name: x.shape for name, x in found.items()})


if __name__ == "__main__":
    main()
