"""Supervised training of encoder and classifier: from scratch, or fine-tuning a checkpoint.

    python -m cryjax.finetune --config=configs/finetune.py --workdir=TUNED \\
        --config.init=RUN --config.data=DATA

With `config.init`, the encoder, its front end and its window are those of that run, whose head is
not used; without, those of the config, and that is training from scratch, or supervised
pre-training where DATA is a large labelled set. The recordings of the test subjects are scored by
what did best on validation, or else by what there is at the end. SIGTERM or Ctrl-C saves and exits
with status 75: the same command goes on.
"""

import csv
import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
import numpy as np
from absl import logging

from cryjax import __version__
from cryjax.audio import frontend
from cryjax.command import config as config_lib
from cryjax.command import program
from cryjax.command.errors import UserError
from cryjax.command.files import whole
from cryjax.data import loader
from cryjax.data.records import Index, Prepared, open_prepared
from cryjax.evaluation import bootstrap, metrics, pictures, tasks
from cryjax.evaluation.embeddings import Embedder, Embeddings
from cryjax.evaluation.figures.classifier import confusion_figure, roc_figure
from cryjax.evaluation.figures.training import SUPERVISED, training_figure
from cryjax.training import (
    checkpoints,
    loop,
    parallel,
    recipe,
    start,
    steps,
    summary,
    supervised,
)
from cryjax.training.best import Best
from cryjax.training.trained import load_trained
from cryjax.training.workdir import Workdir, code


def as_trained(config: Any) -> Any:
    """The config with the encoder, front end and window of the run that `config.init` names.

    Without one, with the encoder's rates those of the head: nothing was learnt that a low rate
    would keep.
    """
    if not config.init and config.freeze.blocks:
        raise UserError(
            f"config.freeze.blocks={config.freeze.blocks} without config.init would freeze "
            "random weights; give --config.init=RUN, or take 0"
        )
    config = config.copy_and_resolve_references()
    if not config.init:
        config.encoder_rate = config.layer_decay = 1.0
        return config
    meta = checkpoints.read_meta(config.init)
    config.encoder.update(meta["config"]["encoder"])
    config.front_end = meta["config"]["front_end"]
    config.crop.seconds = meta["config"]["crop"]["seconds"]
    config.clip_seconds = max(config.clip_seconds, config.crop.seconds)
    return config


def training_sources(prepared: Prepared, train: Index, classes: Any, balance: str) -> list[Any]:
    """What to draw training examples from, and how often: all alike, or each class as often."""
    if balance != "sampling":
        return [(loader.Labelled(prepared.at(train), classes), 1.0)]
    has = tasks.targets_of(train.labels, classes)
    parts = [train[has[:, place]] for place in range(len(classes))]
    return [(loader.Labelled(prepared.at(part), classes), 1.0) for part in parts if len(part)]


class Judge:
    """Scores recordings with a state."""

    def __init__(self, task: tasks.Task, parts: supervised.Supervised, config: Any, devices: Any):
        self._task = task
        self._embedder = Embedder(
            functools.partial(
                steps.classify,
                encoder=parts.encoder,
                head=parts.head,
                settings=parts.plan.settings,
                multi_label=task.multi_label,
            ),
            round(config.crop.seconds * parts.plan.settings.sample_rate),
            devices=devices,
        )

    def probabilities(self, variables: Any, index: Index, *, shown: bool = False) -> Embeddings:
        """Of whole recordings, [recordings, classes] in `features`."""
        return self._embedder(variables, self._task.prepared.at(index), shown=shown)

    def metrics(self, state: steps.TrainState, index: Index) -> dict[str, float]:
        """Of a state that is being trained, as lines of metrics.jsonl have them."""
        live = state.live if state.average is None else state.average
        variables = {
            "encoder": {kind: live[kind]["encoder"] for kind in ("params", "batch_stats")},
            "head": {"params": live["params"]["head"]},
        }
        found = self.probabilities(variables, index)
        true = self._task.true(found.labels)
        once = np.ones((1, len(found.labels)))
        named = metrics.headlines(true, len(self._task.classes), probabilities=True)
        return {
            f"validation_{name}": float(metric(true, found.features, once)[0])
            for name, metric in named.items()
        }


def write_predictions(path: pathlib.Path, found: Embeddings, classes: tuple[str, ...]) -> None:
    """A row for each scored recording: its number, subject, label and probabilities."""
    with whole(path, newline="") as file:
        table = csv.writer(file)
        table.writerow(["recording", "subject", "label", *(f"p({name})" for name in classes)])
        rows = zip(found.recordings, found.subjects, found.labels, found.features, strict=True)
        for recording, subject, label, probabilities in rows:
            table.writerow([recording, subject, label, *(f"{p:.9g}" for p in probabilities)])


