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

Cost: 8 minutes on two cores.
Number to expect: a macro AUC of a probe with the labels of two speakers of 0.847 from scratch,
0.848 with SimCLR on general sounds, 0.921 adapted; cryjax/evaluation/README.md has two more splits.
Values: those of reproduce_public.py, but for rows, folds and shares of the labels.
"""

import pathlib

import ml_collections

from cryjax.command import config as config_lib

_HERE = pathlib.Path(__file__).parent


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # Title of the report.
    config.title = "The paper's experiment on spoken digits"
    # General audio to pre-train on; labelled recordings for supervised rows ('': general, if it has
    # labels); unlabelled digits to adapt to. Each is a prepared dataset or flags of `prepare`.
    config.general = ""
    config.labelled = ""
    config.unlabelled = ""
    # Tasks by name: labelled digits, and the positive one of two classes ('': the second).
    config.tasks = ml_collections.ConfigDict({"digits": {"data": "", "positive": ""}})
    # Rows: 'scratch', 'supervised', 'simclr', and the last two with '+adapted'.
    config.rows = ("scratch", "simclr", "simclr+adapted")
    # Grouped, stratified folds, each tested once; 0 takes the tasks' own splits. Folds would test
    # every speaker, and leave none to adapt to.
    config.folds = 0
    config.fold_seed = 0
    # Shares of the training subjects, and the seeds that choose them and initialise networks: for
    # the linear probe, which is cheap, and for fine-tuning. Without shares, (), a method is left
    # out.
    config.probe = ml_collections.ConfigDict(
        {"fractions": (0.5, 1.0), "seeds": (0, 1, 2, 3, 4), "classifier": "ridge"}
    )
    config.finetune = ml_collections.ConfigDict({"fractions": (0.25, 1.0), "seeds": (0,)})
    # Bootstrap resamples of subjects per 95 % interval.
    config.resamples = 1000

    # Recipes: SimCLR on general audio; adaptation to the unlabelled digits; supervised
    # pre-training; fine-tuning.
    config.pretrain = config_lib.load(_HERE / "pretrain_small.py")
    config.pretrain.total = "300 steps"
    config.pretrain.optimizer.warmup = "20 steps"
    config.adapt = config_lib.load(_HERE / "pretrain_small.py")
    config.adapt.total = "100 steps"
    config.adapt.optimizer.learning_rate = 1e-3
    config.adapt.optimizer.warmup = "10 steps"
    config.supervised = config_lib.load(_HERE / "finetune.py")
    config.supervised.total = "300 steps"
    config.supervised.batch_size = 128
    config.supervised.encoder_rate = 1.0
    config.supervised.evaluate_every = "100 steps"
    config.tune = config_lib.load(_HERE / "finetune.py")
    config.tune.total = "50 steps"
    # Few labels: none are held out to choose a step.
    config.tune.validation = 0.0
    return config
