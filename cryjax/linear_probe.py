"""Linear probe of a frozen encoder: metrics on held-out subjects, with intervals.

    python -m cryjax.linear_probe --config=configs/linear_probe.py --workdir=PROBE \\
        --config.init=RUN --config.data=DATA

Reads only `encoder` and `meta` of the run's newest checkpoint. Embeds whole recordings, fits the
probe on some subjects, scores others, and writes result.json, predictions.csv and figures.
"""

import dataclasses
import hashlib
import pathlib
from typing import Any

import jax
import numpy as np
from absl import logging

from cryjax.audio import frontend
from cryjax.command import config as config_lib
from cryjax.command import program
from cryjax.command.config import integer, number, one_of, text
from cryjax.command.errors import UserError
from cryjax.data.records import Index, Prepared, open_prepared
from cryjax.evaluation import bootstrap, experiment, folds, leakage, probes, tasks
from cryjax.evaluation.embeddings import Embedder, Embeddings
from cryjax.evaluation.figures import classifier
from cryjax.evaluation.judge import unvarying, write_predictions
from cryjax.models import ENCODERS
from cryjax.training.trained import Pretrained, load_pretrained, untrained, untrained_like
from cryjax.training.workdir import Workdir

RULES = {
    "data": text(required="a prepared dataset: --config.data=FOLDER (python -m cryjax.prepare)"),
    "init": text(required="the --workdir of a training run, or 'random'"),
    "like": text(),
    "positive": text(),
    "floor": integer(0),
    "classifier": one_of("ridge", "logistic"),
    "folds": config_lib.FOLDS,
    "label_fraction": number(above=0, high=1),
    "seed": integer(),
    "label_seed": integer(),
    "resamples": integer(20),  # with fewer, an interval says nothing
    "batch_size": integer(1),
    "encoder.name": one_of(*ENCODERS),
    "encoder.width": number(above=0),
    "encoder.dtype": one_of("float32", "bfloat16"),
    "front_end": one_of(*frontend.PRESETS),
    "window_seconds": number(above=0),
}


def load_encoder(config: Any) -> Pretrained:
    """The encoder named by `config.init`, with its own front end and window."""
    if config.init != "random":
        return load_pretrained(config.init)
    if config.like:
        return untrained_like(config.like, config.seed)
    return untrained(
        config.encoder.to_dict(),
        frontend.resolve(config.front_end),
        config.window_seconds,
        config.seed,
    )


def labelled(prepared: Prepared) -> Index:
    """The labelled examples of all splits. Raises UserError if a probe cannot use the labels."""
    if len(prepared.label_names) < 2:
        has = "labels of only 1 class" if prepared.label_names else "no labels"
        raise UserError(
            f"{prepared.directory} has {has}, but a probe needs at least two classes; prepare it "
            "from a manifest that has them, or with --label_column"
        )
    index = prepared.index()
    if any(";" in label for label in index.labels):
        raise UserError(
            f"{prepared.directory} has several labels per recording; a probe takes one: name "
            "another --label_column in prepare, or use cryjax.finetune"
        )
    return index[index.labels != ""]


def embed(
    pretrained: Pretrained,
    prepared: Prepared,
    batch_size: int,
    devices: list[jax.Device] | None = None,
) -> tuple[Embeddings, np.ndarray]:
    """Embeds the labelled recordings of all splits, in order of number; also gives their splits."""
    kept = labelled(prepared)
    embedder = Embedder.of(
        pretrained.encoder,
        pretrained.settings,
        pretrained.window_samples,
        batch_size=batch_size,
        devices=devices,
    )
    found = embedder(pretrained.variables, prepared.at(kept), shown=True)
    return found, kept.by_recording.splits


def digest(variables: Any) -> str:
    """sha256 over the bytes of all leaves, in order."""
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(variables):
        total.update(np.asarray(leaf).tobytes())
    return total.hexdigest()


