"""cryjax's own training step at chosen sizes, built as its programs build it.

Recipes are those of configs/pretrain.py and configs/finetune.py with these changes, so that all
peers do the same: 10 s clips at 16 kHz, the front end 'cssl_sound', crops at their own speed,
AdamW, no class balancing.
"""

import argparse
import dataclasses
import json
import pathlib
import runpy
from typing import Any

import jax
import numpy as np

from cryjax.audio import frontend
from cryjax.models import ENCODERS
from cryjax.training import parallel, recipe, simclr, supervised

ROOT = pathlib.Path(__file__).parents[2]
CLIP_SECONDS, CLASSES = 10.0, 5
RECIPES = {"simclr": "pretrain.py", "finetune": "finetune.py"}


def config_of(task: str, options: argparse.Namespace) -> Any:
    """The config of a task, 'simclr' or 'finetune', with a benchmark's options."""
    config = runpy.run_path(str(ROOT / "configs" / RECIPES[task]))["get_config"]()
    config.batch_size, config.total = options.batch, "1000000 steps"
    config.encoder.update({"name": options.encoder, "width": options.width, "dtype": options.dtype})
    config.front_end, config.clip_seconds = "cssl_sound", CLIP_SECONDS
    config.crop.update({"seconds": options.crop_seconds, "speed": (1.0, 1.0)})
    config.optimizer.update(
        {"name": "adamw", "learning_rate": 1e-4, "scaling": "none", "weight_decay": 1e-6,
         "warmup": "1 step"}
    )  # fmt: skip
    if task == "finetune":
        config.balance = "none"
    return config


def make_batch(task: str, clips: int, seconds: float = CLIP_SECONDS) -> dict[str, np.ndarray]:
    """Noise in the form of the loader's clips."""
    rng = np.random.default_rng(0)
    samples = round(seconds * 16_000)
    batch = {
        "audio": rng.integers(-8000, 8000, (clips, samples), np.int16),
        "length": np.full(clips, samples, np.int32),
    }
    if task == "finetune":
        batch["target"] = np.eye(CLASSES, dtype=np.float32)[np.arange(clips) % CLASSES]
    return batch


class Step:
    """The compiled step of a config, its state and its batch.

    Attributes:
      compiled: XLA's program.
      parts: of the run.
    """

    def __init__(self, task: str, config: Any, devices: list[jax.Device] | None = None):
        """Uses `devices`, or all there are."""
        if task == "simclr":
            self.parts = simclr.build(config, examples=1_000_000)
            step = self.parts.step
        else:
            targets = np.eye(CLASSES, dtype=np.float32)
            self.parts = supervised.build(config, targets, multi_label=False)
            step = self.parts.step_of(0)
        self._spread = parallel.Parallel("auto", devices)
        self._key = jax.random.key(0)
        self._batch = make_batch(task, config.batch_size)
        self.state = self._spread.replicate(jax.jit(self.parts.init)(self._key))
        self._placed = self._spread.shard(self._batch)
        arguments = self.state, self._placed, self._key
        self.compiled = self._spread.wrap(step).lower(*arguments).compile()

    def __call__(self) -> Any:
        """Starts a step and the next batch's transfer to the device, as the loop does."""
        batch, self._placed = self._placed, self._spread.shard(self._batch)
        self.state, metrics = self.compiled(self.state, batch, self._key)
        return metrics


def describe(task: str, config: Any, folder: pathlib.Path) -> None:
    """Writes what another framework needs to do the same: step.json, window and filters."""
    settings = frontend.resolve(config.front_end)
    views = recipe.view_recipe(config)
    described = {
        "task": task,
        "front_end": dataclasses.asdict(settings),
        "crop": round(config.crop.seconds * settings.sample_rate),
        "transforms": views["transforms"],
        "encoder": ENCODERS[config.encoder.name],
        "optimizer": config.optimizer.to_dict(),
        "classes": CLASSES,
    }
    if task == "simclr":
        described |= {"head": config.head.to_dict(), "temperature": config.temperature}
    else:
        described |= {"dropout": config.dropout, "encoder_rate": config.encoder_rate}
    (folder / "step.json").write_text(json.dumps(described), encoding="utf-8")
    write_front_end(settings, folder)


def write_front_end(settings: frontend.FrontEnd, folder: pathlib.Path) -> None:
    np.save(folder / "window.npy", frontend._window(settings))
    np.save(folder / "filters.npy", frontend.mel_filters(settings))
