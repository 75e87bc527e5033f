"""Supervised training of encoder and classifier: from scratch, or fine-tuning a checkpoint.

    python -m cryjax.finetune --config=configs/finetune.py --workdir=TUNED \\
        --config.init=RUN --config.data=DATA

With `config.init`, the encoder, its front end and its window are those of that run, whose head is
not used; without it, those of the config: training from scratch, or supervised pre-training if
DATA is a large labelled set. The test subjects' recordings are scored by the best step on
validation, or else by the last. SIGTERM or Ctrl-C saves and exits with status 75; the same command
resumes.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging

from cryjax.audio import frontend
from cryjax.command import config as config_lib
from cryjax.command import program
from cryjax.command.errors import UserError
from cryjax.data import loader
from cryjax.data.records import Index, Prepared, open_prepared
from cryjax.evaluation import bootstrap, leakage, metrics, pictures, tasks
from cryjax.evaluation.embeddings import Embedder, Embeddings
from cryjax.evaluation.figures import classifier
from cryjax.evaluation.figures.training import SUPERVISED, training_figure
from cryjax.evaluation.judge import Judge, summarise, write_predictions
from cryjax.training import (
    checkpoints,
    loop,
    parallel,
    recipe,
    start,
    steps,
    supervised,
)
from cryjax.training.best import Best
from cryjax.training.stopping import Stop
from cryjax.training.workdir import Workdir


def origin(config: Any, workdir: str) -> dict[str, Any] | None:
    """The meta of the encoder that a run starts from; None from scratch.

    Taken from its own checkpoint, if any: `config.init` may be gone when it resumes.
    """
    if not config.init:
        return None

    def found() -> dict[str, Any]:
        try:
            return checkpoints.read_meta(workdir)
        except UserError:
            return checkpoints.read_meta(config.init)

    return parallel.together(found)


def as_trained(config: Any, meta: dict[str, Any] | None) -> Any:
    """The config with the encoder, front end and window of `origin`.

    Without one, the encoder's learning rates become the head's: nothing was learnt that a low
    rate would keep.
    """
    if not config.init and config.freeze.blocks:
        raise UserError(
            f"config.freeze.blocks={config.freeze.blocks} without config.init would freeze "
            "random weights; give --config.init=RUN, or use 0"
        )
    config = config.copy_and_resolve_references()
    with config.ignore_type():  # a recipe may say 1 where this has 1.0
        if meta is None:
            config.encoder_rate = config.layer_decay = 1.0
            return config
        for field in ("name", "width"):
            config.encoder[field] = meta["config"]["encoder"][field]
        config.front_end = meta["config"]["front_end"]
        config.crop.seconds = meta["config"]["crop"]["seconds"]
        # Longer than a view at the highest speed, or it would be repeated to fill it.
        longest = config.crop.seconds * max(config.crop.speed[1], 1.0)
        config.clip_seconds = max(config.clip_seconds, longest)
    return config


def training_sources(prepared: Prepared, train: Index, classes: Any, balance: str) -> list[Any]:
    """Sources of training examples, with weights: all alike, or each class equally often."""
    if balance != "sampling":
        return [(loader.Labelled(prepared.at(train), classes), 1.0)]
    has = tasks.targets_of(train.labels, classes)
    parts = [train[has[:, place]] for place in range(len(classes))]
    return [(loader.Labelled(prepared.at(part), classes), 1.0) for part in parts if len(part)]


@dataclasses.dataclass(frozen=True)
class Data:
    """What a run is trained, selected and scored on.

    Attributes:
      task: the classes to tell apart.
      division: the examples for training, validation and testing.
      synthetic: whether any audio, `config.init`'s included, was synthesised, not recorded.
      warnings: what a reader of the numbers should know.
    """

    task: tasks.Task
    division: tasks.Division
    synthetic: bool
    warnings: list[str]


def described(config: Any, data: Data) -> list[str]:
    """What there is for training, validation and testing, as lines."""
    task, division = data.task, data.division
    parts = {
        "for training": division.train,
        "for validation": division.validation,
        "for testing": division.test,
    }
    counts = [
        f"{len(set(part.recordings)):,} recordings of {len(set(part.subjects)):,} subjects {why}"
        for why, part in parts.items()
    ]
    several = ", several per recording" if task.multi_label else ""
    named = ", ".join(task.classes[:8]) + (", ..." if len(task.classes) > 8 else "")
    return [
        f"{config.data}{' (synthetic)' if data.synthetic else ''}",
        *counts,
        f"{len(task.classes)} classes{several}: {named}",
    ]


def result_of(config: Any, data: Data, found: Embeddings, best_step: int | None) -> dict[str, Any]:
    """The content of result.json: scores of the recordings, and what they come from."""
    division, warnings = data.division, [*data.warnings]
    if not len(division.test):
        warnings.append(
            "there is no test set: the scores are of the validation recordings, which also chose "
            "the step, so they are optimistic"
        )
    learnt = tasks.learnt(data.task, division)
    summary = summarise(found, data.task, config, learnt)
    return summary | {
        "learnt": [name for name, has in zip(data.task.classes, learnt, strict=True) if has],
        "init": config.init,
        "multi_label": data.task.multi_label,
        "scored": "test" if len(division.test) else "validation",
        "best_step": best_step,
        "n_train": len(set(division.train.recordings)),
        "n_train_subjects": len(set(division.train.subjects)),
        "n_validation": len(set(division.validation.recordings)),
        "synthetic": data.synthetic,
        "warnings": warnings + summary["warnings"],
    }


def open_data(config: Any, meta: dict[str, Any] | None) -> Data:
    """The task of `config.data`, and its training, validation and test examples.

    Args:
      config: from `as_trained`.
      meta: from `origin`.

    Raises:
      UserError: if the dataset does not suit the config.
    """
    prepared = open_prepared(config.data)
    settings = frontend.resolve(config.front_end)
    whose = config.init or f"config.front_end={config.front_end!r}"
    prepared.require_rate(settings.sample_rate, whose)
    index = prepared.index()
    index = index[index.labels != ""]
    task = tasks.open_task(config, index, prepared)
    division = tasks.divide(index, config)
    evaluated = len(division.validation) and not config_lib.never(config.evaluate_every)
    if config.patience and not evaluated:
        raise UserError(
            f"config.patience={config.patience} needs validation scores, and there are none: set "
            "config.validation and config.evaluate_every, or patience=0"
        )
    synthetic = prepared.synthetic or (meta is not None and bool(meta["synthetic"]))
    warnings = tasks.missing(task, division)
    if config.init:
        warnings += leakage.check(config.init, prepared, division.scored.subjects)
    return Data(task, division, synthetic, warnings)


def run(
    config: Any,
    workdir_path: str,
    *,
    devices: list[jax.Device] | None = None,
    stop: Stop | None = None,
) -> dict[str, Any]:
    """Trains, or resumes, in a work directory; scores the test (else validation) set.

    Args:
      config: validated.
      workdir_path: the run's.
      devices: to train on; None for all of all processes.
      stop: that of a program with several runs; None makes one.

    Returns:
      The content of result.json.
    """
    meta = origin(config, workdir_path)
    config = as_trained(config, meta)
    data = open_data(config, meta)
    task, division = data.task, data.division
    spread = parallel.Parallel(config.parallel, devices)
    mixing = "'mix'" if "mix" in config.transforms else "mixup" if config.mixup else ""
    recipe.check_devices(config, spread.devices, grouped=mixing)
    targets = tasks.targets_of(division.train.labels, task.classes)
    parts = supervised.build(config, targets, multi_label=task.multi_label)
    workdir = start.open_workdir(workdir_path, config, leakage.content([task.prepared]), spread)
    judge = Judge(task, parts, config, devices, tasks.learnt(task, division))
    best_step = train(config, data, parts, spread, workdir, judge, devices, stop)
    found = judge.of_run(workdir_path, division.scored)
    result = result_of(config, data, found, best_step)
    if workdir.writes:
        report(workdir, result, found, task)
    workdir.close()
    return result


def pictures_of(
    config: Any,
    data: Data,
    parts: supervised.Supervised,
    workdir: Workdir,
    devices: list[jax.Device] | None,
) -> Callable[[steps.TrainState, int], None]:
    """Returns what draws a state's embeddings of validation (if none, training) examples."""
    division, settings = data.division, parts.plan.settings
    return functools.partial(
        pictures.of_state,
        workdir=workdir,
        embedder=Embedder.of(
            parts.encoder,
            settings,
            round(config.crop.seconds * settings.sample_rate),
            devices=devices,
        ),
        source=data.task.prepared.at(
            division.validation if len(division.validation) else division.train
        ),
        note="synthetic data" if data.synthetic else "",
    )


