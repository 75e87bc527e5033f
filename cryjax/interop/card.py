"""A model folder's `config.json` and model card, filled in from the run."""

import dataclasses
import json
from typing import Any

from cryjax import __version__
from cryjax.data.decode import LOUDEST, MINIMUM_SECONDS
from cryjax.interop.model import Description

_EXAMPLE = '''"""Runs the model on a recording: python example.py RECORDING.wav

Needs onnxruntime, numpy and soundfile. Prints the mean over windows of {window:g} s, cut as cryjax
cuts them. It does not resample; the package `soxr` does, at quality "VHQ" as in cryjax.
"""

import json
import os
import pathlib
import sys

import numpy as np
import soundfile

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # or its use is reported to Microsoft
import onnxruntime

if len(sys.argv) != 2:
    sys.exit("give one recording: python example.py RECORDING.wav")
home = pathlib.Path(__file__).parent
config = json.loads((home / "config.json").read_text(encoding="utf-8"))
try:
    waveform, rate = soundfile.read(sys.argv[1], dtype="float32", always_2d=True)
except soundfile.SoundFileError as error:
    sys.exit(str(error))
if rate != config["front_end"]["sample_rate"]:
    sys.exit(
        f"the recording is at {{rate}} Hz: "
        f"resample it to {{config['front_end']['sample_rate']}} Hz first"
    )
if not np.isfinite(waveform).all():
    sys.exit("the recording has samples that are not finite")
if np.abs(waveform).max(initial=0) > {loudest}:
    sys.exit("the recording has samples far beyond full scale: floats must be in [-1, 1]")
# In 16 bits, as cryjax stores recordings.
waveform = np.clip(np.rint(waveform.mean(axis=1) * 32768), -32768, 32767).astype("f4") / 32768
if len(waveform) < {least} * rate:
    sys.exit("the recording is shorter than {least} s")
if not waveform.any():
    sys.exit("the recording is silent")


def windows(waveform):
    """[samples] -> [n, window]: the fewest that cover each segment, evenly spaced."""
    size, segment = config["window_samples"], round(config["segment_seconds"] * rate)
    found = []
    for begin in range(0, len(waveform), segment):
        part = waveform[begin : begin + segment]
        if begin and len(part) < min(segment, rate):
            break  # a last segment under a second is dropped
        if len(part) <= size:
            found.append(np.resize(part, size))  # repeated to fill a window
            continue
        starts = np.linspace(0, len(part) - size, -(-len(part) // size)).round().astype(int)
        found += [part[start : start + size] for start in starts]
    return np.stack(found)


session = onnxruntime.InferenceSession(home / "model.onnx")
found = []
cut = windows(waveform)
for start in range(0, len(cut), 16):
    # float32 [batch, samples] in [-1, 1] -> [batch, {width}]
    found += session.run(["{output}"], {{"waveform": cut[start : start + 16]}})
mean = np.concatenate(found).mean(axis=0, dtype=np.float64)
{use}
'''
_USE_CLASSIFIER = """for label, probability in zip(config["labels"], mean):
    print(f"{label}: {probability:.3f}")"""
_USE_ENCODER = "print(mean)"


def example(description: Description) -> str:
    """The text of a program that uses the folder."""
    window = description.window_samples / description.sample_rate
    classifies = bool(description.labels)
    return _EXAMPLE.format(
        window=window,
        least=f"{MINIMUM_SECONDS:g}",
        loudest=f"{LOUDEST:g}",
        output="probabilities" if classifies else "embedding",
        width="classes" if classifies else "features",
        use=_USE_CLASSIFIER if classifies else _USE_ENCODER,
    )


def config(description: Description) -> str:
    """`config.json`: the fields that the hub looks for, and the description."""
    fields: dict[str, Any] = {
        "model_type": "cryjax",
        "architectures": [description.encoder.upper()],
        "cryjax_version": __version__,
        **dataclasses.asdict(description),
    }
    if description.labels:
        fields["id2label"] = {str(i): label for i, label in enumerate(description.labels)}
        fields["label2id"] = {label: i for i, label in enumerate(description.labels)}
    return json.dumps(fields, indent=2, sort_keys=True) + "\n"


def _measured(result: dict[str, Any]) -> str:
    """The metrics of a result.json with their intervals and warnings, as Markdown."""
    from cryjax.evaluation.metrics import SENSITIVITY, metric_name

    lines = [
        f"On {result['n_recordings']} recordings of {result['n_subjects']} subjects "
        f"({result.get('scored', 'test')} set), none of them in the labelled training set; 95 % "
        "intervals by a bootstrap over subjects.",
        "",
        "| metric | value |",
        "|---|---|",
    ]
    for name, (low, high) in result["intervals"].items():
        if result.get(name) is not None:
            words = metric_name(name, len(result["labels"]))
            ends = "no interval" if None in (low, high) else f"[{low:.3f}, {high:.3f}]"
            lines.append(f"| {words} | {result[name]:.3f} {ends} |")
    if "positive" in result:
        lines += ["", f"Sensitivity and average precision are for '{result['positive']}'."]
    if SENSITIVITY in result["intervals"]:
        lines += ["", "Sensitivity is optimistic: its threshold was chosen on these recordings."]
    if "majority_accuracy" in result:
        right = f"{result['majority_accuracy']:.3f} of the time."
        lines += ["", f"Always predicting the most common label is right {right}"]
    return "\n".join([*lines, "", *(f"- {warning}" for warning in result.get("warnings", ()))])


