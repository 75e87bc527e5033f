"""Random 4 s crops of 10 s recordings, read from disk: cryjax's loader, PyTorch's and TFDS.

    python tests/benchmarks/inputs.py --torch_python=TORCH_ENV/bin/python [--files=500]
        [--out=FILE.json]

Synthetic recordings of 10 s at 16 kHz are written as FLAC and as WAV, and prepared by
`cryjax.prepare`; the files are in the system's cache, so this measures processors, not the disk.
Batches have 64 crops as int16. 'cryjax' is the loader that training uses, with its fastest number
of threads. 'torch flac' and 'torch wav' are a Dataset that opens a file with soundfile, seeks and
reads the crop, or for FLAC decodes the whole file if that is faster, in a DataLoader with no worker
or one persistent worker per core. 'tfds' is a TFDS dataset with its `Audio` feature in the faster
of two encodings, and tf.data that shuffles, crops and batches in parallel; it is measured if
`--torch_python` (or `--tfds_python`) has tensorflow, tensorflow-datasets and pydub.

Besides clips per second it prints clips per CPU second, threads and child processes included,
since loaders may use different numbers of cores. At the end a short pre-training, of a narrow CNN6
unless `--train_encoder` and the like say otherwise, reports what share of its time it waited for
data; it runs where JAX does, so on a GPU if there is one.
"""

import argparse
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

import numpy as np

import peers

RATE, SECONDS, CROP, BATCH = 16_000, 10, 4 * 16_000, 64
CORES = len(os.sched_getaffinity(0))


def write_recordings(folder: pathlib.Path, files: int) -> None:
    """Decaying harmonics over faint noise: as hard to compress as a voice, as FLAC and as WAV."""
    import soundfile

    rng = np.random.default_rng(0)
    time = np.arange(RATE * SECONDS) / RATE
    rows = ["path,subject"]
    for place in range(files):
        pitch = rng.uniform(200, 600)
        voice = sum(np.sin(2 * np.pi * k * pitch * time) / k for k in range(1, 8))
        audio = 0.2 * voice * (np.sin(2 * np.pi * rng.uniform(0.3, 2) * time) > 0)
        audio += 0.01 * rng.normal(size=len(time))
        for kind in ("flac", "wav"):
            (folder / kind).mkdir(exist_ok=True)
            soundfile.write(folder / kind / f"{place:05}.{kind}", audio, RATE, "PCM_16")
        rows.append(f"flac/{place:05}.flac,subject-{place % 50}")
    (folder / "manifest.csv").write_text("\n".join(rows), encoding="utf-8")


def _serve(iterators: dict, said: dict, options: argparse.Namespace) -> None:
    """Serves the fastest of several endless iterators over batches."""

    def take(iterator, count):
        for _ in range(count):
            next(iterator)

    forms = {name: functools.partial(take, it, options.batches) for name, it in iterators.items()}
    peers.serve(
        lambda: peers.fastest(forms, said),
        said,
        # What was prefetched during the others' turns is not measured.
        before=lambda: take(iterators[said["form"]], 16),
    )


def cryjax_worker(options: argparse.Namespace) -> None:
    import grain

    from cryjax.data import loader
    from cryjax.data.records import open_prepared

    source = open_prepared(options.folder / "data").source("train")
    said = {"grain": getattr(grain, "__version__", "?")}

    def form(threads):
        clips = loader.Clips([(source, 1.0)], samples=CROP, seed=0)
        return loader.Batches(clips, BATCH, threads=threads, buffer=max(threads, 8)).since(0)

    forms = {f"{threads} threads": form(threads) for threads in sorted({1, CORES, 4, 16})}
    _serve(forms, said, options)


def torch_worker(options: argparse.Namespace, kind: str) -> None:
    import soundfile
    import torch
    from torch.utils import data

    files = sorted(map(str, (options.folder / kind).iterdir()))

    class Crops(data.Dataset):
        def __init__(self, seek):
            self.seek = seek

        def __len__(self):
            return len(files)

        def __getitem__(self, place):
            with soundfile.SoundFile(files[place]) as file:
                start = int(torch.randint(file.frames - CROP + 1, ()))
                if not self.seek:
                    return torch.from_numpy(file.read(dtype="int16")[start : start + CROP])
                file.seek(start)
                return torch.from_numpy(file.read(CROP, dtype="int16"))

    def form(workers, seek):
        dataset = Crops(seek)
        loader = data.DataLoader(
            dataset,
            BATCH,
            sampler=data.RandomSampler(dataset, replacement=True, num_samples=10**7),
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
        )
        return iter(loader)

    said = {"torch": torch.__version__, "soundfile": soundfile.__version__}
    forms = {
        f"{workers} workers, {'seek' if seek else 'whole'}": form(workers, seek)
        for workers in (0, CORES)
        for seek in ((True, False) if kind == "flac" else (True,))
    }
    _serve(forms, said, options)


