"""The model card says what its numbers and probabilities do not tell."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile

import lively
from cryjax.interop import card

META = {"program": "finetune", "step": 7, "version": "0.1.0", "config": {"total": "30 epochs"}}
RESULT = {
    "n_recordings": 20,
    "n_subjects": 5,
    "labels": ["a", "b"],
    "accuracy": 0.7,
    "intervals": {"accuracy": [0.5, 0.9]},
}


def test_a_classifiers_probabilities_are_nobodys_risk():
    caveat = "as common as in its training batches"
    for labels in ((), ("a", "b")):
        text = " ".join(card.write(lively.source(labels=labels).description, META, {}, "").split())
        assert (caveat in text and "not a patient's risk" in text) == bool(labels)


def test_what_the_numbers_were_measured_with():
    description = lively.source(labels=("a", "b")).description
    for kind, result in (("float32", RESULT), ("float16", RESULT), ("float16", {})):
        text = card.write(description, META, result, "", weights=kind)
        assert ("those here are float16" in text) == (kind == "float16" and bool(result))


def test_an_unfinished_run_says_so():
    for finished in (True, False):
        text = card.write(lively.source().description, META, {}, "", finished=finished)
        line = next(line for line in text.splitlines() if line.startswith("- Training:"))
        assert "7 steps" in line
        assert line.endswith(", of '30 epochs': unfinished when exported.") != finished


def test_what_a_detector_detects_and_where_its_threshold_is_from():
    description = lively.source(labels=("well", "ill")).description
    name = "sensitivity_at_80_specificity"
    intervals = RESULT["intervals"] | {name: [None, None]}  # one positive subject
    result = RESULT | {name: 0.9, "positive": "ill", "intervals": intervals}
    text = card.write(description, META, result, "")
    assert "| sensitivity at 80 % specificity | 0.900 no interval |" in text
    assert "average precision are for 'ill'" in text and "Sensitivity is optimistic" in text
    assert "optimistic" not in card.write(description, META, RESULT, "")


@pytest.mark.parametrize(("gain", "said"), [(32768, "far beyond full scale"), (np.nan, "finite")])
def test_the_example_refuses_what_predict_refuses(tmp_path, gain, said):
    description = lively.source().description
    (tmp_path / "example.py").write_text(card.example(description))
    (tmp_path / "config.json").write_text(card.config(description))
    soundfile.write(tmp_path / "a.wav", gain * lively.waveform(8_000)[0], 8_000, "FLOAT")
    done = subprocess.run(
        [sys.executable, "example.py", "a.wav"], cwd=tmp_path, text=True, capture_output=True
    )
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr
