"""Embeddings of recordings: segments are averaged, batches do not matter."""

import functools
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

import programs
from cryjax.audio import frontend
from cryjax.data.cutting import windows
from cryjax.evaluation.embeddings import Embedder
from cryjax.models import Classifier, encoders, make_encoder
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


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_float32_has_its_full_precision_on_accelerators(platform):
    """Their default would be TF32, or bfloat16."""
    encoder, head = make_encoder("cnn6", 1 / 16), Classifier(3)
    shapes = jax.eval_shape(functools.partial(encoders.fresh, encoder, mels=40), jax.random.key(0))
    embedding = jax.ShapeDtypeStruct((1, encoder.features), np.float32)
    of_head = {"params": jax.eval_shape(head.init, jax.random.key(0), embedding)["params"]}
    function = functools.partial(
        steps.outputs, encoder=encoder, head=head, settings=frontend.PRESETS["small_8k"]
    )
    audio = jax.ShapeDtypeStruct((2, 4000), np.int16)
    traced = jax.jit(function).trace({"encoder": shapes, "head": of_head}, audio)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    products = [x for x in text.splitlines() if "dot_general" in x or ".convolution" in x]
    assert len(products) > 5
    assert all("HIGHEST" in line and "DEFAULT" not in line for line in products), products


def test_several_devices_share_all_of_the_work():
    """The same numbers as one device's, without any device having another's waveforms."""
    script = """
import functools, jax, numpy as np
from cryjax.audio import frontend
from cryjax.evaluation.embeddings import Embedder
from cryjax.models import encoders
from test_embeddings import Dataset
encoder, settings = encoders.make_encoder("cnn6", 1 / 16), frontend.PRESETS["small_8k"]
draw = jax.jit(functools.partial(encoders.fresh, encoder, mels=settings.mels))
variables = draw(jax.random.key(0))
found = [
    Embedder.of(encoder, settings, 4000, devices=jax.devices()[:count])
    for count in (1, 4)
]
one, four = (embedder(variables, Dataset()).features for embedder in found)
np.testing.assert_allclose(one, four, atol=1e-5)
spread = found[1]._parallel
batch = spread.shard({"audio": np.zeros((8, 4000), np.int16)})["audio"]
text = found[1]._embed.lower(spread.replicate(variables), batch).compile().as_text()
assert "all-gather" not in text and "all-reduce" not in text
"""
    flags = f"{programs.XLA_FLAGS} --xla_force_host_platform_device_count=4"
    path = f"{programs.ROOT}:{programs.ROOT / 'tests'}"
    subprocess.run(
        [sys.executable, "-c", script], check=True, cwd=pathlib.Path(__file__).parent,
        env=programs.environment(XLA_FLAGS=flags, PYTHONPATH=path),
    )  # fmt: skip
