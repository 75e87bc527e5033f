"""SimCLR pre-training; domain adaptation when it starts from a checkpoint.

    python -m cryjax.pretrain --config=configs/pretrain_small.py --workdir=RUN --config.data=DATA

Training starts from a checkpoint in the work directory (it goes on), else from the encoder of
`config.init`, else fresh; the log says which. SIGTERM or Ctrl-C saves and exits with status 75: the
same command goes on. `--views` draws pairs of views to figures/views.png and does not train.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from ml_collections import config_flags

from cryjax import __version__
from cryjax.audio import augment, frontend
from cryjax.command import config as config_lib
from cryjax.command import program
from cryjax.command.config import integer, interval, number, one_of, text
from cryjax.command.program import UserError
from cryjax.data import loader
from cryjax.data.records import Prepared, open_prepared
from cryjax.evaluation import figures
from cryjax.evaluation.embeddings import Embedder
from cryjax.evaluation.probes import nearest_neighbour_accuracy
from cryjax.models import ENCODERS, ProjectionHead, make_encoder
from cryjax.training import checkpoints, loop, optimizers, parallel, steps
from cryjax.training.workdir import Workdir

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe, as configs/pretrain_small.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; an existing run goes on.")
_VIEWS = flags.DEFINE_bool("views", False, "Draw pairs of views to figures/views.png and exit.")

_TRANSFORMS = (*augment.WAVEFORM, *augment.SPECTROGRAM)
_SHARE = number(0, 1)
RULES = {
    "data": text(required="a prepared dataset: --config.data=FOLDER (python -m cryjax.prepare)"),
    "split": text(required="the name of a split"),
    "init": text(),
    "total": config_lib.LENGTH,
    "batch_size": integer(2),
    "checkpoint_every": config_lib.LENGTH,
    "log_every": config_lib.LENGTH,
    "seed": integer(),
    "parallel": one_of(*parallel.CHOICES),
    "encoder.name": one_of(*ENCODERS),
    "encoder.width": number(above=0),
    "encoder.dtype": one_of("float32", "bfloat16"),
    "head.hidden": integer(1),
    "head.features": integer(1),
    "front_end": one_of(*frontend.PRESETS),
    "clip_seconds": number(above=0),
    "crop.seconds": number(above=0),
    "crop.speed": interval(0.1),
    "transforms": config_lib.Rule(
        lambda x: isinstance(x, tuple | list) and all(name in _TRANSFORMS for name in x),
        "a tuple of " + ", ".join(_TRANSFORMS),
    ),
    **{f"{name}.probability": _SHARE for name in _TRANSFORMS},
    "mix.snr_decibels": interval(),
    "gain.decibels": interval(),
    "add_noise.snr_decibels": interval(),
    "time_shift.most": _SHARE,
    "equalise.decibels": number(0),
    "equalise.knots": integer(2),
    "band_pass.low": number(0, 0.5),
    "band_pass.high": number(0, 0.5),
    "band_pass.slope": number(0),
    "time_warp.most": number(0, 0.49),
    "frequency_mask.count": integer(0),
    "frequency_mask.most": _SHARE,
    "time_mask.count": integer(0),
    "time_mask.most": _SHARE,
    "temperature": number(above=0),
    "optimizer.name": one_of(*optimizers.NAMES),
    "optimizer.learning_rate": number(above=0),
    "optimizer.scaling": one_of(*optimizers.SCALINGS),
    "optimizer.weight_decay": number(0),
    "optimizer.momentum": number(0, 1),
    "optimizer.warmup": config_lib.LENGTH,
    "neighbours.every": config_lib.LENGTH,
    "neighbours.split": text(required="the name of a split"),
    "neighbours.most": integer(2),
    "loader.threads": integer(1),
    "loader.buffer": integer(1),
}


def open_datasets(config: Any, sample_rate: int) -> list[tuple[Prepared, float]]:
    """The datasets of `config.data` with their weights, at the front end's sample rate."""
    datasets = []
    for entry in config.data.split(","):
        folder, _, factor = entry.partition(":")
        try:
            weight = float(factor or 1.0)
        except ValueError:
            weight = 0.0
        if weight <= 0:
            raise UserError(f"config.data={entry!r}: the weight after ':' must be a number above 0")
        prepared = open_prepared(pathlib.Path(folder))
        if prepared.sample_rate != sample_rate:
            raise UserError(
                f"{folder} is at {prepared.sample_rate} Hz and config.front_end="
                f"{config.front_end!r} at {sample_rate} Hz; prepare it again with "
                f"--sample_rate={sample_rate}, or take another front end"
            )
        datasets.append((prepared, weight))
    return datasets