def scored_subjects(prepared: Prepared, config: Any) -> np.ndarray:
    """Subjects of the recordings that the config scores."""
    index = prepared.index()
    index = index[index.labels != ""]
    every = config.folds or folds.has_own_folds(index.splits)
    return index.subjects if every else index.subjects[index.splits == "test"]


def main(config: Any, folder: str) -> None:
    prepared = open_prepared(pathlib.Path(config.data))
    warnings = [*prepared.cautions]
    if config.init != "random":
        warnings += leakage.check(config.init, prepared, scored_subjects(prepared, config))
    pretrained = load_encoder(config)
    prepared.require_rate(pretrained.settings.sample_rate, "the encoder")
    kept = labelled(prepared).by_recording
    gone = len(set(prepared.index().recordings)) - len(kept)
    if gone:
        logging.info("left out %d recordings without a label", gone)
    splits = None if config.folds else kept.splits
    probes.check(kept.labels, kept.subjects, config.folds, splits, config.seed)
    workdir = Workdir(folder, config_lib.to_dict(config))
    classes = tasks.ordered(prepared, config.positive)
    resampling = {"resamples": config.resamples, "seed": config.seed}

    def run(encoder: Pretrained) -> tuple[probes.ProbeResult, Embeddings]:
        embeddings, _ = embed(encoder, prepared, config.batch_size)
        found = probes.probe(
            embeddings.features,
            tasks.targets_of(embeddings.labels, classes).argmax(axis=1),
            embeddings.subjects,
            classifier=config.classifier,
            folds=config.folds,
            splits=splits,
            seed=config.seed,
            fraction=config.label_fraction,
            label_seed=config.label_seed,
            classes=classes,
            recordings=embeddings.recordings,
        )
        scored = dataclasses.replace(embeddings[found.rows], features=found.scores)
        return found, scored

    before = digest(pretrained.variables)
    found, scored = run(pretrained)
    warnings += found.warnings
    summary = bootstrap.summarise_both(
        found.true, found.scores, classes, found.subjects, **resampling
    )
    warnings += unvarying(summary)
    synthetic = prepared.synthetic or pretrained.synthetic
    result = {
        **summary,
        "init": config.init,
        "classifier": config.classifier,
        "folds": config.folds,
        "label_fraction": config.label_fraction,
        "seed": config.seed,
        "label_seed": config.label_seed,
        "n_train": found.trained,
        "n_train_subjects": found.trained_subjects,
        "penalties": found.penalties,
        "synthetic": synthetic,
        "warnings": warnings,
        "encoder_sha256": {"before": before, "after": digest(pretrained.variables)},
        "versions": experiment.versions(),
    }
    if config.floor and config.init != "random":
        seeds = range(config.seed, config.seed + config.floor)
        floors = [run(untrained_like(config.init, seed))[0].scores for seed in seeds]
        result["floor"] = bootstrap.floor(
            found.true, found.scores, np.stack(floors), found.subjects, **resampling
        )
    write_predictions(workdir.path / "predictions.csv", scored, classes, "score")
    workdir.result(result)
    classifier.draw(workdir.figure, result, found.true, found.scores, found.subjects)
    for warning in warnings:
        logging.warning("%s", warning)
    head = "untrained" if config.init == "random" else "pre-trained"
    how = f"{len(found.penalties)} folds by subject" if config.folds else "the dataset's own splits"
    print(
        f"linear probe of {config.init}{' (synthetic data)' if synthetic else ''}: "
        f"{summary['n_recordings']} recordings of {summary['n_subjects']} subjects scored, {how}; "
        f"95 % intervals over subjects\n{bootstrap.table(result, head)}"
    )


if __name__ == "__main__":
    program.run_recipe(
        main,
        RULES,
        recipe="Recipe, such as configs/linear_probe.py.",
        workdir="Folder for result.json, predictions.csv and figures.",
    )
