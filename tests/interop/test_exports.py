"""What ONNX and StableHLO files say is what the model says, for any batch and length."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import onnx as onnx_package
import pytest
import soundfile

import lively
import programs
from cryjax.audio import frontend
from cryjax.command.errors import UserError
from cryjax.data import decode
from cryjax.interop import card, onnx, stablehlo, weights
from cryjax.interop.model import Model, load

FORMATS = {"onnx": onnx, "stablehlo": stablehlo}
# An odd window, a hop that does not divide it, zeros at the ends and bands that pooling uses up.
ODD = frontend.FrontEnd(8_000, 255, 77, 20, 0.0, 4_000.0, "hamming", "constant", htk=True)
MODELS = {
    "cnn10": ("cnn10", "cssl_sound", ("a", "b", "c")),
    "cnn14": ("cnn14", "panns_16k", ("a", "b")),
    "odd": ("cnn6", ODD, ("a", "b")),
}


def written(tmp_path, kind, source, stored="float32"):
    path = tmp_path / f"model.{kind}"
    FORMATS[kind].write(source, path, stored)
    return path


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        # Of StableHLO, in which JAX writes down what is called anyway, the odd one stands for all.
        pytest.param(kind, name, marks=[pytest.mark.slow] * (kind != "onnx" and name != "odd"))
        for kind in FORMATS
        for name in MODELS
    ],
)
def test_any_batch_and_length(tmp_path, kind, name):
    encoder, settings, labels = MODELS[name]
    source = lively.source(
        encoder, settings, labels, multi_label=name == "cnn10", window_samples=8000
    )
    description, function = FORMATS[kind].open_file(written(tmp_path, kind, source))
    assert description == source.description
    least = description.least_samples
    sizes = [(1, least), (3, 7999)]
    if name == "odd":  # at these the last window is the first to fit, or does not yet
        sizes += [(1, 60 * ODD.hop_length), (1, 60 * ODD.hop_length - 1)]
    for batch, samples in sizes:
        waveform = lively.waveform(description.sample_rate)[:, :samples]
        waveform = np.resize(waveform, (batch, samples))
        wanted = jax.jit(source.function)(source.variables, waveform)
        found = function(waveform)
        assert found.keys() == wanted.keys() == set(description.output_names)
        for output, value in wanted.items():
            assert np.abs(value).max() > 0.01 and value.shape == found[output].shape
            # The convolution of the ONNX graph rounds otherwise than a transform.
            np.testing.assert_allclose(found[output], value, atol=2e-5 * np.abs(value).max())
    if kind == "onnx":  # less than can be pooled is repeated to fill a window, as cryjax does
        model = Model(description, function)
        for samples in (1, least // 5, least - 1):
            short = lively.waveform(description.sample_rate)[:1, :samples]
            short = decode.to_int16(short).astype(np.float32) / 32768
            expected = model.embed(short, description.sample_rate)
            scale = np.abs(expected).max()
            found = function(np.repeat(short, 2, axis=0))["embedding"]
            np.testing.assert_allclose(found, np.repeat(expected, 2, 0), atol=2e-5 * scale)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("stored", "share", "tolerance"), [("float16", 0.65, 2e-3), ("int8", 0.45, 4e-2)]
)
def test_smaller_files(tmp_path, kind, stored, share, tolerance):
    source = lively.source("cnn6", width=1 / 4)
    whole = written(tmp_path, kind, source).stat().st_size
    path = written(tmp_path, kind, source, stored)
    assert path.stat().st_size < share * whole
    waveform = lively.waveform(8_000)
    wanted = jax.jit(source.function)(source.variables, waveform)["embedding"]
    found = FORMATS[kind].open_file(path)[1](waveform)["embedding"]
    difference = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert 1e-7 < difference < tolerance


def test_stored_weights():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 4, 5)).astype(np.float32) * np.array([1, 10, 100, 0, 1e-3])
    kernel = kernel.astype(np.float32)
    stored = weights.store(kernel, "int8")
    error = np.abs(weights.restore(stored) - kernel)
    # Half a step of each output's own scale; an output of zeros stays zeros.
    assert np.all(error <= 0.5001 * np.abs(kernel).max(axis=(0, 1, 2)) / 127)
    assert not weights.restore(stored)[..., 3].any()
    np.testing.assert_array_equal(weights.restore(weights.store(kernel, "float32")), kernel)
    bias = rng.normal(size=7).astype(np.float32)
    np.testing.assert_array_equal(weights.store(bias, "int8"), bias)


def test_the_graph_is_plain_onnx(tmp_path):
    path = written(tmp_path, "onnx", lively.source("cnn14", "panns_16k", ("a", "b")))
    graph = onnx_package.load(path)
    onnx_package.checker.check_model(graph, full_check=True)
    kinds = {node.op_type for node in graph.graph.node}
    assert not kinds & {"BatchNormalization", "Scan", "Loop", "If", "STFT", "DFT"}
    assert {node.domain for node in graph.graph.node} == {""}


@pytest.mark.parametrize("kind", FORMATS)
def test_cryjax_loads_it(tmp_path, kind):
    source = lively.source("cnn6", labels=("a", "b"))
    model = load(str(written(tmp_path, kind, source)))
    own = Model(source.description, lambda x: jax.jit(source.function)(source.variables, x))
    waveform = lively.waveform(16_000, 1.3)
    assert model.labels == ("a", "b") and model.sample_rate == 8_000
    for method in ("embed", "predict"):
        found, wanted = (getattr(m, method)(waveform, 16_000) for m in (model, own))
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("use", ["load", "check", "example"])
def test_onnxruntime_reports_nothing(tmp_path, use):
    """Its telemetry, when on, makes ~/.cache/Microsoft."""
    source = lively.source()
    path, home = written(tmp_path, "onnx", source), tmp_path / "home"
    home.mkdir()
    np.savez(tmp_path / "inputs.npz", noise=lively.waveform(8_000))
    soundfile.write(tmp_path / "a.wav", lively.waveform(8_000)[0], 8_000)
    (tmp_path / "config.json").write_text(card.config(source.description))
    example = card.example(source.description).replace("__file__", "'example.py'")
    script, *arguments = {
        "load": ("import sys, cryjax; cryjax.load(sys.argv[1])", path),
        "check": (onnx.CHECK, path, "inputs.npz", "outputs.npz"),
        "example": (example, "a.wav"),
    }[use]
    done = subprocess.run(
        [sys.executable, "-c", f"{script}\nimport os; print(os.environ['ORT_DISABLE_TELEMETRY'])",
         *arguments],
        env={"HOME": str(home), "PYTHONPATH": str(programs.ROOT), "JAX_PLATFORMS": "cpu"},
        cwd=tmp_path, text=True, capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "1" and not (home / ".cache" / "Microsoft").exists()


def test_what_is_no_model(tmp_path):
    for name in ("model.onnx", "model.stablehlo"):
        with pytest.raises(UserError, match=r"cannot be read|no such file"):
            load(str(tmp_path / name))
        (tmp_path / name).write_bytes(b"nonsense")
    with pytest.raises(UserError, match="not an ONNX file from python -m cryjax"):
        load(str(tmp_path / "model.onnx"))
    with pytest.raises(
        UserError, match=r"keep the NAME\.stablehlo and NAME\.stablehlo\.json of .* together"
    ):
        load(str(tmp_path / "model.stablehlo"))
    (tmp_path / "model.stablehlo.json").write_text(lively.source().description.to_json())
    with pytest.raises(UserError, match=r"not a model from python -m cryjax\.export"):
        load(str(tmp_path / "model.stablehlo"))
    with pytest.raises(UserError, match="no model found; give the --workdir"):
        load(str(tmp_path / "missing"))


def test_another_models_description_is_noticed(tmp_path):
    path = written(tmp_path, "stablehlo", lively.source("cnn6", labels=("a", "b")))
    for labels in ((), ("a",), ("a", "b", "c")):
        other = lively.source("cnn6", labels=labels).description
        (tmp_path / "model.stablehlo.json").write_text(other.to_json())
        with pytest.raises(UserError, match=r"stablehlo\.json describes another model"):
            load(str(path))


@pytest.mark.parametrize(("kind", "package"), [("onnx", "onnx"), ("stablehlo", "flatbuffers")])
def test_a_missing_package_is_named(tmp_path, monkeypatch, kind, package):
    path = written(tmp_path, kind, lively.source())
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    said = rf'needs {package}: pip install "cryjax\[export\]"'
    with pytest.raises(UserError, match=said):
        written(tmp_path, kind, lively.source())
    with pytest.raises(UserError, match=said):
        load(str(path))


def test_a_description_survives_json():
    description = lively.source("cnn10", ODD, ("a", "ä;b")).description
    text = description.to_json()
    assert type(description).from_json(text) == description
    assert set(json.loads(text)) == {field.name for field in dataclasses.fields(description)}
    with pytest.raises(ValueError, match="not the description of a model"):
        dataclasses.replace(description, window_samples=-5)
