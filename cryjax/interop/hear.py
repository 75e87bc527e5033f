"""A run under the API of HEAR 2021, to compare it on its tasks (Turian et al., 2022).

    hear-validator cryjax.interop.hear --model RUN
    python -m heareval.embeddings.runner cryjax.interop.hear --model RUN --tasks-dir TASKS

HEAR accepts only PyTorch modules, so this module needs PyTorch; the model itself runs in JAX.
"""

import numpy as np
import torch

from cryjax.interop.model import Model, load

# The sample rates of HEAR's tasks.
_RATES = (16_000, 22_050, 44_100, 48_000)
_HOP_SECONDS = 0.05
# Length of the waveform that a timestamp's embedding covers.
_CONTEXT_SECONDS = 1.0


class HearModel(torch.nn.Module):
    """A model as HEAR requires it.

    Attributes:
      model: the cryjax model.
      sample_rate: in hertz, of the input audio: HEAR's lowest that is not below the model's.
      scene_embedding_size: features.
      timestamp_embedding_size: features.
    """

    def __init__(self, model: Model):
        super().__init__()
        self.model = model
        self.sample_rate = min(rate for rate in _RATES if rate >= model.sample_rate)
        self.scene_embedding_size = self.timestamp_embedding_size = model.description.features


def load_model(model_file_path: str = "") -> HearModel:
    """Loads a run or an exported file, as `cryjax.load` does."""
    return HearModel(load(model_file_path))


def get_scene_embeddings(audio: torch.Tensor, model: HearModel) -> torch.Tensor:
    """Embeds clips: [sounds, samples] at the model's rate -> float32 [sounds, features]."""
    found = model.model.embed(audio.detach().cpu().numpy(), model.sample_rate)
    return torch.from_numpy(found).to(audio.device)


def get_timestamp_embeddings(
    audio: torch.Tensor, model: HearModel
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeds the second around each of evenly spaced times, with zeros past the ends.

    Args:
      audio: [sounds, samples] in [-1, 1] at the model's rate.
      model: from `load_model`.

    Returns:
      float32 [sounds, times, features], and the times [sounds, times] in milliseconds.
    """
    inner = model.model
    rate, least = inner.sample_rate, inner.description.least_samples
    clips = [inner.at_own_rate(clip, model.sample_rate) for clip in audio.detach().cpu().numpy()]
    context = max(round(_CONTEXT_SECONDS * rate), least)
    hop = round(_HOP_SECONDS * rate)
    centres = np.arange(0, len(clips[0]), hop)
    found = []
    for clip in clips:
        padded = np.pad(clip, (context // 2, context))
        windows = np.lib.stride_tricks.sliding_window_view(padded, context)[centres]
        found.append(inner.outputs(windows)["embedding"])
    times = torch.from_numpy(centres * 1000.0 / rate).to(audio.device)
    return torch.from_numpy(np.stack(found)).to(audio.device), times.repeat(len(clips), 1)
