"""SimCLR with CNN14 on large general audio, global batch 8192: for a TPU slice of 256 chips.

    python -m cryjax.prepare --manifest=AUDIO.csv --out=DATA --sample_rate=16000
    python -m cryjax.plan --config=configs/pretrain.py --topology=v5e:16x16
    python -m cryjax.pretrain --config=configs/pretrain.py --workdir=RUN --config.data=DATA

Cost, according to `plan`, on v5e:16x16 (256 chips on 64 hosts): 4.50 of 15.75 GiB per chip, 3.32
TFLOP per chip and step. Lower bounds are 21 ms per step and 8 minutes for 100 epochs of two million
clips; a real run takes several times that, and is limited by its input if a host reads fewer than
6,000 clips (1.9 GB) per second.
Number to expect: none, since it has not been run at this scale. It has to beat the untrained
encoder, which configs/linear_probe.py prints beside it, and the loss of guessing,
log(2 x 8192 - 1) = 9.70.
Values: front end, crops and kinds of masks are those of zhepeiw/cssl_sound (a co-author's SimCLR
with CNN14), mask sizes SpeechBrain's defaults; LARS, its rate, temperature and schedule are those
of SimCLR (Chen et al., 2020, section B) for large batches.
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
    config.total = "100 epochs"
    # Global batch size, over all devices of all processes.
    config.batch_size = 8192
    # How often to log spectrograms of view pairs, always of the same few clips, and embeddings of
    # labelled examples to TensorBoard, besides at the start and the end; '0' omits all pictures of
    # recordings, including figures/views.png.
    config.pictures_every = "10 epochs"
    # How often to save, and to log means since the last log; the seed of all randomness.
    config.checkpoint_every = "5 epochs"
    config.log_every = "50 steps"
    config.seed = 0
    # On a non-finite loss or gradient: 'stop', or 'skip' and count the update.
    config.nonfinite = "stop"
    # 'auto' and 'jit': jit, with shard_map over several devices; 'pmap': pmap.
    config.parallel = "auto"

    # 'cnn6', 'cnn10' or 'cnn14' of PANNs; width multiplies the channels.
    config.encoder = ml_collections.ConfigDict({"name": "cnn14", "width": 1.0, "dtype": "bfloat16"})
    # Projection head.
    config.head = ml_collections.ConfigDict({"hidden": 2048, "features": 128})
    # Named settings of the log-mel front end, in cryjax/audio/frontend.py.
    config.front_end = "cssl_sound"

    # The stretch of a recording, in seconds, from which both views of it are cropped.
    config.clip_seconds = 10.0
    # A view's length, and the range of speeds at which it is played.
    config.crop = ml_collections.ConfigDict({"seconds": 4.0, "speed": (1.0, 1.0)})
    # Transforms in order, those of waveforms before those of spectrograms. Their arguments are
    # below, described in cryjax/audio/augment.py; 'probability' is the share of views transformed.
    # With a front end that subtracts band means, gain, equalise and band_pass have no effect.
    config.transforms = (
        "mix",
        "add_noise",
        "time_warp",
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
    # SpecAugment as in SpeechBrain: 5 frames of warp, masks of up to 20 bands and 100 frames.
    config.time_warp = ml_collections.ConfigDict({"most": 0.0125, "probability": 1.0})
    config.frequency_mask = ml_collections.ConfigDict(
        {"count": 2, "most": 0.25, "probability": 1.0}
    )
    config.time_mask = ml_collections.ConfigDict({"count": 2, "most": 0.25, "probability": 1.0})

    # Temperature of NT-Xent.
    config.temperature = 0.1
    # 'sgd', 'adamw' or 'lars'; scaling 'none', 'linear' (x batch size / 256) or 'sqrt' (x square
    # root of the batch size: 0.075 is its equivalent for small batches).
    config.optimizer = ml_collections.ConfigDict(
        {
            "name": "lars",
            "learning_rate": 0.3,
            "scaling": "linear",
            "weight_decay": 1e-6,
            "momentum": 0.9,
            "warmup": "10 epochs",
        }
    )

    # Online check on labelled data: accuracy of nearest neighbours from other subjects. '0' is
    # never; up to `most` examples of `split` of the first dataset are embedded.
    config.neighbours = ml_collections.ConfigDict({"every": "0", "split": "train", "most": 1000})
    # To fit a larger batch: encode each device's share in this many chunks (the loss keeps all its
    # negatives; batch statistics become a chunk's), and recompute blocks in the backward pass.
    config.memory = ml_collections.ConfigDict({"chunks": 1, "remat": False})
    # Reader threads and prefetched batches of each process.
    config.loader = ml_collections.ConfigDict({"threads": 16, "buffer": 16})
    return config
