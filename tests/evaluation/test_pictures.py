"""Embeddings for TensorBoard hold what was embedded, and of names nothing but labels."""

import numpy as np
import pytest

from cryjax.evaluation import pictures
from cryjax.evaluation.embeddings import Embeddings
from cryjax.training.workdir import Workdir


def embeddings(count):
    rng = np.random.default_rng(count)
    return Embeddings(
        rng.normal(size=(count, 7)).astype(np.float32),
        np.arange(count),
        np.array(["cry", "", "no\tcry\n"])[np.arange(count) % 3],
        np.array([f"subject-{n}" for n in range(count)]),
    )


def test_the_projector_finds_every_step(tmp_path):
    workdir = Workdir(tmp_path, {})
    for step in (0, 30):
        pictures.embeddings(workdir, step, embeddings(20), note="")
    workdir.close()
    described = (tmp_path / "projector_config.pbtxt").read_text()
    paths = [line.split('"')[1] for line in described.splitlines() if "tensor_path" in line]
    assert paths == ["projector/00000000/tensors.tsv", "projector/00000030/tensors.tsv"]
    for path in paths:
        values = np.loadtxt(tmp_path / path, delimiter="\t")
        np.testing.assert_allclose(values, embeddings(20).features, rtol=1e-4)
        labels = (tmp_path / path).with_name("metadata.tsv").read_text().splitlines()
        assert labels == ["cry", "(none)", "no cry"] * 6 + ["cry", "(none)"]
    left = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"subject-" not in left


@pytest.mark.parametrize("count", [0, pictures.FEWEST - 1])
def test_too_few_show_nothing(tmp_path, count):
    pictures.embeddings(Workdir(tmp_path, {}), 0, embeddings(count), note="")
    assert not (tmp_path / "projector_config.pbtxt").exists()


def test_a_collapsed_encoder_is_drawn(tmp_path):
    found = embeddings(20)
    alike = Embeddings(np.ones_like(found.features), found.recordings, found.labels, found.subjects)
    with np.errstate(all="ignore"):
        pictures.embeddings(Workdir(tmp_path, {}), 0, alike, note="")
    assert (tmp_path / "projector_config.pbtxt").exists()
