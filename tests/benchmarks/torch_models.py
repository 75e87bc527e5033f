"""The front end, the views, the encoders and the training steps of cryjax in PyTorch.

Written for speed: vectorised over the batch, no Python in the loop, all of it fit for
`torch.compile`. Encoder parameters have the names of PANNs. Left out of cryjax's step: the guard
against non-finite values, the metrics of the projections, and clips shorter than a crop.
"""

import torch
from torch import nn
from torch.nn import functional

LEAST_POWER = 1e-10


class LogMel(nn.Module):
    """[batch, samples] -> [batch, frames, mels] in decibels."""

    def __init__(self, settings, window, filters):
        super().__init__()
        self.settings = settings
        self.register_buffer("window", torch.as_tensor(window), persistent=False)
        self.register_buffer("filters", torch.as_tensor(filters), persistent=False)

    def normalise(self, x):
        if self.settings["normalise"] == "none":
            return x
        return x - x.mean(1, keepdim=True)

    def forward(self, x):
        spectrum = torch.stft(
            x,
            self.settings["window_length"],
            self.settings["hop_length"],
            window=self.window,
            pad_mode=self.settings["padding"],
            return_complex=True,
        )
        power = torch.view_as_real(spectrum).square().sum(-1)
        mel = power.transpose(1, 2) @ self.filters
        return self.normalise(10.0 * torch.log10(mel.clamp(min=LEAST_POWER)))


def uniform(like, limits, *shape):
    return (
        torch.rand(like.shape[0], *shape, device=like.device) * (limits[1] - limits[0]) + limits[0]
    )


def amplitude(decibels):
    return 10.0 ** (decibels / 20.0)


def power(x):
    return x.square().mean(1, keepdim=True)


def gain(x, decibels):
    return x * amplitude(uniform(x, decibels, 1))


def add_noise(x, snr_decibels):
    return x + power(x).sqrt() / amplitude(uniform(x, snr_decibels, 1)) * torch.randn_like(x)


def mix(x, snr_decibels):
    place = torch.arange(x.shape[0], device=x.device)
    step = torch.randint(1, 4, place.shape, device=x.device)
    other = x[place // 4 * 4 + (place + step) % 4]
    ratio = amplitude(uniform(x, snr_decibels, 1))
    return x + (power(x) / power(other).clamp(min=1e-10)).sqrt() / ratio * other


def time_warp(x, most):
    frames = x.shape[1]
    last = frames - 1.0
    target = uniform(x, (most, 1.0 - most), 1) * last
    source = target + uniform(x, (-most, most), 1) * last
    place = torch.arange(frames, device=x.device)[None]
    position = torch.where(
        place < target,
        place * source / target,
        source + (place - target) * (last - source) / (last - target),
    )
    left = position.floor().clamp(0, frames - 2).long()
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    return torch.lerp(x[rows, left], x[rows, left + 1], (position - left)[..., None])


def _mask(x, axis, count, most):
    size = x.shape[axis]
    width = uniform(x, (0.0, most * size), count, 1)
    start = uniform(x, (0.0, 1.0), count, 1) * (size - width)
    place = torch.arange(size, device=x.device)
    hidden = ((place >= start) & (place < start + width)).any(1).unsqueeze(3 - axis)
    return torch.where(hidden, x.mean((1, 2), keepdim=True), x)


def frequency_mask(x, count, most):
    return _mask(x, 2, count, most)


def time_mask(x, count, most):
    return _mask(x, 1, count, most)


WAVEFORM = {"mix": mix, "gain": gain, "add_noise": add_noise}
SPECTROGRAM = {"time_warp": time_warp, "frequency_mask": frequency_mask, "time_mask": time_mask}


class Views(nn.Module):
    """int16 [batch, samples] of clips -> one random view of each, [batch, frames, mels]."""

    def __init__(self, recipe, log_mel):
        super().__init__()
        self.crop, self.transforms, self.log_mel = recipe["crop"], recipe["transforms"], log_mel

    def _transformed(self, kind, x):
        for name, arguments in self.transforms:
            if name not in kind:
                continue
            arguments = dict(arguments)
            probability = arguments.pop("probability", 1.0)
            changed = kind[name](x, **arguments)
            if probability < 1.0:
                chosen = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) < probability
                changed = torch.where(chosen, changed, x)
            x = changed
        return x

    def forward(self, audio, length):
        start = (torch.rand(len(audio), device=audio.device) * (length - self.crop + 1)).long()
        place = start[:, None] + torch.arange(self.crop, device=audio.device)
        x = audio.gather(1, place).float() / 32768.0
        x = self.log_mel(self._transformed(WAVEFORM, x))
        return self.log_mel.normalise(self._transformed(SPECTROGRAM, x))


