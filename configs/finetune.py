"""Supervised training of a small encoder: fine-tuning, from scratch, or supervised pre-training.

    python -m cryjax.finetune --config=configs/finetune.py --workdir=TUNED \\
        --config.init=RUN --config.data=DATA

Without `init` the encoder starts from scratch. For supervised pre-training on a large labelled set
use --config.balance=sampling --config.freeze.blocks=0 --config.mixup=0.5, a longer `total`, and the
optimizer of configs/pretrain.py.

Cost: on two cores a step of 32 clips with the encoder below takes about a sixth of a second.
Number to expect: README.md's example, spoken digits of two unseen speakers (chance 0.100): accuracy
0.716 [0.714, 0.718], macro AUC 0.973 [0.958, 0.987].
Values: chosen by hand, without a search: gentler views than in pre-training, a lower rate for the
encoder than for the head, class-balanced batches.
result.json has the metrics with 95 % intervals from a bootstrap over subjects, predictions.csv the
probabilities of each scored recording.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # A prepared dataset with labels.
    config.data = ""
    # Work directory of a run whose encoder, front end and window to start from; '' starts from
    # scratch, with those below.
    config.init = ""
    # 'single' (one label a recording) or 'multi'; 'auto' is multi if any recording has several.
    config.task = "auto"
    # The positive one of two classes, to which sensitivity and average precision refer; '' is the
    # second by name.
    config.positive = ""

    # How to split by subject: 0 takes the dataset's own splits 'train', 'validation' and 'test', or
    # 'fold1', 'fold2', ...; otherwise this many grouped, stratified folds are made, the same as in
    # linear_probe with this seed. `fold`, counted from 0, is held out and scored.
    config.folds = 0
    config.fold = 0
    config.fold_seed = 0
    # Share of the training subjects to use, with their recordings: stratified, chosen by the seed;
    # a smaller share lies within a larger one.
    config.label_fraction = 1.0
    config.label_seed = 0
    # Share of those to hold out for choosing the best step, if the dataset has no split
    # 'validation'. With 0 the last step is taken.
    config.validation = 0.2
    # How often to score them, by which metric ('macro_auc', 'average_precision', 'accuracy' or
    # 'balanced_accuracy'), and after how many scores without improvement to stop (0: never).
    config.evaluate_every = "20 steps"
    config.select = "macro_auc"
    config.patience = 0

    # Length of the run: '20000 steps', '100 epochs' or '5e6 examples'.
    config.total = "200 steps"
    # Global batch size, over all devices of all processes.
    config.batch_size = 32
    # How often to log embeddings of the validation recordings to TensorBoard, besides at the start
    # and the end; '0' is never.
    config.pictures_every = "100 steps"
    # How often to save, and to log means since the last log; the seed of all randomness.
    config.checkpoint_every = "100 steps"
    config.log_every = "10 steps"
    config.seed = 0
    # On a non-finite loss or gradient: 'stop', or 'skip' and count the update.
    config.nonfinite = "stop"
    # 'auto' and 'jit': jit, with shard_map over several devices; 'pmap': pmap.
    config.parallel = "auto"

    # Class balancing: 'none'; or 'weights' in the loss or 'sampling' of batches, so that all count
    # the same. The latter two give probabilities as if classes were equally common, so calibration
    # suffers where they are not.
    config.balance = "sampling"
    # Share of the target spread evenly over all classes, or over yes and no if 'multi'.
    config.label_smoothing = 0.0
    # Alpha of mixup's Beta distribution, 0 for none; dropout rate of the embedding.
    config.mixup = 0.0
    config.dropout = 0.2
    # The encoder's learning rate relative to the head's, and a further factor for each layer down.
    # From scratch both are 1.
    config.encoder_rate = 0.3
    config.layer_decay = 1.0
    # Encoder blocks to freeze, from the first; one of them thaws, the last first, every
    # `thaw_every` ('0': never).
    config.freeze = ml_collections.ConfigDict({"blocks": 0, "thaw_every": "0"})
    # Decay of a moving average of the weights, which is then scored and kept; 0 keeps none.
    config.average_decay = 0.0

    # Without init: 'cnn6', 'cnn10' or 'cnn14' of PANNs; width multiplies the channels. `dtype` is
    # that of the computation, 'float32' or 'bfloat16', whatever the encoder was trained in.
    config.encoder = ml_collections.ConfigDict({"name": "cnn6", "width": 0.25, "dtype": "float32"})
    # Without init: named settings of the log-mel front end, in cryjax/audio/frontend.py.
    config.front_end = "small_8k"
    # The stretch of a recording, in seconds, from which its view is cropped.
    config.clip_seconds = 3.0
    # A view's length (without init), and the range of speeds at which it is played.
    config.crop = ml_collections.ConfigDict({"seconds": 0.8, "speed": (0.95, 1.05)})
    # Transforms in order, those of waveforms before those of spectrograms. Their arguments are
    # below, described in cryjax/audio/augment.py; 'probability' is the share of views transformed.
    # With a front end that subtracts band means, gain, equalise and band_pass have no effect.
    # Gentler than in pre-training: pitch and tempo tell cries apart.
    config.transforms = ("add_noise", "frequency_mask", "time_mask")
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

    # 'sgd', 'adamw' or 'lars'; scaling 'none', 'linear' (x batch size / 256) or 'sqrt' (x square
    # root of the batch size).
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
    # Bootstrap resamples of subjects per 95 % interval.
    config.resamples = 1000
    # To fit a larger batch: recompute blocks in the backward pass.
    config.memory = ml_collections.ConfigDict({"remat": False})
    # Reader threads and prefetched batches of each process.
    config.loader = ml_collections.ConfigDict({"threads": 4, "buffer": 8})
    return config
