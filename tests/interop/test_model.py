"""A loaded model: means over windows, its own rate, and clear refusals."""

import jax
import numpy as np
import pytest
import soundfile
import soxr

import cryjax
import lively
from cryjax.command.errors import UserError
from cryjax.data import decode
from cryjax.data.cutting import windows
from cryjax.interop import onnx, run
from cryjax.interop.model import Model, read_run
from cryjax.training import checkpoints, trained


@pytest.fixture(scope="module")
def source():
    return lively.source("cnn6", labels=("a", "b"))


@pytest.fixture(scope="module")
def model(source):
    return Model(source.description, lambda x: jax.jit(source.function)(source.variables, x))


def test_a_recording_is_the_mean_over_its_windows(source, model):
    recording = decode.to_int16(lively.waveform(8_000, 1.7)[0])
    pieces = windows(recording, 4000)
    assert len(pieces) == 4
    wanted = jax.jit(source.function)(source.variables, pieces)
    for method, output in (("embed", "embedding"), ("predict", "probabilities")):
        found = getattr(model, method)(recording, 8_000)
        assert found.shape == (1, wanted[output].shape[1]) and found.dtype == np.float32
        np.testing.assert_allclose(found[0], wanted[output].mean(axis=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("count", [1, 3, 16, 37])
def test_batches_do_not_matter(source, model, count):
    rng = np.random.default_rng(count)
    pieces = rng.integers(-9000, 9000, (count, 4000)).astype(np.int16)
    found = model.outputs(pieces)["embedding"]
    wanted = jax.jit(source.function)(source.variables, pieces)["embedding"]
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["run", "onnx"])
def test_windows_of_other_floats(tmp_path, source, model, kind):
    if kind == "onnx":  # which takes float32 alone
        onnx.write(source, tmp_path / "model.onnx", "float32")
        model = cryjax.load(str(tmp_path / "model.onnx"))
    pieces = lively.waveform(8_000)[:, :4000]
    wanted = model.outputs(pieces)
    for other in (np.float64, np.float16):
        found = model.outputs(pieces.astype(other))
        for name, values in found.items():
            assert values.dtype == np.float32
            np.testing.assert_allclose(values, wanted[name], atol=1e-2 * np.abs(wanted[name]).max())
    with pytest.raises(UserError, match="no windows; give"):
        model.outputs(pieces[:0])


def test_several_recordings_and_int16(model):
    batch = lively.waveform(8_000, 1.3)
    whole = model.predict(batch, 8_000)
    np.testing.assert_allclose(whole.sum(axis=1), 1.0, rtol=1e-5)
    for row, recording in zip(whole, batch, strict=True):
        np.testing.assert_allclose(row, model.predict(recording, 8_000)[0], atol=1e-6)
    integers = np.rint(batch * 32768).astype(np.int16)
    exact = integers.astype(np.float64) / 32768
    np.testing.assert_array_equal(model.embed(integers, 8_000), model.embed(exact, 8_000))


def test_a_higher_rate_is_brought_down(model):
    recording = lively.waveform(44_100, 1.0)[1]
    own = np.clip(soxr.resample(recording, 44_100, 8_000, quality="VHQ"), -1, 1)
    np.testing.assert_allclose(
        model.embed(recording, 44_100), model.embed(own, 8_000), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(("rate", "gain"), [(8_000, 1e-3), (44_100, 1e-3), (44_100, 10.0)])
def test_a_waveform_is_rounded_like_a_file(tmp_path, model, rate, gain):
    """Or a quiet recording scores otherwise than in `predict`, and a loud one is refused."""
    recording = gain * lively.waveform(rate)[1]
    soundfile.write(tmp_path / "a.wav", recording, rate, "FLOAT")
    own = np.concatenate([*decode.stream(tmp_path / "a.wav", 8_000)])
    np.testing.assert_array_equal(model.embed(recording, rate), model.embed(own, 8_000))


def test_refusals(source, model):
    wave = lively.waveform(8_000)
    for waveform, rate, said in (
        (wave, 4_000, "at 4000 Hz, but the model was trained at 8000 Hz"),
        (wave[0, :0], 8_000, "shape"),
        (wave[None], 8_000, "shape"),
        (np.stack([wave[0], wave[0]], axis=1), 8_000, "looks like .samples, channels."),
        (wave * 30_000, 8_000, r"give floats in \[-1, 1\] or int16"),
        (wave * np.nan, 8_000, "reaches nan"),
        (wave.astype(np.int64), 8_000, "int64"),
        (wave[:0], 8_000, "shape"),
        (wave[:, :1], 48_000, "1 samples at 48000 Hz is too short"),
        ([[0.0], [0.0, 0.1]], 8_000, "differ in length"),
        (wave, float("nan"), "the sample rate is nan"),
        (wave, "8000", "the sample rate is '8000'"),
    ):
        with pytest.raises(UserError, match=said):
            model.embed(waveform, rate)
    encoder = lively.source("cnn6")
    silent = Model(encoder.description, lambda x: jax.jit(encoder.function)(encoder.variables, x))
    assert silent.labels == () and "cnn6 of width 0.0625" in repr(silent)
    with pytest.raises(UserError, match="no classifier"):
        silent.predict(wave, 8_000)


def test_a_run_comes_back(tmp_path, source):
    folder = tmp_path / "run"
    run.write(folder, "cnn6", 1 / 16, "small_8k", 0.5, source.variables, ("a", "b"))
    found = read_run(str(folder))
    jax.tree.map(np.testing.assert_array_equal, found.variables, source.variables)
    assert found.description.labels == ("a", "b") and found.description.window_samples == 4000
    assert read_run(str(folder), encoder_only=True).variables.keys() == {"encoder"}
    wave = decode.to_int16(lively.waveform(8_000))
    wanted = jax.jit(source.function)(source.variables, wave[:, :4000])["embedding"]
    embedded = cryjax.load(str(folder)).embed(wave[:, :4000], 8_000)
    np.testing.assert_allclose(embedded, wanted, rtol=1e-4, atol=1e-6)
    # Another run is not written over it.
    with pytest.raises(UserError, match="already has a run"):
        run.write(folder, "cnn6", 1 / 16, "small_8k", 1.0, source.variables)


@pytest.mark.parametrize("encoder_only", [False, True])
def test_a_checkpoint_saved_meanwhile_is_not_mixed_in(tmp_path, monkeypatch, source, encoder_only):
    """Weights, labels and `meta` are of one step, while the run goes on saving."""
    run.write(tmp_path, "cnn6", 1 / 16, "small_8k", 0.5, source.variables, ("a", "b"))
    folder, asked = checkpoints.newest(str(tmp_path)), []
    for module in (checkpoints, trained):
        monkeypatch.setattr(module, "newest", lambda run: asked.append(run) or folder)
    read_run("RUN", encoder_only=encoder_only, folder=folder)
    assert asked == []
    read_run("RUN", encoder_only=encoder_only)
    assert asked == ["RUN"]
