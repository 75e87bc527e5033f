"""Models with random weights whose every parameter and statistic matters."""

import functools
import zlib

import jax
import numpy as np

from cryjax.audio import frontend
from cryjax.interop.model import Description, Source
from cryjax.models import Classifier, make_encoder
from cryjax.training import steps


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random values for a tensor of PyTorch's name and shape, the same wherever it is made."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    kind = name.rpartition(".")[2]
    first = name.startswith(("bn0.", "norm0."))
    if kind == "running_var" or (kind == "weight" and len(shape) == 1):
        values = rng.uniform(0.5, 1.5, shape) * (200.0 if first and kind != "weight" else 1.0)
    elif kind == "running_mean":
        values = rng.normal(0.0, 0.1, shape) - (30.0 if first else 0.0)
    elif kind == "bias":
        values = rng.normal(0.0, 0.1, shape)
    else:
        values = rng.normal(0.0, np.sqrt(2.0 / np.prod(shape[1:])), shape)
    return values.astype(np.float32)


def waveform(sample_rate: int, seconds: float = 1.0) -> np.ndarray:
    """[2, samples]: noise, and a tone in quieter noise."""
    rng = np.random.default_rng(0)
    noise = rng.uniform(-0.5, 0.5, (2, round(seconds * sample_rate)))
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(noise.shape[1]) / sample_rate)
    return np.stack([noise[0], tone + 0.01 * noise[1]]).astype(np.float32)


def spectrogram() -> np.ndarray:
    """[2, frames, 80 mels] in decibels."""
    return np.random.default_rng(0).normal(-30.0, 15.0, (2, 100, 80)).astype(np.float32)


_NAMES = {"scale": "weight", "kernel": "kernel", "mean": "running_mean", "var": "running_var"}


def _fill(path, leaf):
    *places, kind = [key.key for key in path]
    prefix = "bn0." if "norm0" in places else ""
    shape = leaf.shape[::-1]  # outputs first, as `tensor` takes the rest for inputs
    name = f"{prefix}{'.'.join(places)}.{_NAMES.get(kind, kind)}"
    return tensor(name, shape).T.reshape(leaf.shape)


def source(
    encoder: str = "cnn6",
    settings: str | frontend.FrontEnd = "small_8k",
    labels: tuple[str, ...] = (),
    *,
    multi_label: bool = False,
    width: float = 1 / 16,
    window_samples: int = 4000,
) -> Source:
    """A model as `read_run` gives it."""
    settings = frontend.resolve(settings)
    made = make_encoder(encoder, width)
    shapes = jax.eval_shape(made.init, jax.random.key(0), np.zeros((1, 64, settings.mels)))
    variables = {"encoder": jax.tree_util.tree_map_with_path(_fill, dict(shapes))}
    head = None
    if labels:
        head = Classifier(len(labels))
        found = jax.eval_shape(head.init, jax.random.key(0), np.zeros((1, made.features)))
        variables["head"] = jax.tree_util.tree_map_with_path(_fill, dict(found))
    description = Description(
        encoder=encoder,
        width=width,
        features=made.features,
        front_end=settings,
        window_samples=window_samples,
        least_samples=max(2**made.pooled - 1, 1) * settings.hop_length,
        segment_seconds=10.0,
        labels=labels,
        multi_label=multi_label,
        synthetic=False,
    )
    function = functools.partial(
        steps.outputs, encoder=made, settings=settings, head=head, multi_label=multi_label
    )
    return Source(description, variables, function)
