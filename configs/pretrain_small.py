"""SimCLR with a small encoder: for a CPU, for 8 kHz recordings, for a first try.

    python -m cryjax.pretrain --config=configs/pretrain_small.py --workdir=RUN --config.data=DATA

Cost: 200 steps of 128 clips took 3 minutes of two cores, beside other work.
Number to expect: the loss starts at log(2 x 128 - 1) = 5.54, which is guessing, and falls. A probe
of spoken digits of unseen speakers (chance 0.100) has 0.691 after 200 steps and 0.688 after 600,
of the untrained encoder 0.488; cryjax/evaluation/README.md has the commands and intervals.
Values: crops, speeds, learning rate and temperature are those of a first try on spoken digits, no
search stands behind them. The views move pitch and tempo together, add noise and other clips, and
change the channel's colour: what must not matter when the same sound is heard through another
phone. Loss and head are SimCLR's (Chen et al., 2020), the encoder PANNs' CNN6 at a quarter of its
width.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # Prepared datasets, separated by commas; 'FOLDER:3' draws from one three times as often as by
    # its number of examples.
    config.data = ""
    # Split to train on.
    config.split = "train"
    # Subjects to leave out, so that none is adapted to and tested on: names, a manifest, a prepared
    # dataset 'DATA', a split 'DATA:test' or a fold 'DATA:0/5' of one; several with commas.
    config.exclude_subjects = ""
    # Work directory of another run whose encoder to start from; '' starts fresh.
    config.init = ""
    # Length of the run: '20000 steps', '100 epochs' or '5e6 examples'.
    config.total = "40 epochs"
    # Global batch, over all devices of all processes.
    config.batch_size = 128
    # How often TensorBoard gets pairs of views as spectrograms, always of the same few clips, and
    # embeddings of labelled examples, beside the start and the end; '0' leaves all pictures of
    # recordings out, figures/views.png too.
    config.pictures_every = "10 epochs"
    # How often to save, and to log the means since the last time; the seed of all that is random.
    config.checkpoint_every = "5 epochs"
    config.log_every = "10 steps"
    config.seed = 0
    # An update whose loss or gradient is not finite: 'stop' there, or 'skip' and count it.
    config.nonfinite = "stop"
    # 'auto' and 'jit': jit, of shard_map over several devices; 'pmap': pmap.
    config.parallel = "auto"

    # 'cnn6', 'cnn10' or 'cnn14' of PANNs; width multiplies the channels.
    config.encoder = ml_collections.ConfigDict({"name": "cnn6", "width": 0.25, "dtype": "float32"})
    # Projection head.
    config.head = ml_collections.ConfigDict({"hidden": 256, "features": 64})
    # Named settings of the log-mel front end, in cryjax/audio/frontend.py.
    config.front_end = "small_8k"

    # The stretch of a recording, in seconds, from which both views of it are cropped.
    config.clip_seconds = 3.0
    # A view's length, and the range of speeds at which it is played.
    config.crop = ml_collections.ConfigDict({"seconds": 0.8, "speed": (0.75, 1.33)})
    # Transforms in order, waveforms' before spectrograms'; each has its arguments below, described
    # in cryjax/audio/augment.py. 'probability' applies one to that share of the views.
    config.transforms = (
        "mix",
        "gain",
        "add_noise",
        "equalise",
        "band_pass",
        "frequency_mask",
        "time_mask",
    )
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

    # Temperature of NT-Xent.
    config.temperature = 0.2
    # 'sgd', 'adamw' or 'lars'; scaling 'none', 'linear' (rate per 256 examples) or 'sqrt' (rate per
    # square root of an example).
    config.optimizer = ml_collections.ConfigDict(
        {
            "name": "adamw",
            "learning_rate": 2e-3,
            "scaling": "none",
            "weight_decay": 1e-4,
            "momentum": 0.9,
            "warmup": "2 epochs",
        }
    )

    # Online check on labelled data: accuracy of the nearest neighbours of other subjects. '0' is
    # never; `most` examples of `split` of the first dataset are embedded.
    config.neighbours = ml_collections.ConfigDict({"every": "0", "split": "train", "most": 1000})
    # To fit a larger batch: encode each device's share in so many chunks (the loss keeps all its
    # negatives; batch statistics become a chunk's), and compute the inside of blocks twice.
    config.memory = ml_collections.ConfigDict({"chunks": 1, "remat": False})
    # Threads that read, and batches read ahead.
    config.loader = ml_collections.ConfigDict({"threads": 4, "buffer": 8})
    return config