def described(
    config: Any, division: tasks.Division, task: tasks.Task, *, synthetic: bool
) -> list[str]:
    """What there is to train on, to choose by and to score, in lines."""
    parts = {
        "to train on": division.train,
        "to choose by": division.validation,
        "to score": division.test,
    }
    counts = [
        f"{len(set(part.recordings)):,} recordings of {len(set(part.subjects)):,} subjects {why}"
        for why, part in parts.items()
    ]
    several = ", several a recording" if task.multi_label else ""
    named = ", ".join(task.classes[:8]) + (", ..." if len(task.classes) > 8 else "")
    return [
        f"{config.data}{' (synthetic)' if synthetic else ''}",
        *counts,
        f"{len(task.classes)} classes{several}: {named}",
    ]


def summarise(found: Embeddings, task: tasks.Task, config: Any) -> dict[str, Any]:
    """The metrics of recordings and, where a subject has one label, of subjects."""
    how = {"resamples": config.resamples, "seed": config.seed, "probabilities": True}
    true = task.true(found.labels)
    result = bootstrap.summarise(true, found.features, task.classes, found.subjects, **how)
    grouped = metrics.by_subject(true, found.features, found.subjects)
    if grouped is not None:
        result["by_subject"] = bootstrap.summarise(*grouped[:2], task.classes, grouped[2], **how)
    return result


def open_data(config: Any) -> tuple[tasks.Task, tasks.Division]:
    """The task of `config.data`, and who is trained on, chosen by and scored.

    Raises:
      UserError: where the dataset does not suit the config.
    """
    prepared = open_prepared(config.data)
    settings = frontend.resolve(config.front_end)
    if prepared.sample_rate != settings.sample_rate:
        whose = f"that of {config.init}" if config.init else f"config.front_end={config.front_end}"
        raise UserError(
            f"{config.data} is at {prepared.sample_rate} Hz and the front end, {whose}, at "
            f"{settings.sample_rate} Hz; prepare it again with --sample_rate={settings.sample_rate}"
        )
    index = prepared.index()
    index = index[index.labels != ""]
    task = tasks.open_task(config, index, prepared)
    division = tasks.divide(index, config)
    if config.patience and not (len(division.validation) and config.evaluate_every != "0"):
        raise UserError(
            f"config.patience={config.patience} waits for a better score, and there is none: set "
            "config.validation and config.evaluate_every, or patience=0"
        )
    return task, division