def tfds_worker(options: argparse.Namespace) -> None:
    import tensorflow as tf
    import tensorflow_datasets as tfds

    tf.config.set_visible_devices([], "GPU")
    tfds.disable_progress_bar()
    files = sorted((options.folder / "wav").iterdir())
    encodings = {
        "int64, as Audio has it": tfds.features.Audio(sample_rate=RATE),
        "int16 bytes": tfds.features.Audio(sample_rate=RATE, dtype=np.int16, encoding="bytes"),
    }

    def form(name, place):
        class Recordings(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                features = tfds.features.FeaturesDict({"audio": encodings[name]})
                return tfds.core.DatasetInfo(builder=self, features=features)

            def _split_generators(self, _):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                for file in files:
                    yield file.stem, {"audio": file}

        builder = Recordings(data_dir=str(options.folder / f"tfds{place}"))
        builder.download_and_prepare()
        # A dataset this small would be cached in memory decoded, unlike a real one.
        reading = tfds.ReadConfig(try_autocache=False)
        dataset = builder.as_dataset(split="train", shuffle_files=True, read_config=reading)
        dataset = dataset.repeat().shuffle(256)
        dataset = dataset.map(
            lambda example: tf.image.random_crop(tf.cast(example["audio"], tf.int16), (CROP,)),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        return dataset.batch(BATCH).prefetch(8).as_numpy_iterator()  # as many as the others

    said = {"tensorflow": tf.__version__, "tfds": tfds.__version__}
    forms = {name: form(name, place) for place, name in enumerate(encodings)}
    _serve(forms, said, options)


WORKERS = {
    "cryjax": cryjax_worker,
    "torch flac": functools.partial(torch_worker, kind="flac"),
    "torch wav": functools.partial(torch_worker, kind="wav"),
    "tfds": tfds_worker,
}


def waiting(folder: pathlib.Path, options: argparse.Namespace) -> dict[str, float]:
    """Clips per second of a training run, and the share of time that it waited for data."""
    overrides = {
        "data": folder / "data",
        "front_end": "cssl_sound",
        "clip_seconds": SECONDS,
        "crop.seconds": CROP / RATE,
        "batch_size": min(options.train_batch, options.files),
        "total": f"{options.train_steps} steps",
        "log_every": f"{options.train_steps} steps",
        "optimizer.warmup": "1 step",
        "encoder.name": options.train_encoder,
        "encoder.width": options.train_width,
        "encoder.dtype": options.train_dtype,
    }
    recipe = pathlib.Path(__file__).parents[2] / "configs" / "pretrain_small.py"
    command = ["-m", "cryjax.pretrain", f"--config={recipe}", f"--workdir={folder / 'run'}"]
    # Keeps the user's compilation cache, or a GPU's convolutions would be autotuned again.
    kept = {name: x for name, x in os.environ.items() if name == "JAX_COMPILATION_CACHE_DIR"}
    peers.run_python([*command, *(f"--config.{name}={x}" for name, x in overrides.items())], **kept)
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    last = json.loads(lines[-1])
    return {name: last[name] for name in ("clips_per_second", "waiting_for_data")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch_python", help="python with PyTorch and soundfile")
    parser.add_argument("--tfds_python", help="python with tensorflow-datasets, if another")
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--batches", type=int, default=30, help="of one measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--train_steps", type=int, default=20)
    parser.add_argument("--train_encoder", default="cnn6")
    parser.add_argument("--train_width", type=float, default=0.125)
    parser.add_argument("--train_dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--train_batch", type=int, default=BATCH)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--worker", choices=WORKERS)
    parser.add_argument("--folder", type=pathlib.Path)
    options = parser.parse_args()
    if options.worker:
        WORKERS[options.worker](options)
        return
    pythons = {"cryjax": sys.executable}
    if options.torch_python:
        pythons |= {"torch flac": options.torch_python, "torch wav": options.torch_python}
    if python := options.tfds_python or options.torch_python:
        probe = [python, "-c", "import tensorflow, tensorflow_datasets, pydub"]
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            pythons["tfds"] = python
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_recordings(folder, options.files)
        command = ["-m", "cryjax.prepare", f"--sample_rate={RATE}"]
        command += [f"--manifest={folder / 'manifest.csv'}", f"--out={folder / 'data'}"]
        peers.run_python(command, CRYJAX_SUBJECT_KEY=str(folder / "subject-key"))
        arguments = [*sys.argv[1:], "--folder", name]
        workers = peers.start(pythons, __file__, arguments)
        said = {name: worker.said for name, worker in workers.items()}
        seconds = peers.in_turns(workers, options.repeats)
        cpu = {name: worker.cpu_seconds for name, worker in workers.items()}
        waited = waiting(folder, options)
    clips = BATCH * options.batches
    print(f"{CORES} cores, {options.files} recordings")
    peers.report(
        seconds, "clips", clips, options.out, said, cpu_seconds=cpu, cores=CORES, training=waited
    )
    print("for each second of a core: " + ", ".join(
        f"{name} {clips / statistics.median(used):.0f}" for name, used in cpu.items()
    ))  # fmt: skip
    print(f"a training run: {waited['clips_per_second']:.1f} clips/s, of whose time "
          f"{waited['waiting_for_data']:.2%} waited for data")  # fmt: skip


if __name__ == "__main__":
    main()
