"""Supervised training of a small encoder: fine-tuning, from scratch, or supervised pre-training.

    python -m cryjax.finetune --config=configs/finetune.py --workdir=TUNED \\
        --config.init=RUN --config.data=DATA

Without `init` the encoder starts from scratch. For a large labelled set, as supervised
pre-training: --config.balance=sampling --config.freeze.blocks=0 --config.mixup=0.5, a longer
`total`, and the optimizer of configs/pretrain.py.

Cost: on two cores a step of 32 clips with the encoder below takes about a sixth of a second.
Number to expect: README.md's example, spoken digits of two unseen speakers (chance 0.100): accuracy
0.727 [0.698, 0.756], macro AUC 0.977 [0.968, 0.986].
Values: chosen by hand, no search stands behind them. Gentler views than in pre-training, a lower
rate for the encoder than for the head, batches in which classes are as common.
result.json has the numbers with 95 % intervals from a bootstrap over subjects, predictions.csv the
probabilities of each scored recording.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # A prepared dataset with labels.
    config.data = ""
    # Work directory of another run whose encoder to start from, with its front end and window;
    # '' starts from scratch, with those below.
    config.init = ""
    # 'single' label a recording, or 'multi'; 'auto' is multi where a recording has several.
    config.task = "auto"
    # Of two classes, the one to be found, to which sensitivity and average precision belong; '' is
    # the second by name.
    config.positive = ""

    # What to train on and score, by subject: 0 takes the dataset's own splits 'train', 'validation'
    # and 'test', or 'fold1', 'fold2', ...; otherwise so many grouped, stratified folds are made,
    # the same as those of linear_probe with this seed. `fold`, from 0 up, is scored.
    config.folds = 0
    config.fold = 0
    config.fold_seed = 0
    # Share of the training subjects to use, with their recordings: stratified, and a smaller share
    # lies within a larger one; the seed chooses which.
    config.label_fraction = 1.0
    config.label_seed = 0
    # Share of those to hold out and choose the best step by, where the dataset has no split
    # 'validation'. With 0 the last step is taken.
    config.validation = 0.2
    # How often to score them, what is best, and after how many scores without a better one to stop
    # (0: never). 'macro_auc', 'average_precision', 'accuracy' or 'balanced_accuracy'.
    config.evaluate_every = "20 steps"
    config.select = "macro_auc"
    config.patience = 0

    # Length of the run: '20000 steps', '100 epochs' or '5e6 examples'.
    config.total = "200 steps"
    # Global batch, over all devices of all processes.
    config.batch_size = 32
    # How often TensorBoard gets embeddings of the validation recordings, beside the start and the
    # end; '0' is never.
    config.pictures_every = "100 steps"
    # How often to save, and to log the means since the last time; the seed of all that is random.
    config.checkpoint_every = "100 steps"
    config.log_every = "10 steps"
    config.seed = 0
    # An update whose loss or gradient is not finite: 'stop' there, or 'skip' and count it.
    config.nonfinite = "stop"
    # 'auto' and 'jit': jit, of shard_map over several devices; 'pmap': pmap.
    config.parallel = "auto"

    # What a class counts: 'none', as often as it is; 'weights' in the loss, or 'sampling' of
    # batches, so that all count the same. With the latter two probabilities are of a world in which
    # classes are equally common, and calibration suffers where they are not.
    config.balance = "sampling"
    # Share of the target spread over the other classes.
    config.label_smoothing = 0.0
    # Alpha of mixup's Beta distribution, 0 for none; share of the embedding that is dropped.
    config.mixup = 0.0
    config.dropout = 0.2
    # The encoder's learning rate against the head's, and a further factor for each layer down. From
    # scratch both are 1.
    config.encoder_rate = 0.3
    config.layer_decay = 1.0
    # Blocks of the encoder, from the first, that stay as they are; one of them thaws, the last
    # first, each `thaw_every` ('0': never).
    config.freeze = ml_collections.ConfigDict({"blocks": 0, "thaw_every": "0"})
    # Of a moving average of the weights, which is then what is scored and kept; 0 keeps none.
    config.average_decay = 0.0

    # Without init: 'cnn6', 'cnn10' or 'cnn14' of PANNs; width multiplies the channels.
    config.encoder = ml_collections.ConfigDict({"name": "cnn6", "width": 0.25, "dtype": "float32"})
    # Without init: named settings of the log-mel front end, in cryjax/audio/frontend.py.
    config.front_end = "small_8k"
    # The stretch of a recording, in seconds, from which its view is cropped.
    config.clip_seconds = 3.0
    # A view's length (without init), and the range of speeds at which it is played.
    config.crop = ml_collections.ConfigDict({"seconds": 0.8, "speed": (0.95, 1.05)})
    # Transforms in order, waveforms' before spectrograms'; each has its arguments below, described
    # in cryjax/audio/augment.py. 'probability' applies one to that share of the views. Gentler than
    # in pre-training: pitch and tempo tell cries apart.
    config.transforms = ("gain", "add_noise", "frequency_mask", "time_mask")
    config.mix = ml_collections.ConfigDict({"snr_decibels": (5.0, 20.0), "probability": 0.3})
    config.gain = ml_collections.ConfigDict({"decibels": (-6.0, 6.0), "probability": 1.0})
    config.add_noise = ml_collections.ConfigDict({"snr_decibels": (10.0, 40.0), "probability": 0.5})
    config.time_shift = ml_collections.ConfigDict({"most": 0.2, "probability": 1.0})
    config.equalise = ml_collections.ConfigDict({"decibels": 6.0, "knots": 5, "probability": 1.0})
    config.band_pass = ml_collections.ConfigDict(
        {"low": 0.1, "high": 0.2, "slope": 6.0, "probability": 0.3}
    )
    config.time_warp = ml_collections.ConfigDict({"most": 0.1, "probability": 0.5})
    config.frequency_mask = ml_collections.ConfigDict({"count": 1, "most": 0.2, "probability": 1.0})
    config.time_mask = ml_collections.ConfigDict({"count": 1, "most": 0.2, "probability": 0.5})

    # 'sgd', 'adamw' or 'lars'; scaling 'none', 'linear' (rate per 256 examples) or 'sqrt' (rate per
    # square root of an example).
    config.optimizer = ml_collections.ConfigDict(
        {
            "name": "adamw",
            "learning_rate": 2e-3,
            "scaling": "none",
            "weight_decay": 1e-3,
            "momentum": 0.9,
            "warmup": "10 steps",
        }
    )
    # Resamples of the subjects behind each 95 % interval.
    config.resamples = 1000
    # To fit a larger batch: compute the inside of blocks twice.
    config.memory = ml_collections.ConfigDict({"remat": False})
    # Threads that read, and batches read ahead, in each process.
    config.loader = ml_collections.ConfigDict({"threads": 4, "buffer": 8})
    return config
