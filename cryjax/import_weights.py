"""Imports PANNs' weights, or speechbrain's CNN14, as a run to probe, fine-tune, adapt or export.

    python -m cryjax.import_weights --weights=Cnn14_16k_mAP=0.438.pth --workdir=PANNS

Reads .safetensors and, if PyTorch is installed, .pth and .ckpt, weights only. The rate follows
from the file's own filters: 32 kHz for Cnn14, Cnn10 and Cnn6, 16 kHz for Cnn14_16k. speechbrain's
files have none: give --front_end=cssl_sound. A file of cryjax.export states all of this.
"""

import csv
import pathlib
from collections.abc import Mapping

import numpy as np
from absl import flags

from cryjax.audio import frontend
from cryjax.command import program
from cryjax.command.errors import UserError
from cryjax.interop import panns, run
from cryjax.interop.model import Description

_WEIGHTS = flags.DEFINE_string("weights", None, "The .pth, .ckpt or .safetensors file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run to make.")
_FRONT_END = flags.DEFINE_enum(
    "front_end", None, sorted(frontend.PRESETS), "Network's front end; default: the file's own."
)
_WINDOW = flags.DEFINE_float(
    "window_seconds",
    10.0,
    "Length of the windows to embed; a file of cryjax.export has its own default.",
    lower_bound=0.1,
)
_LABELS = flags.DEFINE_string(
    "labels", None, "Class names: a text file with one per line, or class_labels_indices.csv."
)


def choose_front_end(tensors: Mapping[str, np.ndarray], description: Description | None) -> str:
    """The preset: from --front_end, else the file's description or mel filters."""
    if _FRONT_END.value:
        return _FRONT_END.value
    for name, preset in frontend.PRESETS.items():
        if description and description.front_end == preset:
            return name
    if fitting := panns.fitting_front_ends(tensors):
        return fitting[0]
    known = ", ".join(sorted(frontend.PRESETS))
    raise UserError(
        f"{_WEIGHTS.value} does not state its front end; give --front_end, one of {known}"
    )


def read_labels(classes: int, description: Description | None) -> tuple[str, ...]:
    """Names of the classes: from --labels, else the file's own, else numbers."""
    if not _LABELS.value:
        return (
            description.labels
            if description and description.labels
            else tuple(map(str, range(classes)))
        )
    path = pathlib.Path(_LABELS.value)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file)) if path.suffix == ".csv" else [[x.strip()] for x in file]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--labels={path}: cannot be read ({error})") from error
    lines = [line for line in lines if any(line)]
    if lines and "display_name" in lines[0]:
        column = lines[0].index("display_name")
        for line in lines:
            if len(line) <= column or not line[column]:
                raise UserError(f"--labels={path}: no display_name in the row {','.join(line)!r}")
        lines = [[line[column]] for line in lines[1:]]
    names = tuple(line[0] for line in lines)
    if len(names) != classes or len(set(names)) != classes:
        raise UserError(
            f"--labels={path} has {len(set(names))} different names; the weights need "
            f"{classes}, each once"
        )
    return names


def main(_: list[str]) -> None:
    file = pathlib.Path(program.required(_WEIGHTS))
    folder = program.required(_WORKDIR)
    tensors, description = panns.read_tensors(file), panns.read_description(file)
    front_end = choose_front_end(tensors, description)
    settings = frontend.resolve(front_end)
    encoder, width, variables = panns.from_state_dict(tensors, settings)
    classifier = variables.get("head")
    labels: tuple[str, ...] = ()
    if classifier:
        labels = read_labels(classifier["params"]["classifier"]["kernel"].shape[1], description)
    window, told = _WINDOW.value, {}
    if description:
        if not flags.FLAGS["window_seconds"].present:
            window = description.window_samples / description.sample_rate
        told = {
            name: getattr(description, name)
            for name in ("multi_label", "synthetic", "segment_seconds")
        }
    run.write(pathlib.Path(folder), encoder, width, front_end, window, variables, labels, **told)
    print(
        f"{folder}: {encoder} of width {width:g}, front end {front_end} ({settings.sample_rate} "
        f"Hz), {len(labels) or 'no'} classes"
    )


if __name__ == "__main__":
    program.run(main)
