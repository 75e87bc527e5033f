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
from cryjax.command.program import UserError
from cryjax.data import loader
from cryjax.data.records import Prepared, open_prepared
from cryjax.evaluation import figures
from cryjax.evaluation.embeddings import Embedder
from cryjax.evaluation.probes import nearest_neighbour_accuracy
from cryjax.training import checkpoints, loop, parallel, simclr, steps
from cryjax.training.workdir import Workdir

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe, as configs/pretrain_small.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; an existing run goes on.")
_VIEWS = flags.DEFINE_bool("views", False, "Draw pairs of views to figures/views.png and exit.")


def open_datasets(config: Any, sample_rate: int) -> list[tuple[Prepared, float]]:
    """The datasets of `config.data` with their weights, at the front end's sample rate."""
    datasets = []
    for entry in config.data.split(","):
        folder, _, factor = entry.partition(":")
        try:
            weight = float(factor or 1.0)
        except ValueError:
            weight = 0.0
        if not 0 < weight < float("inf"):
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


def draw_views(workdir: Workdir, batch: dict[str, np.ndarray], config: Any, note: str) -> None:
    """Draws pairs of views of the run's first clips: what the encoder will see."""
    recipe = simclr.view_recipe(config)
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
    state: steps.TrainState,
    init: str,
    settings: frontend.FrontEnd,
    spread: parallel.Parallel,
    saved: checkpoints.Checkpoints,
) -> steps.TrainState:
    """Where training starts: this run's checkpoint, another run's encoder, or fresh."""
    if saved.latest is not None:
        logging.info("going on from step %d of this work directory", saved.latest)
        return saved.restore(state, spread.replicated)
    if init:
        theirs = frontend.FrontEnd(**checkpoints.read_meta(init)["front_end"])
        if theirs != settings:
            raise UserError(
                f"config.init={init} was trained with another front end ({theirs}); "
                "take the config.front_end that it was trained with"
            )
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
    config = config_lib.checked(_CONFIG.value, simclr.RULES)
    workdir_path = program.required(_WORKDIR)
    parallel.join_processes()
    datasets = open_datasets(config, frontend.resolve(config.front_end).sample_rate)
    synthetic = any(prepared.synthetic for prepared, _ in datasets)
    note = "synthetic data" if synthetic else ""
    sources = [(p.source(config.split), weight) for p, weight in datasets]
    examples = sum(len(source) for source, _ in sources)
    spread = parallel.Parallel(config.parallel)
    simclr.check_batch(config, examples, spread.devices)
    parts = simclr.build(config, examples)

    workdir = Workdir(workdir_path, config_lib.to_dict(config), writes=jax.process_index() == 0)
    dataset = loader.examples(
        [(source, weight * len(source)) for source, weight in sources],
        samples=parts.clip_samples,
        seed=config.seed,
    )
    # Drawn anew while nothing was trained: the config may have been another.
    if workdir.writes and (_VIEWS.value or not workdir.metrics_file.exists()):
        one = next(loader.batches(dataset, batch_size=max(config.batch_size, augment.MIX_GROUP)))
        draw_views(workdir, one, config, note)
    if _VIEWS.value:
        return

    base = jax.random.key(config.seed)
    saved = checkpoints.Checkpoints(workdir.path)
    state = start_state(jax.jit(parts.init)(base), config.init, parts.settings, spread, saved)
    workdir.rewind(int(state.step))
    size = sum(x.size for x in jax.tree.leaves(state.params["encoder"]))
    logging.info(
        "%s width %g, %.2f M parameters; %d examples%s, %d steps of %d; %s",
        config.encoder.name, config.encoder.width, size / 1e6, examples,
        " (synthetic)" if synthetic else "", parts.total, config.batch_size, spread,
    )  # fmt: skip
    embedder = Embedder(
        parts.encoder, parts.settings, round(config.crop.seconds * parts.settings.sample_rate)
    )

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

    def in_steps(length: str) -> int:
        return config_lib.steps(length, batch_size=config.batch_size, examples=examples)

    state = loop.train(
        spread.wrap(parts.step),
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
            total=parts.total,
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
            "front_end": dataclasses.asdict(parts.settings),
            "labels": [],
            "synthetic": synthetic,
        },
        learning_rate=parts.learning_rate,
        batch_size=config.batch_size,
        evaluate=neighbours,
    )
    saved.close()
    if workdir.writes:
        history = workdir.metrics()
        last = [line for line in history if "loss" in line][-1:]
        figures.training_figure(workdir.figure("training"), history, note=note)
        counts = {"steps": parts.total, "examples": examples, "synthetic": synthetic}
        workdir.result(counts | (last[0] if last else {}))
    workdir.close()
    logging.info("done: %s", workdir.path)


if __name__ == "__main__":
    program.run(main)
