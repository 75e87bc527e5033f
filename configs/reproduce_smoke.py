"""The paper's experiment, small, on synthetic data.

    python -m cryjax.reproduce --config=configs/reproduce_smoke.py --workdir=TABLE

General sounds labelled by kind of event, a large unlabelled set of cries (a fifth by newborns that
have labels too), and labelled cries for two tasks: injury (one newborn in ten) and triggers. It
shows that all works; no number is about infants.

Cost: 19 to 47 minutes on two cores, the more other load they had.
Number to expect: macro AUC of a probe of triggers with 5 % of the labels 0.661 from scratch, 0.724
supervised, 0.753 SimCLR, 0.843 and 0.851 adapted; with all labels 0.840, 0.884, 0.879, 0.914,
0.923. cryjax/evaluation/README.md has the intervals, and where they differ from the paper.
Values: pretrain_small.py and finetune.py, shortened; both ways of pre-training see the same number
of views.
"""

import pathlib

import ml_collections

from cryjax.command import config as config_lib

_HERE = pathlib.Path(__file__).parent


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # Title of the report.
    config.title = "The paper's experiment on a synthetic clinical set"
    # General audio to pre-train on; the same with labels, for the supervised rows ('': general,
    # which has them); unlabelled cries to adapt to. Each is a prepared dataset, or flags of
    # `prepare` that make one.
    config.general = "--synthetic=sounds --examples=1200"
    config.labelled = ""
    config.unlabelled = "--synthetic=clinical-unlabelled --examples=1200"
    # Tasks by name: labelled cries, and the positive one of two classes ('': the second).
    config.tasks = ml_collections.ConfigDict(
        {
            "injury": {
                "data": "--synthetic=clinical-injury --examples=1000 --splits=train=0.5,test=0.5",
                "positive": "injury",
            },
            "triggers": {
                "data": "--synthetic=clinical-triggers --examples=1000 --splits=train=0.5,test=0.5",
                "positive": "",
            },
        }
    )
    # Rows: 'scratch', 'supervised', 'simclr', and the last two with '+adapted'.
    config.rows = ("scratch", "supervised", "simclr", "supervised+adapted", "simclr+adapted")
    # Grouped, stratified folds, each tested once; 0 takes the tasks' own splits.
    config.folds = 0
    config.fold_seed = 0
    # Shares of the training subjects, and the seeds that choose them and initialise networks: for
    # the linear probe, which is cheap, and for fine-tuning. Without shares, (), a method is left
    # out.
    config.probe = ml_collections.ConfigDict(
        {"fractions": (0.05, 0.1, 0.2, 0.5, 1.0), "seeds": (0, 1, 2, 3, 4), "classifier": "ridge"}
    )
    config.finetune = ml_collections.ConfigDict({"fractions": (0.1, 1.0), "seeds": (0,)})
    # Bootstrap resamples of subjects per 95 % interval.
    config.resamples = 1000

    # Recipes: SimCLR on general audio; adaptation to the unlabelled cries; supervised pre-training
    # on general audio; fine-tuning. Both ways of pre-training see the same number of views.
    config.pretrain = config_lib.load(_HERE / "pretrain_small.py")
    config.pretrain.total = "100 steps"
    config.pretrain.optimizer.warmup = "10 steps"
    config.adapt = config_lib.load(_HERE / "pretrain_small.py")
    config.adapt.total = "70 steps"
    config.adapt.optimizer.learning_rate = 1e-3
    config.adapt.optimizer.warmup = "10 steps"
    config.supervised = config_lib.load(_HERE / "finetune.py")
    config.supervised.total = "200 steps"
    config.supervised.batch_size = 128
    config.supervised.encoder_rate = 1.0
    config.supervised.evaluate_every = "50 steps"
    config.tune = config_lib.load(_HERE / "finetune.py")
    config.tune.total = "60 steps"
    # Few labels: none are held out to choose a step.
    config.tune.validation = 0.0
    return config
