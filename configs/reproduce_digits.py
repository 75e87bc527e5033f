"""The paper's experiment on real recordings that can be told apart: digits of unseen speakers.

    python -m cryjax.reproduce --config=configs/reproduce_digits.py --workdir=TABLE \\
        --config.general=--manifest=general.csv \\
        --config.unlabelled=--manifest=spoken-digits.csv \\
        --config.tasks.digits.data="--manifest=spoken-digits.csv --splits=train=0.6,test=0.4 \\
            --split_seed=3"

Nothing about infants: on public cries every encoder is at chance (`reproduce_public.py`), which
cannot show whether pre-training and adaptation help. The unlabelled recordings are those of the
task; its test speakers are left out of them. There are no supervised rows: the general sounds have
no labels.

Cost: TODO
Number to expect: TODO
Values: those of reproduce_public.py.
"""

import pathlib

import ml_collections

from cryjax.command import config as config_lib

_HERE = pathlib.Path(__file__).parent


def get_config() -> ml_collections.ConfigDict:
    config = config_lib.load(_HERE / "reproduce_public.py")

    # See reproduce_public.py for what the fields mean.
    config.title = "The paper's experiment on spoken digits"
    config.tasks = ml_collections.ConfigDict({"digits": {"data": "", "positive": ""}})
    config.rows = ("scratch", "simclr", "simclr+adapted")
    # The task's own split: folds would test every speaker, and leave none to adapt to.
    config.folds = 0
    # One, two or all of four training speakers.
    config.probe.fractions = (0.25, 0.5, 1.0)
    config.finetune.fractions = (0.25, 1.0)
    return config
