"""Records are parsed as TFDS does it."""

import hypothesis
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import strategies

from cryjax.data import records, tf_example


@hypothesis.settings(deadline=None)
@hypothesis.given(
    samples=strategies.sampled_from([0, 1, 63, 64, 8191, 8192, 200_000]),
    label=strategies.text(max_size=200),
    subject=strategies.text(max_size=200),
    recording=strategies.integers(0, 2**63 - 1),
    segment=strategies.integers(0, 300),
)
def test_it_finds_what_tfds_finds(samples, label, subject, recording, segment):
    audio = np.random.default_rng(samples).integers(-(2**15), 2**15, samples).astype(np.int16)
    example = {"audio": audio, "label": label, "subject": subject}
    example |= {"recording": recording, "segment": segment}
    record = records.FEATURES.serialize_example(example)
    found = tf_example.parse(record)
    expected = records.FEATURES.deserialize_example_np(record)
    assert found.keys() == expected.keys()
    np.testing.assert_array_equal(np.frombuffer(found["audio"], "<i2"), expected["audio"])
    assert bytes(found["label"]) == expected["label"] == label.encode()
    assert bytes(found["subject"]) == expected["subject"] == subject.encode()
    assert found["recording"] == expected["recording"] == recording
    assert found["segment"] == expected["segment"] == segment


def test_it_copies_no_audio():
    example = {"audio": np.ones(1000, np.int16), "label": "", "subject": ""}
    record = records.FEATURES.serialize_example(example | {"recording": 0, "segment": 0})
    assert tf_example.parse(record)["audio"].obj is record


@pytest.mark.parametrize(
    ("feature", "value"),
    [
        (tfds.features.Tensor(shape=(2,), dtype=np.int64), [1, 2]),
        (tfds.features.Tensor(shape=(), dtype=np.float32), 1.0),
        (tfds.features.Sequence(tfds.features.Text()), ["a", "b"]),
    ],
)
def test_what_is_not_one_value_is_refused(feature, value):
    features = tfds.features.FeaturesDict({"x": feature})
    record = features.serialize_example({"x": value})
    with pytest.raises(ValueError, match="'x' is not a single value"):
        tf_example.parse(record)