def check_batch(config: Any, examples: int, devices: int) -> None:
    """Raises UserError where the devices, or the data, do not fit the batch."""
    if config.batch_size % devices:
        near = max(config.batch_size // devices, 1) * devices
        raise UserError(
            f"config.batch_size={config.batch_size} is not divided by {devices} devices; "
            f"take a multiple, as {near}"
        )
    if "mix" in config.transforms and config.batch_size // devices % augment.MIX_GROUP:
        raise UserError(
            f"config.batch_size={config.batch_size} over {devices} devices: 'mix' needs a multiple "
            f"of {augment.MIX_GROUP} on each; take one of {devices * augment.MIX_GROUP}, or leave "
            "'mix' out of config.transforms"
        )
    if examples < config.batch_size:
        raise UserError(
            f"config.batch_size={config.batch_size} is more than the {examples} examples of split "
            f"{config.split!r}; an example would be its own negative: take a smaller batch"
        )


def view_recipe(config: Any) -> dict[str, Any]:
    """The keyword arguments of `augment.view` that the config describes."""
    return {
        "settings": frontend.resolve(config.front_end),
        "crop": config.crop.to_dict(),
        "transforms": [(name, config[name].to_dict()) for name in config.transforms],
    }


def draw_views(workdir: Workdir, batch: dict[str, np.ndarray], config: Any, note: str) -> None:
    """Draws pairs of views of the run's first clips: what the encoder will see."""
    recipe = view_recipe(config)
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    place = augment.MIX_GROUP
    first, second = jax.jit(functools.partial(augment.two_views, **recipe))(
        key, batch["audio"][:place], batch["length"][:place]
    )
    path = figures.views_figure(
        workdir.figure("views"),
        np.stack([first, second], axis=1),
        hop_seconds=recipe["settings"].hop_seconds,
        note=note,
    )
    logging.info("views: %s", path)


def start_state(
    state: steps.TrainState, init: str, spread: parallel.Parallel, saved: checkpoints.Checkpoints
) -> steps.TrainState:
    """Where training starts: this run's checkpoint, another run's encoder, or fresh."""
    if saved.latest is not None:
        logging.info("going on from step %d of this work directory", saved.latest)
        return saved.restore(state, spread.replicated)
    if init:
        target = {
            "params": state.params["encoder"],
            "batch_stats": state.batch_stats["encoder"],
        }
        loaded = checkpoints.restore_encoder(init, target, spread.replicated)
        logging.info("starting from the encoder of %s; projection head and optimizer fresh", init)
        state = state.replace(
            params=state.params | {"encoder": loaded["params"]},
            batch_stats=state.batch_stats | {"encoder": loaded["batch_stats"]},
        )
    else:
        logging.info("starting fresh")
    return spread.replicate(state)


def main(_: list[str]) -> None:
    config = config_lib.checked(_CONFIG.value, RULES)
    workdir_path = program.required(_WORKDIR)
    settings = frontend.resolve(config.front_end)
    datasets = open_datasets(config, settings.sample_rate)
    synthetic = any(prepared.synthetic for prepared, _ in datasets)
    sources = [(p.source(config.split), weight) for p, weight in datasets]
    examples = sum(len(source) for source, _ in sources)
    spread = parallel.Parallel(config.parallel)
    check_batch(config, examples, spread.devices)

    def in_steps(length: str) -> int:
        return config_lib.steps(length, batch_size=config.batch_size, examples=examples)

    total, warmup = in_steps(config.total), in_steps(config.optimizer.warmup)
    if warmup >= total:
        raise UserError(
            f"config.optimizer.warmup={config.optimizer.warmup!r} is {warmup} steps and "
            f"config.total={config.total!r} is {total}; take a shorter warm-up"
        )
    workdir = Workdir(workdir_path, config_lib.to_dict(config), writes=jax.process_index() == 0)
    dataset = loader.examples(
        [(source, weight * len(source)) for source, weight in sources],
        samples=round(config.clip_seconds * settings.sample_rate),
        seed=config.seed,
    )
    if _VIEWS.value or not workdir.figure("views").exists():
        one = next(loader.batches(dataset, batch_size=max(config.batch_size, augment.MIX_GROUP)))
        draw_views(workdir, one, config, "synthetic data" if synthetic else "")
        if _VIEWS.value:
            return

    encoder = make_encoder(**config.encoder)
    head = ProjectionHead(**config.head)
    learning_rate = optimizers.schedule(
        optimizers.base_rate(
            config.optimizer.learning_rate, config.batch_size, config.optimizer.scaling
        ),
        total,
        warmup,
    )
    optimizer = optimizers.make_optimizer(
        config.optimizer.name,
        learning_rate,
        weight_decay=config.optimizer.weight_decay,
        momentum=config.optimizer.momentum,
    )
    base = jax.random.key(config.seed)
    saved = checkpoints.Checkpoints(workdir.path)
    fresh = functools.partial(
        steps.init_state, encoder=encoder, head=head, optimizer=optimizer, mels=settings.mels
    )
    state = jax.jit(fresh)(base)
    state = start_state(state, config.init, spread, saved)
    workdir.rewind(int(state.step))
    size = sum(x.size for x in jax.tree.leaves(state.params["encoder"]))
    logging.info(
        "%s width %g, %.2f M parameters; %d examples%s, %d steps of %d; %s",
        config.encoder.name, config.encoder.width, size / 1e6, examples,
        " (synthetic)" if synthetic else "", total, config.batch_size, spread,
    )  # fmt: skip

    step = functools.partial(
        steps.simclr_step,
        encoder=encoder,
        head=head,
        optimizer=optimizer,
        recipe=view_recipe(config),
        temperature=config.temperature,
    )
    embedder = Embedder(encoder, settings, round(config.crop.seconds * settings.sample_rate))

    def neighbours(current: steps.TrainState) -> dict[str, float]:
        variables = {
            "params": current.params["encoder"],
            "batch_stats": current.batch_stats["encoder"],
        }
        found = embedder(
            variables, datasets[0][0], config.neighbours.split, most=config.neighbours.most
        )
        accuracy = nearest_neighbour_accuracy(found.features, found.labels, found.subjects)
        return {} if accuracy is None else {"neighbour_accuracy": accuracy}

    state = loop.train(
        spread.wrap(step),
        state,
        loader.batches(
            dataset,
            batch_size=config.batch_size,
            start=int(state.step),
            process=jax.process_index(),
            processes=jax.process_count(),
            threads=config.loader.threads,
            buffer=config.loader.buffer,
        ),
        key=base,
        schedule=loop.Schedule(
            total=total,
            log_every=max(in_steps(config.log_every), 1),
            checkpoint_every=in_steps(config.checkpoint_every),
            evaluate_every=in_steps(config.neighbours.every),
        ),
        parallel=spread,
        checkpoints=saved,
        workdir=workdir,
        meta={
            "program": "pretrain",
            "version": __version__,
            "config": config_lib.to_dict(config),
            "front_end": dataclasses.asdict(settings),
            "labels": [],
            "synthetic": synthetic,
        },
        learning_rate=learning_rate,
        batch_size=config.batch_size,
        evaluate=neighbours,
    )
    saved.close()
    history = workdir.metrics()
    figures.training_figure(
        workdir.figure("training"), history, note="synthetic data" if synthetic else ""
    )
    workdir.result({"steps": total, "examples": examples, "synthetic": synthetic, **history[-1]})
    workdir.close()
    logging.info("done: %s", workdir.path)


if __name__ == "__main__":
    program.run(main)
