"""A built TFDS dataset's audio, labels and speakers come through as they are."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from cryjax.command.errors import UserError
from cryjax.data import catalogue
from cryjax.data.recording import digest

RATE = 1_000


def audio(samples, seed=0):
    return np.random.default_rng(seed).integers(-32768, 32768, samples).astype(np.int16)


NAMES = ("discomfort", "hunger", "pain")


class Catalogue(tfds.core.GeneratorBasedBuilder):
    """A dataset as those of the catalogue, but with audio that needs no TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, examples, shape, dtype, *, speakers=True, **options):
        self._examples, self._audio, self._speakers = examples, (shape, dtype), speakers
        super().__init__(file_format="array_record", **options)

    def _info(self):
        shape, dtype = self._audio
        features = {
            "speech": tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes"),
            "trigger": tfds.features.ClassLabel(names=NAMES),
        }
        if self._speakers:
            features["speaker_id"] = np.int64
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield from enumerate(self._examples)


def converted(tmp_path, sounds, labels, source_rate=RATE, rate=RATE):
    """What the recordings of a dataset are, by speaker."""
    examples = [
        {"speech": sound, "trigger": label, "speaker_id": i}
        for i, (sound, label) in enumerate(zip(sounds, labels, strict=True))
    ]
    shape = (None, *sounds[0].shape[1:])
    builder = Catalogue(examples, shape, sounds[0].dtype, data_dir=str(tmp_path))
    builder.download_and_prepare()
    opened = catalogue.open_built(str(builder.data_dir), None)
    recordings = catalogue.recordings(opened, "train", rate, source_rate, first=5)
    return {recording.subject: recording for recording in recordings}


def test_tfds_audio_labels_and_speakers(tmp_path):
    sounds = [audio(2_000, 1), audio(2_000, 2), np.zeros(2_000, np.int16), np.zeros(0, np.int16)]
    found = converted(tmp_path, sounds, ["pain", -1, "hunger", "hunger"])
    assert sorted(found) == ["0", "1", "2", "3"]
    for i in range(2):
        np.testing.assert_array_equal(found[str(i)].audio, sounds[i])
    assert found["0"].label == "pain"
    assert found["1"].label == ""  # -1 is no label, not the last one
    for i, reason in (("2", "silent"), ("3", "only 0 samples")):
        assert found[i].audio is None and reason in found[i].reason
    assert {recording.number for recording in found.values()} == {5, 6, 7, 8}


def test_recordings_of_no_speaker_are_not_those_of_another_dataset(tmp_path):
    builder = Catalogue([{"speech": audio(2_000), "trigger": "pain"}], (None,), np.int16,
                        data_dir=str(tmp_path), speakers=False)  # fmt: skip
    builder.download_and_prepare()
    opened = catalogue.open_built(str(builder.data_dir), None)
    (found,) = catalogue.recordings(opened, "train", RATE, RATE)
    assert found.alone and found.subject_id == f"s-{digest(audio(2_000))[:16]}"


def test_tfds_stereo_is_averaged(tmp_path):
    stereo = np.stack([audio(2_000, 1), audio(2_000, 2)], axis=1)
    mono = converted(tmp_path, [stereo], ["pain"])["0"].audio
    assert np.abs(mono - stereo.mean(axis=1)).max() <= 0.5


def test_tfds_floats_are_scaled_and_resampled(tmp_path):
    rate = 4_000
    sine = 0.5 * np.sin(2 * np.pi * 100 * np.arange(2 * rate) / rate)
    found = converted(tmp_path, [sine.astype(np.float32)], ["pain"], source_rate=rate)["0"].audio
    assert len(found) == 2 * RATE
    expected = 0.5 * np.sin(2 * np.pi * 100 * np.arange(2 * RATE) / RATE)
    assert np.abs(found / 32768 - expected)[200:-200].max() < 1e-4


def test_tfds_mistakes(tmp_path):
    with pytest.raises(UserError, match="--source_rate"):
        converted(tmp_path, [audio(100)], ["pain"], source_rate=0)
    with pytest.raises(UserError, match=r"no dataset_info\.json; give the folder of a version"):
        catalogue.open_built(str(tmp_path), None)
    for name in ("no_such_dataset", "not a name", "no/such/folder", "./x"):
        with pytest.raises(UserError, match="no such dataset in TFDS's catalogue"):
            catalogue.open_built(name, None)
