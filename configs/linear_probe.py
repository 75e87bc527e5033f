"""A linear classifier on the embeddings of a frozen encoder, evaluated by subject.

    python -m cryjax.linear_probe --config=configs/linear_probe.py --workdir=PROBE \\
        --config.init=RUN --config.data=DATA

Cost: two cores embedded 3000 spoken digits in 5 s with the encoder below, compilation included;
each untrained encoder takes as long again.
Number to expect: more than that of the same encoder untrained, printed beside it, the floor that
any pre-training must beat. On spoken digits of unseen speakers 0.684 against 0.509 (chance 0.100)
after 600 steps of configs/pretrain_small.py; cryjax/evaluation/README.md has the commands.
Values: a closed-form ridge classifier, its penalty chosen within the training subjects; five folds
and 1000 resamples are customary. Encoder, front end and window are those of the run.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # A prepared dataset with labels.
    config.data = ""
    # Work directory of a training run, or 'random' for an untrained encoder.
    config.init = ""
    # The positive one of two classes, to which sensitivity and average precision refer; '' is the
    # second by name.
    config.positive = ""
    # How many untrained encoders to probe as well, for the mean of their metrics; 0 is none.
    config.floor = 3
    # With init=random: the run whose encoder, front end and window to use; '' takes those below.
    config.like = ""
    # 'ridge' (closed form) or 'logistic' (multinomial).
    config.classifier = "ridge"
    # Grouped, stratified folds over the subjects of all splits; 0 takes the dataset's own splits:
    # fits on 'train' (and 'validation'), scores on 'test'; or its 'fold1', 'fold2', ... in turn.
    config.folds = 5
    # Share of the training subjects to fit on, with their recordings: stratified, chosen by the
    # seed; a smaller share lies within a larger one.
    config.label_fraction = 1.0
    config.label_seed = 0
    # Seed of folds and bootstrap, and first seed of untrained encoders.
    config.seed = 0
    # Bootstrap resamples of subjects per 95 % interval.
    config.resamples = 1000
    # Windows embedded at a time.
    config.batch_size = 64

    # With init=random and no `like`: the encoder, its front end and its window in seconds.
    config.encoder = ml_collections.ConfigDict({"name": "cnn6", "width": 0.25, "dtype": "float32"})
    config.front_end = "small_8k"
    config.window_seconds = 0.8
    return config