def _front_matter(description: Description, license: str) -> list[str]:
    """The lines of the hub's front matter."""
    pipeline = "audio-classification" if description.labels else "feature-extraction"
    lines = ["library_name: onnx", f"pipeline_tag: {pipeline}", "tags: [audio, jax, cryjax]"]
    return [f"license: {license}", *lines] if license else lines


def _facts(
    description: Description, meta: dict[str, Any], result: dict[str, Any], *, finished: bool
) -> list[str]:
    """The model's architecture, input, output and training data, as a Markdown list."""
    front_end = description.front_end
    kind = {
        "pretrain": "SimCLR, without labels",
        "finetune": "supervised",
        "import_weights": "imported weights",
    }.get(meta["program"], meta["program"])
    outputs = [f"`embedding` [batch, {description.features}]"]
    if description.labels:
        outputs.append(f"`probabilities` [batch, {len(description.labels)}]")
    of = "" if finished else f", of '{meta['config']['total']}': unfinished when exported"
    lines = [
        f"- Encoder: {description.encoder.upper()} of PANNs at width {description.width:g}, "
        f"{description.features} features.",
        f"- Training: {kind}, with cryjax {meta['version']}, {meta['step']} steps{of}.",
        f"- Input: `waveform`, float32 [batch, samples], mono in [-1, 1] at "
        f"{front_end.sample_rate} Hz, of any length; trained on windows of "
        f"{description.window_samples} "
        f"({description.window_samples / front_end.sample_rate:g} s). A recording's score is the "
        "mean over such windows, cut as in `example.py`; a shorter recording is repeated to fill "
        "one window.",
        "- Output: " + " and ".join(outputs) + ", float32.",
    ]
    if description.labels:
        how = "predicted independently" if description.multi_label else "exactly one per recording"
        lines.append(f"- Labels ({how}): {', '.join(description.labels)}.")
    for name, words in (
        ("examples", "training examples"),
        ("n_train", "training recordings"),
        ("n_train_subjects", "training subjects"),
    ):
        if name in result:
            lines.append(f"- {words[0].upper()}{words[1:]}: {result[name]}.")
    if description.synthetic:
        lines.append(
            "- **Synthetic audio was used in training: its numbers say nothing about infants.**"
        )
    return lines


def _limits(description: Description) -> str:
    """What the numbers and probabilities do not tell."""
    text = (
        "The numbers apply to recordings like those above: same devices, rooms, ages and "
        "labelling. "
    )
    if description.labels:
        text += (
            "Probabilities apply if classes are as common as in its training batches (finetune "
            "balances them by default): for a rarer class they are too high. They are not a "
            "patient's risk, and not calibrated for another population. "
        )
    return text + (
        "A model may reveal what its training recordings contain: decide who may have the weights "
        "as you would for the recordings."
    )


def write(
    description: Description,
    meta: dict[str, Any],
    result: dict[str, Any],
    license: str,
    weights: str = "float32",
    *,
    finished: bool = True,
) -> str:
    """The model card, as Markdown with the hub's front matter.

    Args:
      description: of the model.
      meta: of the run's checkpoint.
      result: the run's result.json, empty if it has none.
      license: of the weights; '' if their publisher has yet to choose one.
      weights: how they are stored.
      finished: whether the run has ended.
    """
    license_line = license or "not stated yet; whoever publishes the weights must choose one"
    measured = (
        _measured(result) if result.get("intervals") else "No results on labelled recordings."
    )
    if weights != "float32" and result.get("intervals"):
        measured += f"\n\nMeasured with the run's float32 weights; those here are {weights}."
    return "\n".join(
        [
            "---", *_front_matter(description, license), "---", "",
            f"# {description.encoder.upper()} by cryjax", "",
            *_facts(description, meta, result, finished=finished), "",
            "## Intended use", "",
            "Research on audio representations and on infant cries. **Not a medical device**: not "
            "for diagnosis, and not for any decision about a person's care.", "",
            "## Measured", "", measured, "",
            "## Limits", "",
            _limits(description), "",
            "## Use", "", "```", "pip install onnxruntime soundfile",
            "python example.py RECORDING.wav", "```", "",
            "onnxruntime 1.29 and later report their use to Microsoft, unless "
            "`ORT_DISABLE_TELEMETRY=1` is set before they are imported, as `example.py` does.", "",
            "`model.onnx` is the whole model, front end included. `model.safetensors` has its "
            "weights under the names of PANNs' PyTorch classes, which support neither another "
            "width nor the front end's `normalise`. `config.json` has the labels and the front "
            "end.",
            "", f"Licence: {license_line}.", "",
        ]
    )  # fmt: skip