def train(
    config: Any,
    data: Data,
    parts: supervised.Supervised,
    spread: parallel.Parallel,
    workdir: Workdir,
    judge: Judge,
    devices: list[jax.Device] | None,
    stop: Stop | None,
) -> int | None:
    """Trains from the work directory's state, as in `run`; returns the best step."""
    task, division, plan = data.task, data.division, parts.plan
    lines, averaged = described(config, data), config.average_decay > 0
    meta = start.describe(
        "finetune",
        workdir,
        plan.settings,
        segment_seconds=task.prepared.segment_seconds,
        synthetic=data.synthetic,
        labels=task.classes,
        multi_label=task.multi_label,
    )
    state, begun = start.begin(
        config,
        parts,
        spread,
        workdir,
        lines,
        meta=meta,
        examples=len(division.train),
        evaluate_every=config.evaluate_every if len(division.validation) else "0",
        averaged=averaged,
    )
    best = Best(begun, config, int(state.step))

    @functools.cache
    def step_of(frozen: int) -> steps.StepFunction:
        return spread.wrap(parts.step_of(frozen))

    sources = training_sources(task.prepared, division.train, task.classes, config.balance)
    clips = loader.Clips(sources, samples=plan.clip_samples, seed=config.seed)
    state = loop.train(
        begun,
        lambda step: step_of(parts.frozen(step)),
        state,
        loader.Batches(clips, config.batch_size, [config.data] * len(sources), **config.loader),
        evaluate=lambda current, step: best.take(
            current, step, judge.metrics(current, division.validation)
        ),
        pictures=pictures_of(config, data, parts, workdir, devices),
        enough=best.enough,
        stop=stop,
    )
    best_step = best.close(state)
    begun.checkpoints.close()
    return best_step


