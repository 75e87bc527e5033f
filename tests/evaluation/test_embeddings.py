"""Embeddings of recordings: segments are averaged, batches do not matter."""

import functools

import jax
import numpy as np
import pytest

from cryjax.audio import frontend
from cryjax.data.cutting import windows
from cryjax.evaluation.embeddings import Embedder
from cryjax.models import make_encoder
from cryjax.training import steps


class Dataset:
    """Stands in for a prepared dataset: three recordings, the first in two segments."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.rows = [
            {
                "audio": rng.integers(-9000, 9000, length).astype(np.int16),
                "label": label,
                "subject": subject,
                "recording": recording,
                "segment": segment,
            }
            for length, label, subject, recording, segment in [
                (9000, "a", "s1", 7, 0),
                (2000, "", "s2", 9, 0),
                (5000, "a", "s1", 7, 1),
                (4000, "b", "s3", 8, 0),
            ]
        ]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, place):
        return self.rows[place]


@pytest.fixture(scope="module")
def model():
    encoder, settings = make_encoder("cnn6", 1 / 16), frontend.PRESETS["small_8k"]
    variables = jax.jit(encoder.init)(jax.random.key(0), np.zeros((1, 64, settings.mels)))
    return functools.partial(steps.embed, encoder=encoder, settings=settings), variables


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_recordings_are_averaged_over_all_their_windows(model, batch_size):
    function, variables = model
    dataset = Dataset()
    embed = jax.jit(function)
    found = Embedder(function, 4000, batch_size=batch_size)(variables, dataset)
    # Ordered by recording: 7, 8, 9.
    assert found.recordings.tolist() == [7, 8, 9]
    assert found.labels.tolist() == ["a", "b", ""] and found.subjects.tolist() == ["s1", "s3", "s2"]
    for row, places in zip(found.features, ([0, 2], [3], [1]), strict=True):
        pieces = np.concatenate([windows(dataset.rows[p]["audio"], 4000) for p in places])
        np.testing.assert_allclose(row, embed(variables, pieces).mean(axis=0), atol=1e-4)


def test_most_spreads_over_the_split(model):
    function, variables = model
    found = Embedder(function, 4000)(variables, Dataset(), most=2)
    assert found.subjects.tolist() == ["s1", "s3"]  # the first and the last row
