"""Prepared datasets are those that TFDS would write, of any size and without TensorFlow."""

import tracemalloc

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from cryjax.data import records, writing


def examples(count, samples=100):
    """With their keys."""
    for place in range(count):
        audio = np.full(samples, place, np.int16)
        example = {"audio": audio, "label": "ä;b", "subject": f"s{place}"}
        yield writing.keyed(example | {"recording": place, "segment": place % 3})


class Plain(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes as TFDS does by itself."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=records.FEATURES)

    def _split_generators(self, _):
        return {"train": examples(50), "test": examples(7)}

    def _generate_examples(self):
        raise NotImplementedError


def test_order_and_account_are_those_of_tfds(tmp_path):
    with writing.Writer(tmp_path / "data") as writer:
        written = writer.write({"train": examples(50), "test": examples(7)}, shards=3)
        writer.finish(written, {})
    ours = tfds.builder_from_directory(str(tmp_path / "data"))
    plain = Plain(data_dir=str(tmp_path / "plain"), file_format="array_record")
    config = tfds.download.DownloadConfig(num_shards=3)
    plain.download_and_prepare(download_config=config)
    for split, info in plain.info.splits.items():
        assert ours.info.splits[split].shard_lengths == info.shard_lengths
        assert ours.info.splits[split].num_bytes == info.num_bytes
        found, expected = (b.as_data_source(split=split) for b in (ours, plain))
        assert len(found) == len(expected) > 0
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_equal(one, other)


def test_a_split_may_be_larger_than_what_tfds_holds_in_memory(tmp_path, monkeypatch):
    # From there on TFDS's own writer needs TensorFlow; as a size it would take a test too long.
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 0)
    count, samples = 300, 50_000
    with writing.Writer(tmp_path / "data") as writer:
        tracemalloc.start()
        written = writer.write({"train": examples(count, samples)})
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        left = [path.name for path in writer.partial.iterdir()]
        writer.finish(written, {})
    assert peak < count * samples * 2 / 10
    assert left == ["first"]  # the file on the way is gone
    source = records.Source(tfds.builder_from_directory(str(tmp_path / "data")), "train")
    assert sorted(example["recording"] for example in source) == [*range(count)]
    assert all((example["audio"] == example["recording"]).all() for example in source)
