"""SimCLR pre-training; domain adaptation when it starts from a checkpoint.

    python -m cryjax.pretrain --config=configs/pretrain_small.py --workdir=RUN --config.data=DATA

Training starts from a checkpoint in the work directory (it goes on), else from the encoder of
`config.init`, else fresh; the log says which. SIGTERM or Ctrl-C saves and exits with status 75: the
same command goes on. `--views` draws pairs of views to figures/views.png and does not train.
"""

import dataclasses
import functools
import io
import json
import pathlib
from typing import Any

import jax
import numpy as np
from absl import flags, logging

from cryjax import __version__
from cryjax.audio import augment, frontend
from cryjax.command import config as config_lib
from cryjax.command import program
from cryjax.command.errors import UserError
from cryjax.data import loader
from cryjax.data.records import Prepared, open_prepared
from cryjax.data.subjects import check_one_key
from cryjax.evaluation import pictures
from cryjax.evaluation.embeddings import Embedder
from cryjax.evaluation.figures.spectrograms import views_figure
from cryjax.evaluation.figures.style import Place
from cryjax.evaluation.figures.training import training_figure
from cryjax.evaluation.folds import renamed_entries, subjects_of
from cryjax.evaluation.probes import nearest_neighbour_accuracy
from cryjax.training import checkpoints, loop, parallel, simclr, start, steps, summary
from cryjax.training import recipe as recipe_lib
from cryjax.training.workdir import Workdir, code

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


class Viewed:
    """The run's first clips, of which views are drawn: what the encoder sees."""

    def __init__(self, dataset: Any, config: Any, key: jax.Array):
        self._dataset, self._key = dataset, key
        recipe = recipe_lib.view_recipe(config)
        self._hop_seconds = recipe["settings"].hop_seconds
        self._views = jax.jit(functools.partial(augment.two_views, **recipe))

    @functools.cached_property
    def _clips(self) -> dict[str, np.ndarray]:
        return next(
            loader.batches(self._dataset, batch_size=augment.MIX_GROUP, threads=1, buffer=1)
        )

    def draw(self, place: Place, step: int, note: str) -> Place:
        """Draws the pairs that a step would make of them."""
        key = jax.random.fold_in(self._key, step)
        pair = self._views(key, self._clips["audio"], self._clips["length"])
        views = np.stack(pair, axis=1)
        return views_figure(place, views, hop_seconds=self._hop_seconds, note=note)


def without(prepared: Prepared, split: str, excluded: set[str]) -> tuple[Any, int]:
    """A split without some subjects, and how many examples that leaves out."""
    source = prepared.source(split)
    if not excluded:
        return source, 0
    index = prepared.index(split)
    kept = ~np.isin(index.subjects, sorted(excluded))
    return prepared.at(index[kept]), int(np.sum(~kept))


def sources_of(
    config: Any, datasets: list[tuple[Prepared, float]]
) -> list[tuple[Prepared, Any, float]]:
    """The datasets to train on, their examples without excluded subjects, and their weights."""
    named = {
        entry: subjects_of(entry) for entry in filter(None, config.exclude_subjects.split(","))
    }
    excluded = set().union(*named.values())
    held: set[str] = set()
    if excluded:
        folders = [entry.rpartition(":")[0] or entry for entry in named]
        others = [open_prepared(folder) for folder in folders if pathlib.Path(folder).is_dir()]
        check_one_key(
            {str(p.directory): p.subject_key for p in [*others, *(p for p, _ in datasets)]}
        )
        held = set().union(*(set(p.index(config.split).subjects) for p, _ in datasets))
    for entry, subjects in named.items():
        if not subjects & held:
            raise UserError(
                f"config.exclude_subjects: no subject of {entry!r} is in config.data; leave it "
                "out, or give both the same subjects"
            )
    found, gone = [], 0
    for prepared, weight in datasets:
        source, left_out = without(prepared, config.split, excluded)
        gone += left_out
        if len(source):
            found.append((prepared, source, weight))
    if excluded:
        logging.info("%d examples of %d excluded subjects are left out", gone, len(excluded & held))
    if not found:
        raise UserError("config.exclude_subjects leaves no example to train on")
    return found


def described(split: str, prepared: Prepared, source: Any, weight: float) -> str:
    """What a dataset brings to the run, in a line."""
    every = prepared.splits[split]
    of = f"of {prepared.counts[split]['subjects']:,} subjects"
    if len(source) < every:
        of = f"of {every:,}, excluded subjects left out"
    often = "" if weight == 1 else f", drawn {weight:g} times as often"
    made = " (synthetic)" if prepared.synthetic else ""
    return f"{len(source):,} examples {of}{often}; {prepared.directory}, {split!r}{made}"


