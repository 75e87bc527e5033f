"""The paper's experiment at its own scale: CNN14, VGGSound, and a clinical set of your own.

    python -m cryjax.reproduce --config=configs/reproduce_paper.py --workdir=TABLE \\
        --config.general="--corpus=vggsound --corpus_dir=VGGSOUND" \\
        --config.unlabelled=--manifest=CLINIC/unlabelled.csv \\
        --config.tasks.injury.data="--manifest=CLINIC/labelled.csv --label_column=injury" \\
        --config.tasks.injury.positive=injured \\
        --config.tasks.triggers.data="--manifest=CLINIC/labelled.csv --label_column=trigger"

Cost: for eight GPUs on one host; never run at this scale, so time and results are unknown.
Values: the paper's own hyper-parameters are not public as text. Front end, crops and kinds of masks
are those of zhepeiw/cssl_sound, a co-author's SimCLR with CNN14 on VGGSound (whose masks are
smaller: up to 10 bands and 10 frames); the rest is configs/pretrain.py and configs/finetune.py,
shortened.
"""

import pathlib

import ml_collections

from cryjax.command import config as config_lib

_HERE = pathlib.Path(__file__).parent


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # Title of the report.
    config.title = "Self-supervised learning for infant cry analysis"
    # General audio to pre-train on; labelled recordings for the supervised rows ('': general, which
    # has labels); unlabelled cries to adapt to. Each is a prepared dataset or flags of `prepare`.
    config.general = ""
    config.labelled = ""
    config.unlabelled = ""
    # Tasks by name: labelled cries, and the positive one of two classes ('': the second).
    config.tasks = ml_collections.ConfigDict(
        {
            "injury": {"data": "", "positive": ""},
            "triggers": {"data": "", "positive": ""},
        }
    )
    # Rows: 'scratch', 'supervised', 'simclr', and the last two with '+adapted'.
    config.rows = ("scratch", "supervised", "simclr", "supervised+adapted", "simclr+adapted")
    # Grouped, stratified folds, each tested once; 0 takes the tasks' own splits.
    config.folds = 5
    config.fold_seed = 0
    # Shares of the training subjects, and the seeds that choose them and initialise networks: for
    # the linear probe, which is cheap, and for fine-tuning. Without shares, (), a method is left
    # out.
    config.probe = ml_collections.ConfigDict(
        {
            "fractions": (0.01, 0.05, 0.1, 0.2, 0.5, 1.0),
            "seeds": (0, 1, 2, 3, 4),
            "classifier": "ridge",
        }
    )
    config.finetune = ml_collections.ConfigDict({"fractions": (0.1, 0.5, 1.0), "seeds": (0, 1, 2)})
    # Bootstrap resamples of subjects per 95 % interval.
    config.resamples = 2000

    # Recipes: SimCLR on general audio; adaptation to the unlabelled cries; supervised pre-training
    # on general audio; fine-tuning.
    config.pretrain = config_lib.load(_HERE / "pretrain.py")
    config.pretrain.batch_size = 1024
    config.adapt = config_lib.load(_HERE / "pretrain.py")
    config.adapt.batch_size = 1024
    config.adapt.total = "30 epochs"
    config.adapt.optimizer.warmup = "3 epochs"
    config.adapt.optimizer.learning_rate = 0.1
    config.supervised = _of_cnn14(config.pretrain, total="60 epochs", batch_size=256)
    config.supervised.optimizer.learning_rate = 1e-3
    config.supervised.encoder_rate = 1.0
    config.supervised.mixup = 0.5
    config.supervised.validation = 0.02
    config.supervised.evaluate_every = "2 epochs"
    config.tune = _of_cnn14(config.pretrain, total="30 epochs", batch_size=64)
    config.tune.optimizer.learning_rate = 5e-4
    config.tune.layer_decay = 0.8
    config.tune.validation = 0.0
    return config


def _of_cnn14(pretrain: ml_collections.ConfigDict, **fields) -> ml_collections.ConfigDict:
    """The fine-tuning recipe with the encoder, front end and crops of pre-training."""
    config = config_lib.load(_HERE / "finetune.py")
    config.encoder = pretrain.encoder
    config.front_end = pretrain.front_end
    config.clip_seconds = pretrain.clip_seconds
    config.crop = pretrain.crop
    config.update(fields)
    config.optimizer.warmup = "1 epoch"
    config.checkpoint_every = "2 epochs"
    config.log_every = "20 steps"
    config.loader = pretrain.loader
    return config
