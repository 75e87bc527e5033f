"""The paper's experiment on public recordings: triggers of donateacry, on a small machine.

    python -m cryjax.reproduce --config=configs/reproduce_public.py --workdir=TABLE \\
        --config.general=--manifest=general.csv \\
        --config.labelled=--manifest=spoken-digits.csv \\
        --config.unlabelled=--manifest=donateacry-uploads.csv \\
        --config.tasks.triggers.data=--manifest=donateacry-triggers.csv

Each may be a download instead, as `--config.general="--corpus=fsd50k --corpus_dir=FSD50K"`
(then with `--config.labelled=`: it has labels). No public set separates injury from infant
identity, so there is one task. The labels of donateacry are its uploaders' guesses, 84 %
of them 'hungry'; its subjects are app installations.

Cost: 19 minutes on two cores under other load.
Number to expect: chance, a macro AUC of 0.42 to 0.51 in every row; cryjax/evaluation/README.md has
the table.
Values: pretrain_small.py and finetune.py, shortened.
"""

import pathlib

import ml_collections

from cryjax.command import config as config_lib

_HERE = pathlib.Path(__file__).parent


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # Title of the report.
    config.title = "The paper's experiment on public recordings"
    # General audio to pre-train on; labelled recordings for the supervised rows ('': general, which
    # has labels); unlabelled cries to adapt to. Each is a prepared dataset or flags of `prepare`.
    config.general = ""
    config.labelled = ""
    config.unlabelled = ""
    # Tasks by name: labelled cries, and the positive one of two classes ('': the second).
    config.tasks = ml_collections.ConfigDict({"triggers": {"data": "", "positive": ""}})
    # Rows: 'scratch', 'supervised', 'simclr', and the last two with '+adapted'.
    config.rows = ("scratch", "supervised", "simclr", "supervised+adapted", "simclr+adapted")
    # Grouped, stratified folds, each tested once; 0 takes the tasks' own splits.
    config.folds = 5
    config.fold_seed = 0
    # Shares of the training subjects, and the seeds that choose them and initialise networks: for
    # the linear probe, which is cheap, and for fine-tuning. Without shares, (), a method is left
    # out.
    config.probe = ml_collections.ConfigDict(
        {"fractions": (0.1, 0.3, 1.0), "seeds": (0, 1, 2, 3, 4), "classifier": "ridge"}
    )
    config.finetune = ml_collections.ConfigDict({"fractions": (1.0,), "seeds": (0,)})
    # Bootstrap resamples of subjects per 95 % interval.
    config.resamples = 1000

    # Recipes: SimCLR on general audio; adaptation to the unlabelled cries; supervised pre-training;
    # fine-tuning.
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