def run(
    config: Any, workdir_path: str, *, devices: list[jax.Device] | None = None
) -> dict[str, Any]:
    """Trains, or goes on training, in a work directory, and scores the test recordings.

    Args:
      config: validated.
      workdir_path: of the run.
      devices: to train on; all of all processes if None.

    Returns:
      The content of result.json.
    """
    config = as_trained(config)
    task, division = open_data(config)
    prepared = task.prepared
    settings = frontend.resolve(config.front_end)
    targets = tasks.targets_of(division.train.labels, task.classes)
    warnings = tasks.missing(task, division)
    spread = parallel.Parallel(config.parallel, devices)
    mixing = "'mix'" if "mix" in config.transforms else "mixup" if config.mixup else ""
    recipe.check_devices(config, spread.devices, grouped=mixing)
    parts = supervised.build(config, targets, multi_label=task.multi_label)
    plan = parts.plan
    parallel.agree(
        config=json.dumps(config_lib.to_dict(config)), data=prepared.fingerprint, code=code()
    )
    workdir = Workdir(workdir_path, config_lib.to_dict(config), writes=jax.process_index() == 0)
    synthetic = prepared.synthetic or (
        bool(config.init) and bool(checkpoints.read_meta(config.init)["synthetic"])
    )

    base = jax.random.key(config.seed)
    saved = checkpoints.Checkpoints(workdir.path)
    state, started = start.start_state(
        jax.jit(parts.init)(base),
        config.init,
        settings,
        spread,
        saved,
        averaged=config.average_decay > 0,
    )
    workdir.rewind(int(state.step))
    summary.show(
        started,
        described(config, division, task, synthetic=synthetic),
        config,
        examples=len(targets),
        plan=plan,
        encoder=parts.encoder,
        head=parts.head,
        state=state,
        spread=spread,
    )
    meta = {
        "program": "finetune",
        "version": __version__,
        "config": config_lib.to_dict(config),
        "front_end": dataclasses.asdict(settings),
        "labels": list(task.classes),
        "multi_label": task.multi_label,
        "segment_seconds": prepared.segment_seconds,
        "synthetic": synthetic,
    }
    judge = Judge(task, parts, config, devices)
    best = Best(workdir, config, int(state.step), meta)

    pictured = division.validation if len(division.validation) else division.train
    embedder = Embedder(
        functools.partial(steps.embed, encoder=parts.encoder, settings=settings),
        round(config.crop.seconds * settings.sample_rate),
        devices=devices,
    )

    def picture(current: steps.TrainState, step: int) -> None:
        found = embedder(current.encoder, prepared.at(pictured), most=pictures.MOST)
        pictures.embeddings(workdir, step, found, note="synthetic data" if synthetic else "")

    pictures_every = plan.in_steps(config.pictures_every)
    if pictures_every and workdir.writes and not workdir.metrics_file.exists():
        picture(state, 0)

    @functools.cache
    def step_of(frozen: int) -> steps.StepFunction:
        return spread.wrap(parts.step_of(frozen))

    sources = training_sources(prepared, division.train, task.classes, config.balance)
    state = loop.train(
        lambda step: step_of(parts.frozen(step)),
        state,
        loader.batches(
            loader.examples(sources, samples=plan.clip_samples, seed=config.seed),
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
            evaluate_every=plan.in_steps(config.evaluate_every) if len(division.validation) else 0,
            pictures_every=pictures_every,
        ),
        parallel=spread,
        checkpoints=saved,
        workdir=workdir,
        meta=meta,
        learning_rate=plan.learning_rate,
        batch_size=config.batch_size,
        evaluate=lambda current, step: best.take(
            current, step, judge.metrics(current, division.validation)
        ),
        pictures=picture,
        enough=best.enough,
        skip=config.nonfinite == "skip",
        recordings=lambda step: loader.recordings(
            sources,
            [config.data] * len(sources),
            seed=config.seed,
            batch_size=config.batch_size,
            step=step,
        ),
    )
    step = best.close(state)
    saved.close()
    del state

    scored = division.test if len(division.test) else division.validation
    if not len(division.test):
        warnings.append("scored on the recordings that chose the step: the numbers flatter")
    trained = load_trained(workdir_path)
    found = judge.probabilities(
        {"encoder": trained.pretrained.variables, "head": trained.variables}, scored, shown=True
    )
    result = summarise(found, task, config) | {
        "init": config.init,
        "multi_label": task.multi_label,
        "scored": "test" if len(division.test) else "validation",
        "best_step": step,
        "n_train": len(set(division.train.recordings)),
        "n_train_subjects": len(set(division.train.subjects)),
        "n_validation": len(set(division.validation.recordings)),
        "synthetic": synthetic,
        "warnings": warnings,
    }
    if workdir.writes:
        report(workdir, result, found, task)
    workdir.close()
    return result


def report(workdir: Workdir, result: dict[str, Any], found: Embeddings, task: tasks.Task) -> None:
    """result.json, predictions.csv and figures."""
    note = "synthetic data" if result["synthetic"] else ""
    write_predictions(workdir.path / "predictions.csv", found, task.classes)
    training_figure(workdir.figure("training"), workdir.metrics(), names=SUPERVISED, note=note)
    title = f"{result['n_recordings']} recordings of {result['n_subjects']} subjects"
    if not task.multi_label:
        confusion_figure(
            workdir.figure("confusion"), result["confusion"], task.classes, title, note=note
        )
    if len(task.classes) == 2 and not task.multi_label:
        roc_figure(
            workdir.figure("roc"),
            task.true(found.labels),
            found.features[:, 1],
            found.subjects,
            f"'{task.classes[1]}', {title}",
            note=note,
        )
    workdir.result(result)


def main(config: Any, workdir: str) -> None:
    parallel.join_processes()
    result = run(config, workdir)
    for warning in result["warnings"]:
        logging.warning("%s", warning)
    if jax.process_index() == 0:
        start_from = config.init or "scratch"
        synthetic = " (synthetic data)" if result["synthetic"] else ""
        print(
            f"fine-tuned from {start_from}{synthetic}: {result['n_recordings']} recordings of "
            f"{result['n_subjects']} subjects scored ({result['scored']}); 95 % intervals over "
            f"subjects\n{bootstrap.table(result)}"
        )


if __name__ == "__main__":
    program.run_recipe(
        main,
        supervised.RULES,
        recipe="Recipe, as configs/finetune.py.",
        workdir="Folder of the run; an existing run goes on.",
    )
