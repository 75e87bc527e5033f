"""Class names, and the front end if a file states none; the rest is in test_predict.py."""

import dataclasses

import jax
import numpy as np
import pytest
from absl.testing import flagsaver

import lively
from cryjax import import_weights
from cryjax.command.errors import UserError
from cryjax.interop import model, panns


@pytest.fixture(autouse=True)
def parsed():
    if not import_weights._LABELS._flagvalues.is_parsed():
        import_weights._LABELS._flagvalues(["import_weights"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.txt", "Speech\n\nCrying, sobbing\n"),
        ("indices.csv", 'index,mid,display_name\n0,/m/09x0r,Speech\n1,/m/0463,"Crying, sobbing"\n'),
    ],
)
def test_names_of_classes(tmp_path, name, content):
    file = tmp_path / name
    file.write_text(content, encoding="utf-8-sig")
    with flagsaver.flagsaver(labels=str(file)):
        assert import_weights.read_labels(2, None) == ("Speech", "Crying, sobbing")
        with pytest.raises(UserError, match="2 different names; the weights need 3, each once"):
            import_weights.read_labels(3, None)
    short = tmp_path / "short.csv"
    short.write_text("index,display_name\n0,Speech\n1\n")
    with (
        flagsaver.flagsaver(labels=str(short)),
        pytest.raises(UserError, match=r"short\.csv: no display_name in the row '1'"),
    ):
        import_weights.read_labels(2, None)
    with flagsaver.flagsaver(labels=None):
        assert import_weights.read_labels(3, None) == ("0", "1", "2")
    with (
        flagsaver.flagsaver(labels=str(tmp_path / "none")),
        pytest.raises(UserError, match="cannot be read"),
    ):
        import_weights.read_labels(2, None)


def test_a_file_that_tells_no_front_end_needs_one():
    with flagsaver.flagsaver(weights="a.pth", front_end="panns_16k"):
        assert import_weights.choose_front_end({}, None) == "panns_16k"
    with (
        flagsaver.flagsaver(weights="a.pth", front_end=None),
        pytest.raises(UserError, match=r"a\.pth does not state its front end; give --front_end"),
    ):
        import_weights.choose_front_end({}, None)


def test_what_was_exported_comes_back_as_it_was(tmp_path):
    """Labels, window, softmax or sigmoid, and whether it is of synthetic audio."""
    source = lively.source("cnn6", "small_8k", ("ill", "well"))
    described = dataclasses.replace(
        source.description, synthetic=True, window_samples=6_400, segment_seconds=5.0
    )
    tensors = panns.to_state_dict(source.variables, "cnn6", described.front_end)
    panns.write_tensors(tmp_path / "m.safetensors", tensors, "float32", cryjax=described.to_json())
    with flagsaver.flagsaver(
        weights=str(tmp_path / "m.safetensors"), workdir=str(tmp_path / "run"),
        front_end=None, labels=None,
    ):  # fmt: skip
        import_weights.main([])
    back = model.read_run(str(tmp_path / "run"))
    assert back.description == described
    waveform = lively.waveform(8_000)[:, :6_400]
    wanted, found = (
        jax.jit(each.function)(each.variables, waveform)["probabilities"] for each in (source, back)
    )
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    for said in ("hello", '{"encoder": "cnn6"}', "[1]"):
        panns.write_tensors(tmp_path / "odd.safetensors", tensors, "float32", cryjax=said)
        with pytest.raises(UserError, match=r"its 'cryjax' metadata is not from cryjax\.export"):
            panns.read_description(tmp_path / "odd.safetensors")
