"""SimCLR with a small encoder: for a CPU, for 8 kHz recordings, for a first try.

    python -m cryjax.pretrain --config=configs/pretrain_small.py --workdir=RUN --config.data=DATA

Cost: 200 steps of 128 clips took 3 minutes on two cores under other load.
Number to expect: the loss starts at log(2 x 128 - 1) = 5.54, which is guessing, and falls. A probe
of spoken digits of unseen speakers (chance 0.100) has 0.703 after 200 steps, 0.684 after 600, and
0.509 with untrained encoders; cryjax/evaluation/README.md has the commands and intervals.
Values: crops, speeds, learning rate and temperature are those of a first try on spoken digits,
without a search. The views shift pitch and tempo together, add noise and other clips, and hide
bands and frames; level and colour of the channel need no view, as the front end subtracts them.
Loss and head are SimCLR's (Chen et al., 2020), the encoder is PANNs' CNN6 at a quarter of its
width.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # Prepared datasets, comma-separated; 'FOLDER:3' is drawn from three times as often as its
    # number of examples alone would give.
    config.data = ""
    # Split to train on.
    config.split = "train"
    # Subjects to leave out, so that none is both trained and tested on: names, a manifest, a
    # prepared dataset 'DATA', its split 'DATA:test' or fold 'DATA:0/5'; comma-separated.
    config.exclude_subjects = ""
    # Work directory of a run whose encoder to start from; '' starts from scratch.
    config.init = ""
    # Length of the run: '20000 steps', '100 epochs' or '5e6 examples'.
    config.total = "40 epochs"
    # Global batch size, over all devices of all processes.
    config.batch_size = 128
    # How often to log spectrograms of view pairs, always of the same few clips, and embeddings of
    # labelled examples to TensorBoard, besides at the start and the end; '0' omits all pictures of
    # recordings, including figures/views.png.
    config.pictures_every = "10 epochs"
    # How often to save, and to log means since the last log; the seed of all randomness.
    config.checkpoint_every = "5 epochs"
    config.log_every = "10 steps"
    config.seed = 0
    # On a non-finite loss or gradient: 'stop', or 'skip' and count the update.
    config.nonfinite = "stop"
    # 'auto' and 'jit': jit, with shard_map over several devices; 'pmap': pmap.
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
    # Transforms in order, those of waveforms before those of spectrograms. Their arguments are
    # below, described in cryjax/audio/augment.py; 'probability' is the share of views transformed.
    # With a front end that subtracts band means, gain, equalise and band_pass have no effect.
    config.transforms = (
        "mix",
        "add_noise",
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
    # 'sgd', 'adamw' or 'lars'; scaling 'none', 'linear' (x batch size / 256) or 'sqrt' (x square
    # root of the batch size).
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

    # Online check on labelled data: accuracy of nearest neighbours from other subjects. '0' is
    # never; up to `most` examples of `split` of the first dataset are embedded.
    config.neighbours = ml_collections.ConfigDict({"every": "0", "split": "train", "most": 1000})
    # To fit a larger batch: encode each device's share in this many chunks (the loss keeps all its
    # negatives; batch statistics become a chunk's), and recompute blocks in the backward pass.
    config.memory = ml_collections.ConfigDict({"chunks": 1, "remat": False})
    # Reader threads and prefetched batches.
    config.loader = ml_collections.ConfigDict({"threads": 4, "buffer": 8})
    return config
