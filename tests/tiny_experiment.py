"""Recipe of an experiment small enough for a test: one task, two rows, everything tiny."""

import pathlib

import ml_collections

from cryjax.command import config as config_lib

_CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def get_config() -> ml_collections.ConfigDict:
    config = config_lib.load(_CONFIGS / "reproduce_smoke.py")
    config.general = "--synthetic=sounds --examples=40"
    config.unlabelled = "--synthetic=clinical-unlabelled --examples=60"
    injury = "--synthetic=clinical-injury --examples=80 --splits=train=0.6,test=0.4"
    config.tasks = ml_collections.ConfigDict({"injury": {"data": injury, "positive": "injury"}})
    config.rows = ("scratch", "simclr+adapted")
    config.probe.fractions = (0.5, 1.0)
    config.probe.seeds = (0, 1)
    config.finetune.fractions = (1.0,)
    config.resamples = 50
    for name in ("pretrain", "adapt", "supervised", "tune"):
        config[name].encoder.width = 0.0625
        config[name].total = "4 steps"
        config[name].batch_size = 16
        config[name].optimizer.warmup = "1 step"
    return config
