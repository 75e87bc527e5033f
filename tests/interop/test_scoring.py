"""Files are scored as a model scores their waveforms, however windows share batches."""

import dataclasses

import numpy as np
import pytest
import soundfile

import lively
from cryjax.audio import frontend
from cryjax.interop.model import Model
from cryjax.interop.scoring import Predictor, spectrum

RATE, WINDOW = 8_000, 4_000


@pytest.fixture(scope="module")
def model():
    """Of glass: a window's embedding is its first sample and its mean; segments of 2 s."""
    description = dataclasses.replace(
        lively.source("cnn6", labels=("a", "b"), window_samples=WINDOW).description,
        features=2,
        segment_seconds=2.0,
    )

    def outputs(windows):
        mean = windows.mean(axis=1)
        return {
            "embedding": np.stack([windows[:, 0], mean], axis=1),
            "probabilities": np.stack([0.5 + mean, 0.5 - mean], axis=1),
        }

    return Model(description, outputs)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """{name: int16 samples}, of a part of a window, some segments, and tails kept and dropped."""
    rng = np.random.default_rng(0)
    folder, found = tmp_path_factory.mktemp("recordings"), {}
    for seconds in (0.2, 5.5, 0.5, 4.3, 2.0, 1.3):
        audio = rng.integers(-9000, 9000, round(seconds * RATE)).astype(np.int16)
        soundfile.write(folder / f"{seconds}.wav", audio, RATE, "PCM_16")
        found[folder / f"{seconds}.wav"] = audio
    return found


def scored(model, paths, batch_size=3, **options):
    predictor = Predictor(model, batch_size, **{"upsample": False, "spectra": False} | options)
    found = []
    for score in predictor.scores([(path.name, path) for path in paths]):
        assert score.read and len(score.starts) == score.windows  # before others are read
        found.append(score)
    return found


@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_a_file_has_the_scores_of_its_waveform(model, recordings, batch_size):
    found = scored(model, recordings, batch_size)
    assert [score.name for score in found] == [path.name for path in recordings]
    for score, audio in zip(found, recordings.values(), strict=True):
        assert not score.error and score.samples == len(audio)
        assert score.windows == len(model.windows(audio))
        for output, wanted in (("embedding", model.embed), ("probabilities", model.predict)):
            np.testing.assert_allclose(score.mean(output), wanted(audio, RATE)[0], rtol=1e-5)
        windows = model.outputs(model.windows(audio))["probabilities"]
        np.testing.assert_array_equal(score.probabilities, windows)


def test_a_window_starts_where_it_says(model, recordings):
    for score, audio in zip(scored(model, recordings), recordings.values(), strict=True):
        places = np.array(score.starts) * RATE
        np.testing.assert_allclose(places, places.round(), atol=1e-6)
        firsts = model.outputs(model.windows(audio))["embedding"][:, 0]
        np.testing.assert_array_equal(audio[places.round().astype(int)] / 32768, firsts)


def test_recordings_come_in_order_as_soon_as_they_are_complete(model, recordings, tmp_path):
    """And one that cannot be used waits for its turn, with its reason."""
    (tmp_path / "broken.wav").write_bytes(b"nonsense")
    paths = [tmp_path / "broken.wav", *recordings]
    predictor = Predictor(model, 1, upsample=False, spectra=False)
    read = []

    def named():
        for path in paths:
            read.append(path.name)
            yield path.name, path

    for place, score in enumerate(predictor.scores(named())):
        assert score.name == paths[place].name == read[-1]
        assert bool(score.error) == (place == 0)
    assert len(read) == len(paths)
    late = scored(model, paths[::-1], 1000)
    assert [bool(score.error) for score in late] == [False] * len(recordings) + [True]


def test_a_lower_rate_is_for_those_who_ask(model, tmp_path):
    soundfile.write(tmp_path / "low.wav", lively.waveform(4_000)[0], 4_000)
    assert "4000 Hz" in scored(model, [tmp_path / "low.wav"])[0].error
    assert scored(model, [tmp_path / "low.wav"], upsample=True)[0].samples == RATE


def test_a_figures_columns_are_the_loudest_of_each_50th_of_a_second(model):
    """A click of one sample is in one of them; a shorter segment has fewer, of the same levels."""
    audio = np.zeros(2 * RATE, np.int16)
    audio[10_000] = 20_000
    found = spectrum(audio, model)
    settings = model.description.front_end
    step = round(0.02 * RATE) // settings.hop_length
    power = np.asarray(frontend.mel_power(audio[None], settings))[0]
    wanted = [
        10 * np.log10(np.maximum(power[n : n + step].max(axis=0), frontend.LEAST_POWER))
        for n in range(0, len(power), step)
    ]
    np.testing.assert_allclose(found.astype(np.float64), wanted, atol=0.05)
    assert abs(found.sum(axis=1, dtype=np.float64).argmax() - 10_000 / 160) <= 2
    np.testing.assert_allclose(spectrum(audio[:12_000], model), found[:76], atol=0.05)


def test_a_recording_has_its_columns_if_a_figure_is_wanted(model, recordings):
    for wanted in (False, True):
        for score in scored(model, recordings, spectra=wanted):
            parts = [len(part) for part in score.spectrum]
            kept = min(score.samples, max(score.starts) * RATE + WINDOW) if wanted else 0
            assert abs(sum(parts) - kept / 160) <= 2 * len(parts)
