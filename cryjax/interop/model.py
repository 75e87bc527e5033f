"""Trained models for inference: waveforms in, embeddings and probabilities out."""

import dataclasses
import functools
import json
import math
import numbers
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import soxr

from cryjax.audio.frontend import FrontEnd
from cryjax.command.errors import UserError
from cryjax.data import cutting, decode
from cryjax.training import checkpoints, steps
from cryjax.training.trained import load_pretrained, load_trained

# Segment length of models that do not state their own.
SEGMENT_SECONDS = 10.0
_MOST_AT_A_TIME = 16
_MOST_CHANNELS = 8

# float32 [batch, samples] -> {name of the output: float32 [batch, ...]}
Function = Callable[[np.ndarray], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Description:
    """What is needed to use a model. Every export carries it as JSON.

    Attributes:
      encoder: name, as `make_encoder` takes it.
      width: of the encoder.
      features: width of the embedding.
      front_end: used in training.
      window_samples: length of the crops that it was trained on.
      least_samples: the shortest waveform that an export takes without repeating it.
      segment_seconds: longer recordings are cut into such segments, and those into windows.
      labels: names of the classes; empty without a classifier.
      multi_label: whether a recording may have several labels.
      synthetic: whether synthetic audio was used in training.
    """

    encoder: str
    width: float
    features: int
    front_end: FrontEnd
    window_samples: int
    least_samples: int
    segment_seconds: float
    labels: tuple[str, ...]
    multi_label: bool
    synthetic: bool

    def __post_init__(self) -> None:
        if min(self.features, self.window_samples, self.least_samples, self.segment_seconds) <= 0:
            raise ValueError(f"not the description of a model: {self}")

    @property
    def sample_rate(self) -> int:
        return self.front_end.sample_rate

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("embedding", "probabilities") if self.labels else ("embedding",)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Description":
        fields = json.loads(text)
        front_end = FrontEnd(**fields.pop("front_end"))
        return cls(front_end=front_end, labels=tuple(fields.pop("labels")), **fields)


@dataclasses.dataclass(frozen=True)
class Source:
    """The parts of a run's model, in float32 whatever it was trained in.

    Attributes:
      description: of the model.
      variables: {'encoder': {'params', 'batch_stats'}}, and {'head': {'params'}} of a classifier.
      function: (variables, float32 [batch, samples]) -> the outputs of `steps.outputs`; pure.
    """

    description: Description
    variables: dict[str, Any]
    function: Callable[[dict[str, Any], jax.Array], dict[str, jax.Array]]


def read_run(run: str, *, encoder_only: bool = False, folder: pathlib.Path | None = None) -> Source:
    """Reads the model of a training run.

    Args:
      run: its work directory.
      encoder_only: whether to omit a classifier.
      folder: the checkpoint's; `checkpoints.newest(run)` if None.
    """
    folder = folder or checkpoints.newest(run)  # once: the run may be training, and save meanwhile
    meta = checkpoints.meta_of(folder)
    classifies = bool(meta["labels"]) and not encoder_only
    if classifies:
        trained = load_trained(run, listed=False, folder=folder)
        pretrained, head = trained.pretrained, trained.head
        variables = {"encoder": pretrained.variables, "head": trained.variables}
    else:
        pretrained, head = load_pretrained(run, listed=False, folder=folder), None
        variables = {"encoder": pretrained.variables}
    encoder = pretrained.encoder.clone(dtype=jnp.float32)
    config = meta["config"]["encoder"]
    description = Description(
        encoder=config["name"],
        width=config["width"],
        features=encoder.features,
        front_end=pretrained.settings,
        window_samples=pretrained.window_samples,
        # Enough frames for every pooling to halve at least two.
        least_samples=max(2**encoder.pooled - 1, 1) * pretrained.settings.hop_length,
        segment_seconds=max(
            meta.get("segment_seconds", SEGMENT_SECONDS),
            pretrained.window_samples / pretrained.settings.sample_rate,
        ),
        labels=tuple(meta["labels"]) if classifies else (),
        multi_label=classifies and meta["multi_label"],
        synthetic=pretrained.synthetic,
    )
    function = functools.partial(
        steps.outputs,
        encoder=encoder,
        settings=pretrained.settings,
        head=head,
        multi_label=description.multi_label,
    )
    return Source(description, variables, function)


class Model:
    """Embeds and classifies recordings: the mean over windows of the length it was trained on.

    Attributes:
      description: of the model.
      sample_rate: its own, in hertz.
      labels: names of its classes; empty without a classifier.
    """

    def __init__(self, description: Description, function: Function):
        """Wraps a function.

        Args:
          description: of the model.
          function: windows -> outputs.
        """
        self.description = description
        self._function = function

    def __repr__(self) -> str:
        told = self.description
        gives = f", labels {', '.join(told.labels)}" if told.labels else ""
        seconds = told.window_samples / self.sample_rate
        return (
            f"Model({told.encoder} of width {told.width:g}, {told.features} features, "
            f"{self.sample_rate} Hz, windows of {seconds:g} s{gives})"
        )

    @property
    def sample_rate(self) -> int:
        return self.description.sample_rate

    @property
    def labels(self) -> tuple[str, ...]:
        return self.description.labels

    def embed(self, waveform: np.ndarray, sample_rate: int) -> np.ndarray:
        """Embeds recordings.

        Args:
          waveform: mono, [samples] or [batch, samples], floats in [-1, 1] or int16. Floats are
            rounded to 16 bits, as training recordings were.
          sample_rate: in hertz; one above the model's is resampled down to it.

        Returns:
          float32 [batch, features].

        Raises:
          UserError: for a waveform or a rate that cannot be used.
        """
        return self._mean("embedding", waveform, sample_rate)

    def predict(self, waveform: np.ndarray, sample_rate: int) -> np.ndarray:
        """Probabilities of recordings, float32 [batch, classes] in the order of `labels`.

        Args and errors as in `embed`; a model without a classifier raises UserError too.
        """
        return self._mean("probabilities", waveform, sample_rate)

    def outputs(self, windows: np.ndarray, most: int = _MOST_AT_A_TIME) -> dict[str, np.ndarray]:
        """Runs the model on windows.

        Args:
          windows: floats in [-1, 1] or int16, [n, samples].
          most: windows per call of the model.

        Returns:
          'embedding', float32 [n, features]; with a classifier 'probabilities', [n, classes].

        Raises:
          UserError: if there are no windows.
        """
        if not len(windows):
            raise UserError("there are no windows; give [n, samples] with n of at least 1")
        if windows.dtype == np.int16:
            windows = windows.astype(np.float32) / 32768.0
        windows = windows.astype(np.float32, copy=False)  # an ONNX file takes no other floats
        parts = []
        for start in range(0, len(windows), most):
            part = windows[start : start + most]
            # Padded to a power of two: few sizes to compile, and little wasted work.
            full = 1 << (len(part) - 1).bit_length()
            padded = np.concatenate([part, np.zeros((full - len(part), part.shape[1]), part.dtype)])
            found = self._function(padded)
            parts.append({name: np.asarray(x)[: len(part)] for name, x in found.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def windows(self, audio: np.ndarray) -> np.ndarray:
        """The windows over which a recording's mean is taken: [samples] -> [n, window]."""
        rate = self.sample_rate
        pieces = cutting.segments(
            [audio],
            round(self.description.segment_seconds * rate),
            round(cutting.SHORTEST_TAIL_SECONDS * rate),
        )
        samples = self.description.window_samples
        return np.concatenate([cutting.windows(piece, samples) for piece in pieces])

    def at_own_rate(self, waveform: np.ndarray, sample_rate: int) -> np.ndarray:
        """A waveform that `embed` takes, as int16 at the model's rate along the last axis.

        As a recording is decoded for `prepare` and `predict`: what rounding to 16 bits adds to a
        quiet band, the model heard in training.
        """
        waveform = _checked(waveform, sample_rate, self.sample_rate)
        if sample_rate == self.sample_rate:
            return decode.to_int16(waveform)
        # The resampler that prepares datasets; it wants time first.
        found = soxr.resample(waveform.T, sample_rate, self.sample_rate, quality="VHQ").T
        if not found.shape[-1]:
            raise UserError(
                f"a waveform of {waveform.shape[-1]} samples at {sample_rate} Hz is too short"
            )
        return decode.to_int16(found)

    def _mean(self, output: str, waveform: np.ndarray, sample_rate: int) -> np.ndarray:
        if output not in self.description.output_names:
            raise UserError(
                "this model has no classifier, so it cannot predict; load a fine-tuned run"
            )
        batch = np.atleast_2d(self.at_own_rate(waveform, sample_rate))
        recordings = [self.windows(row) for row in batch]
        found = self.outputs(np.concatenate(recordings))[output]
        ends = np.cumsum([len(windows) for windows in recordings])
        parts = np.split(found, ends[:-1])
        return np.stack([part.mean(axis=0, dtype=np.float64) for part in parts]).astype(np.float32)


def _checked(waveform: np.ndarray, sample_rate: int, wanted: int) -> np.ndarray:
    try:
        waveform = np.asarray(waveform)
    except ValueError as error:
        raise UserError("the waveforms differ in length; give them one at a time") from error
    if waveform.ndim not in (1, 2) or waveform.size == 0:
        raise UserError(
            f"the waveform has shape {waveform.shape}; give [samples] or [batch, samples]"
        )
    if not (isinstance(sample_rate, numbers.Real) and math.isfinite(sample_rate)):
        raise UserError(f"the sample rate is {sample_rate!r}; give a finite number in hertz")
    # As soundfile and scipy return it; each sample would be taken for a recording.
    if waveform.ndim == 2 and waveform.shape[1] <= _MOST_CHANNELS < waveform.shape[0]:
        raise UserError(
            f"the waveform has shape {waveform.shape}, which looks like [samples, channels]; give "
            "the mean over channels, or [batch, samples]"
        )
    if sample_rate < wanted:
        raise UserError(
            f"the waveform is at {sample_rate} Hz, but the model was trained at {wanted} Hz: "
            "higher frequencies would be missing; record at that rate or higher"
        )
    if waveform.dtype == np.int16:
        return waveform.astype(np.float32) / 32768.0
    if not np.issubdtype(waveform.dtype, np.floating):
        raise UserError(f"the waveform is {waveform.dtype}; give floats in [-1, 1] or int16")
    loudest = np.abs(waveform).max()
    if not loudest <= decode.LOUDEST:
        raise UserError(f"the waveform reaches {loudest:g}; give floats in [-1, 1] or int16")
    return waveform.astype(np.float32)


def load(path: str) -> Model:
    """Same as `cryjax.load`."""
    home = pathlib.Path(path)
    if home.is_dir() and (home / "model.onnx").is_file():
        home = home / "model.onnx"
    if home.suffix == ".onnx":
        from cryjax.interop import onnx

        return Model(*onnx.open_file(home))
    if home.suffix == ".stablehlo":
        from cryjax.interop import stablehlo

        return Model(*stablehlo.open_file(home))
    if not home.is_dir():
        raise UserError(
            f"{path}: no model found; give the --workdir of a training run, or a folder or .onnx "
            "or .stablehlo file from python -m cryjax.export"
        )
    source = read_run(path)
    return Model(source.description, functools.partial(jax.jit(source.function), source.variables))