class ConvBlock(nn.Module):
    def __init__(self, inputs, features, layers, size):
        super().__init__()
        self.layers = layers
        for layer in range(1, layers + 1):
            conv = nn.Conv2d(inputs, features, size, padding=size // 2, bias=False)
            setattr(self, f"conv{layer}", conv)
            setattr(self, f"bn{layer}", nn.BatchNorm2d(features))
            inputs = features

    def forward(self, x):
        for layer in range(1, self.layers + 1):
            x = functional.relu(getattr(self, f"bn{layer}")(getattr(self, f"conv{layer}")(x)))
        return x


class Encoder(nn.Module):
    """[batch, frames, mels] -> [batch, features], in channels last; CNN6, CNN10 or CNN14."""

    def __init__(self, mels, channels, layers, size, pooled, features):
        super().__init__()
        self.blocks, self.pooled = len(channels), pooled
        self.bn0 = nn.BatchNorm2d(mels)
        for block, (inputs, outputs) in enumerate(zip((1, *channels), channels, strict=False), 1):
            setattr(self, f"conv_block{block}", ConvBlock(inputs, outputs, layers, size))
        self.fc1 = nn.Linear(channels[-1], features)

    def forward(self, x):
        x = self.bn0(x[:, None].transpose(1, 3)).transpose(1, 3)
        x = x.contiguous(memory_format=torch.channels_last)
        for block in range(1, self.blocks + 1):
            x = getattr(self, f"conv_block{block}")(x)
            if block <= self.pooled:
                x = functional.avg_pool2d(x, 2)
        x = x.mean(3)
        return functional.relu(self.fc1(x.amax(2) + x.mean(2)))


def nt_xent(first, second, temperature):
    rows = functional.normalize(torch.cat([first, second]).float())
    count = len(rows)
    similarity = (rows @ rows.T / temperature).fill_diagonal_(float("-inf"))
    positive = (torch.arange(count, device=rows.device) + count // 2) % count
    return functional.cross_entropy(similarity, positive)


class Task(nn.Module):
    """Clips to the loss of a step, 'simclr' or 'finetune', as `ours.describe` describes it."""

    def __init__(self, recipe, window, filters, dtype):
        super().__init__()
        self.recipe, self.dtype = recipe, dtype
        self.views = Views(recipe, LogMel(recipe["front_end"], window, filters))
        self.encoder = Encoder(recipe["front_end"]["mels"], *recipe["encoder"])
        features = recipe["encoder"][-1]
        if recipe["task"] == "simclr":
            hidden, out = recipe["head"]["hidden"], recipe["head"]["features"]
            self.head = nn.Sequential(
                nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, out)
            )
        else:
            self.head = nn.Sequential(
                nn.Dropout(recipe["dropout"]), nn.Linear(features, recipe["classes"])
            )

    def forward(self, batch):
        audio, length = batch["audio"], batch["length"]
        simclr = self.recipe["task"] == "simclr"
        if simclr:
            audio, length = torch.cat([audio, audio]), torch.cat([length, length])
        x = self.views(audio, length)
        with torch.autocast(audio.device.type, self.dtype, self.dtype != torch.float32):
            x = self.head(self.encoder(x))
        if simclr:
            return nt_xent(*x.float().chunk(2), self.recipe["temperature"])
        return functional.cross_entropy(x.float(), batch["target"])


def optimizer_of(task, recipe):
    """Fused AdamW; neither biases nor batch norm decay."""
    settings, groups = recipe["optimizer"], []
    for part, scale in ((task.encoder, recipe.get("encoder_rate", 1.0)), (task.head, 1.0)):
        for decays in (True, False):
            groups.append(
                {
                    "params": [p for p in part.parameters() if (p.ndim > 1) == decays],
                    "weight_decay": settings["weight_decay"] if decays else 0.0,
                    "lr": settings["learning_rate"] * scale,
                }
            )
    return torch.optim.AdamW(groups, fused=True)
