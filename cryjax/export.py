"""Exports a run's model: StableHLO, ONNX, PyTorch's safetensors, or a folder for a model hub.

    python -m cryjax.export --model=TUNED --format=onnx --out=model.onnx
    python -m cryjax.export --model=RUN --format=stablehlo --out=encoder.stablehlo
    python -m cryjax.export --model=RUN --format=safetensors --out=encoder.safetensors
    python -m cryjax.export --model=TUNED --format=folder --out=FOLDER

Input: waveforms (float32 [batch, samples] in [-1, 1], any batch, any length above a minimum).
Output: 'embedding' and, for a fine-tuned run, 'probabilities'. Before an export gets its name, it
is read back and run in a separate process, on noise and on recordings: the largest difference is
printed, and above the tolerance no file is left. An existing file is replaced, a folder is not.
"""

import json
import pathlib
import signal
import sys
import tempfile
from typing import Any

from absl import flags, logging

from cryjax.command import config as config_lib
from cryjax.command import program
from cryjax.command.errors import UserError
from cryjax.data.records import Prepared, open_prepared
from cryjax.interop import card, model, onnx, panns, stablehlo, verify, weights
from cryjax.training import checkpoints

FORMATS = ("stablehlo", "onnx", "safetensors", "folder")
# As a share of the largest output value, by kind of weights.
TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "int8": 1e-1}

_MODEL = flags.DEFINE_string("model", None, "The --workdir of a training run.")
_FORMAT = flags.DEFINE_enum("format", None, FORMATS, "Format to write.")
_OUT = flags.DEFINE_string("out", None, "File to write, or with --format=folder the folder.")
_WEIGHTS = flags.DEFINE_enum(
    "weights", "float32", weights.KINDS, "How to store the weights; computation is in float32."
)
_ENCODER_ONLY = flags.DEFINE_bool("encoder_only", False, "Leave out the classifier.")
_TOLERANCE = flags.DEFINE_float(
    "tolerance", None, "Difference allowed, as a share of the largest value; default: by --weights."
)
_DATA = flags.DEFINE_string(
    "data", None, "Prepared dataset to test the export on; default: the run's own, if still there."
)
_LICENSE = flags.DEFINE_string(
    "license", "", "Licence of the weights, for the model card of --format=folder."
)


def recordings(meta: dict[str, Any], sample_rate: int) -> Prepared | None:
    """The dataset to test the export on, or None."""
    if _DATA.value:
        prepared = open_prepared(_DATA.value)
        prepared.require_rate(sample_rate, "the model")
        return prepared
    own, _ = config_lib.datasets(meta["config"].get("data", ""))[0]
    try:
        prepared = open_prepared(own)
    except UserError:
        return None
    return prepared if prepared.sample_rate == sample_rate else None


def write_safetensors(source: model.Source, path: pathlib.Path, kind: str) -> None:
    description = source.description
    tensors = panns.to_state_dict(source.variables, description.encoder, description.front_end)
    panns.write_tensors(path, tensors, kind, cryjax=description.to_json())


# The file's weights in our own network, which the tests show to equal PyTorch's.
_CHECK_SAFETENSORS = """
import pathlib, sys, jax, numpy as np
from cryjax.interop import model, panns
source = model.read_run(sys.argv[1], encoder_only=sys.argv[2] == "True")
tensors = panns.read_tensors(pathlib.Path(sys.argv[3]))
_, _, variables = panns.from_state_dict(tensors, source.description.front_end)
inputs, found = np.load(sys.argv[4]), {}
for name in inputs.files:
    for output, value in jax.jit(source.function)(variables, inputs[name]).items():
        found[name + "/" + output] = np.asarray(value)
np.savez(sys.argv[5], **found)
"""


def written(source: model.Source, folder: pathlib.Path, name: str) -> list[tuple[str, list[str]]]:
    """Writes a format's files to `folder`; returns the check of each: script and arguments."""
    kind = _WEIGHTS.value
    own = [program.required(_MODEL), str(_ENCODER_ONLY.value)]
    if _FORMAT.value == "folder":
        onnx.write(source, folder / "model.onnx", kind)
        write_safetensors(source, folder / "model.safetensors", kind)
        return [
            (onnx.CHECK, [str(folder / "model.onnx")]),
            (_CHECK_SAFETENSORS, [*own, str(folder / "model.safetensors")]),
        ]
    file = folder / name
    if _FORMAT.value == "onnx":
        onnx.write(source, file, kind)
        return [(onnx.CHECK, [str(file)])]
    if _FORMAT.value == "stablehlo":
        stablehlo.write(source, file, kind)
        return [(stablehlo.CHECK, [str(file)])]
    write_safetensors(source, file, kind)
    return [(_CHECK_SAFETENSORS, [*own, str(file)])]