def report(workdir: Workdir, result: dict[str, Any], found: Embeddings, task: tasks.Task) -> None:
    """Writes result.json, predictions.csv and figures."""
    note = "synthetic data" if result["synthetic"] else ""
    # As the metrics have them: a class that was not learnt has no score.
    scores = metrics.scores_of(found.features, np.isin(task.classes, result["learnt"]))
    found = dataclasses.replace(found, features=scores)
    write_predictions(workdir.path / "predictions.csv", found, task.classes)
    workdir.result(result)  # before figures: a failing one must not lose the numbers
    training_figure(
        workdir.figure("training"),
        workdir.metrics(),
        names=SUPERVISED,
        kept=result["best_step"],
        note=note,
    )
    classifier.draw(workdir.figure, result, task.true(found.labels), found.features, found.subjects)


def main(config: Any, workdir: str) -> None:
    parallel.join_processes()
    result = run(config, workdir)
    for warning in result["warnings"]:
        logging.warning("%s", warning)
    if jax.process_index() == 0:
        how = f"fine-tuned from {config.init}" if config.init else "trained from scratch"
        synthetic = " (synthetic data)" if result["synthetic"] else ""
        head = "fine-tuned" if config.init else "from scratch"
        print(
            f"{how}{synthetic}: {result['n_recordings']} {result['scored']} recordings of "
            f"{result['n_subjects']} subjects scored; 95 % intervals over "
            f"subjects\n{bootstrap.table(result, head)}"
        )
    parallel.wait_for_all()


if __name__ == "__main__":
    program.run_recipe(
        main,
        supervised.RULES,
        recipe="Recipe, such as configs/finetune.py.",
        workdir="Folder of the run; an existing run is resumed.",
    )