def run(
    config: Any,
    workdir_path: str,
    *,
    views: bool = False,
    devices: list[jax.Device] | None = None,
) -> None:
    """Trains, or goes on training, in a work directory.

    Args:
      config: validated.
      workdir_path: of the run.
      views: only draw pairs of views.
      devices: to train on; all of all processes if None.
    """
    datasets = open_datasets(config, frontend.resolve(config.front_end).sample_rate)
    synthetic = any(prepared.synthetic for prepared, _ in datasets)
    note = "synthetic data" if synthetic else ""
    sources = sources_of(config, datasets)
    # What is kept from here on names nobody.
    config = config.copy_and_resolve_references()
    config.exclude_subjects = renamed_entries(config.exclude_subjects)
    examples = sum(len(source) for _, source, _ in sources)
    spread = parallel.Parallel(config.parallel, devices)
    simclr.check_batch(config, examples, spread.devices)
    parts = simclr.build(config, examples)
    plan = parts.plan

    parallel.agree(
        config=json.dumps(config_lib.to_dict(config)),
        data="".join(prepared.fingerprint for prepared, _ in datasets),
        code=code(),
    )
    workdir = Workdir(workdir_path, config_lib.to_dict(config), writes=jax.process_index() == 0)
    weighted = [(source, weight * len(source)) for _, source, weight in sources]
    names = [str(prepared.directory) for prepared, _, _ in sources]
    dataset = loader.examples(weighted, samples=plan.clip_samples, seed=config.seed)
    base = jax.random.key(config.seed)
    pictures_every = plan.in_steps(config.pictures_every)
    viewed = Viewed(dataset, config, base)
    # Drawn anew while nothing was trained: the config may have been another.
    fresh = workdir.writes and not workdir.metrics_file.exists()
    if workdir.writes and (views or (fresh and pictures_every)):
        path = viewed.draw(workdir.figure("views"), 0, note)
        logging.info("views: %s", path)
    if views:
        return

    saved = checkpoints.Checkpoints(workdir.path)
    state, started = start.start_state(
        jax.jit(parts.init)(base), config.init, plan.settings, spread, saved
    )
    workdir.rewind(int(state.step))
    summary.show(
        started,
        [described(config.split, *source) for source in sources],
        config,
        examples=examples,
        plan=plan,
        encoder=parts.encoder,
        head=parts.head,
        state=state,
        spread=spread,
    )
    embedder = Embedder(
        functools.partial(steps.embed, encoder=parts.encoder, settings=plan.settings),
        round(config.crop.seconds * plan.settings.sample_rate),
        devices=devices,
    )

    def neighbours(current: steps.TrainState, _: int) -> dict[str, float]:
        checked = datasets[0][0].source(config.neighbours.split)
        found = embedder(current.encoder, checked, most=config.neighbours.most)
        accuracy = nearest_neighbour_accuracy(found.features, found.labels, found.subjects)
        return {} if accuracy is None else {"neighbour_accuracy": accuracy}

    labelled = [source for prepared, source, _ in sources if prepared.label_names]

    def picture(current: steps.TrainState, step: int) -> None:
        if step:
            drawn = io.BytesIO()
            viewed.draw(drawn, step, note)
            workdir.image(step, "views", drawn.getvalue())
        else:  # those are drawn
            workdir.image(step, "views", workdir.figure("views").read_bytes())
        if labelled:
            found = embedder(current.encoder, labelled[0], most=pictures.MOST)
            pictures.embeddings(workdir, step, found, note=note)

    if fresh and pictures_every:
        picture(state, 0)
    step = spread.wrap(parts.step)
    loop.train(
        lambda _: step,
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
            total=plan.total,
            log_every=max(plan.in_steps(config.log_every), 1),
            checkpoint_every=plan.in_steps(config.checkpoint_every),
            evaluate_every=plan.in_steps(config.neighbours.every),
            pictures_every=pictures_every,
        ),
        parallel=spread,
        checkpoints=saved,
        workdir=workdir,
        meta={
            "program": "pretrain",
            "version": __version__,
            "config": config_lib.to_dict(config),
            "front_end": dataclasses.asdict(plan.settings),
            "labels": [],
            "segment_seconds": max(prepared.segment_seconds for prepared, _ in datasets),
            "synthetic": synthetic,
        },
        learning_rate=plan.learning_rate,
        batch_size=config.batch_size,
        evaluate=neighbours,
        pictures=picture,
        skip=config.nonfinite == "skip",
        recordings=lambda step: loader.recordings(
            weighted, names, seed=config.seed, batch_size=config.batch_size, step=step
        ),
    )
    saved.close()
    if workdir.writes:
        history = workdir.metrics()
        last = [line for line in history if "loss" in line][-1:]
        training_figure(workdir.figure("training"), history, note=note)
        counts = {"steps": plan.total, "examples": examples, "synthetic": synthetic}
        workdir.result(counts | (last[0] if last else {}))
    workdir.close()
    logging.info("done: %s", workdir.path)


def main(config: Any, workdir: str) -> None:
    parallel.join_processes()
    run(config, workdir, views=_VIEWS.value)


if __name__ == "__main__":
    program.run_recipe(
        main,
        simclr.RULES,
        recipe="Recipe, as configs/pretrain_small.py.",
        workdir="Folder of the run; an existing run goes on.",
    )