def is_finished(run: str, meta: dict[str, Any]) -> bool:
    """Whether a run has ended. Imported weights have no result, and no end to reach."""
    trains = meta["program"] in ("pretrain", "finetune")
    return not trains or (pathlib.Path(run) / "result.json").is_file()


def fill_folder(
    source: model.Source, meta: dict[str, Any], folder: pathlib.Path, *, finished: bool
) -> None:
    """Writes what a model folder has besides weights."""
    file = pathlib.Path(program.required(_MODEL)) / "result.json"
    measured = file.is_file() and not _ENCODER_ONLY.value  # results are the classifier's
    result = json.loads(file.read_text(encoding="utf-8")) if measured else {}
    texts = {
        "config.json": card.config(source.description),
        "README.md": card.write(
            source.description,
            meta,
            result,
            _LICENSE.value,
            weights=_WEIGHTS.value,
            finished=finished,
        ),
        "example.py": card.example(source.description),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def check(source: model.Source, meta: dict[str, Any], checks: list[tuple[str, list[str]]]) -> str:
    """Runs the checks; returns a table of differences. Raises UserError above tolerance."""
    tolerance = TOLERANCES[_WEIGHTS.value] if _TOLERANCE.value is None else _TOLERANCE.value
    prepared = recordings(meta, source.description.sample_rate)
    inputs = verify.waveforms(source.description, prepared)
    wanted = verify.expected(source, inputs)
    lines = ["largest difference, as a share of the largest value:"]
    for script, arguments in checks:
        found = verify.differences(wanted, verify.answers(script, arguments, inputs))
        lines += [f"  {name:<28}{value:.1e}" for name, value in found.items()]
        worst = max(found, key=lambda name: found[name])
        if not found[worst] <= tolerance:  # also for --tolerance=nan
            raise UserError(
                f"the export differs from the run by {found[worst]:.1e} on {worst}, more than "
                f"{tolerance:g}; take --weights=float32, or allow it with --tolerance"
            )
    if prepared is None:
        lines.append(
            "  tested on noise alone: the run's data are not here, or not at its rate; give --data"
        )
    return "\n".join(lines)


def _bytes(path: pathlib.Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def main(_: list[str]) -> None:
    run, kind = program.required(_MODEL), program.required(_FORMAT)
    out = pathlib.Path(program.required(_OUT)).absolute()
    if kind != "folder" and out.suffix != f".{kind}":
        raise UserError(f"--out={_OUT.value}: must end in .{kind}")
    if kind in ("safetensors", "folder") and _WEIGHTS.value == "int8":
        raise UserError("--weights=int8: PyTorch's classes need floats; use float16")
    if out.is_dir() or (kind == "folder" and out.exists()):
        raise UserError(f"--out={_OUT.value} already exists; give another, or delete it")
    newest = checkpoints.newest(run)  # once: the run may be training, and save meanwhile
    source = model.read_run(run, encoder_only=_ENCODER_ONLY.value, folder=newest)
    description = source.description
    if description.window_samples < description.least_samples:
        raise UserError(
            f"{run} was trained on windows of {description.window_samples} samples, but an export "
            f"needs at least {description.least_samples}; train on longer ones, config.crop.seconds"
        )
    meta = checkpoints.meta_of(newest)
    finished = is_finished(run, meta)
    if not finished:
        logging.warning(
            "%s is unfinished: step %d of '%s'", run, meta["step"], meta["config"]["total"]
        )
    # So that the folder below is removed; 143 is what shells give to what SIGTERM ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.")
    except OSError as error:
        raise UserError(f"--out={_OUT.value}: cannot be written ({error.strerror})") from error
    with temporary as home:
        folder = pathlib.Path(home) / out.name
        folder.mkdir()
        logging.info("writing %s of %s", kind, run)
        checks = written(source, folder, out.name)
        logging.info("testing it in a separate process, on noise and recordings, if any")
        report = check(source, meta, checks)
        replaced = out.exists()
        if kind == "folder":
            fill_folder(source, meta, folder, finished=finished)
            folder.rename(out)
        else:
            for file in folder.iterdir():
                file.replace(out.parent / file.name)
    outputs = " and ".join(description.output_names)
    again = ", replacing the existing file" if replaced else ""
    print(f"{_OUT.value}: {outputs}, {_bytes(out) / 1e6:.1f} MB{again}\n{report}")


if __name__ == "__main__":
    program.run(main)
