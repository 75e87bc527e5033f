"""A frozen encoder, its embeddings, a linear classifier, and an honest number with its interval.

    python -m cryjax.linear_probe --config=configs/linear_probe.py --workdir=PROBE \\
        --config.init=RUN --config.data=DATA

Reads only `encoder` and `meta` of the run's newest checkpoint. Embeds whole recordings, fits on
some subjects and scores others, and writes result.json and figures.
"""

import hashlib
import pathlib
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from ml_collections import config_flags

from cryjax.audio import frontend
from cryjax.command import config as config_lib
from cryjax.command import program
from cryjax.command.config import boolean, integer, number, one_of, text
from cryjax.command.program import UserError
from cryjax.data.records import Prepared, open_prepared
from cryjax.evaluation import figures, metrics, probes
from cryjax.evaluation.embeddings import Embedder, Embeddings
from cryjax.models import ENCODERS
from cryjax.training import checkpoints
from cryjax.training.workdir import Workdir

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe, as configs/linear_probe.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for result.json and figures.")

RULES = {
    "data": text(required="a prepared dataset: --config.data=FOLDER (python -m cryjax.prepare)"),
    "init": text(required="the --workdir of a training run, or 'random'"),
    "like": text(),
    "floor": boolean(),
    "classifier": one_of("ridge", "logistic"),
    "folds": config_lib.Rule(
        lambda x: isinstance(x, int) and not isinstance(x, bool) and (x == 0 or x >= 2),
        "a whole number from 2 up, or 0 for the dataset's own splits",
    ),
    "seed": integer(),
    "resamples": integer(1),
    "batch_size": integer(1),
    "encoder.name": one_of(*ENCODERS),
    "encoder.width": number(above=0),
    "encoder.dtype": one_of("float32", "bfloat16"),
    "front_end": one_of(*frontend.PRESETS),
    "window_seconds": number(above=0),
}


def load_encoder(config: Any) -> checkpoints.Pretrained:
    """The encoder that `config.init` names, with its own front end and window."""
    if config.init != "random":
        return checkpoints.load_pretrained(config.init)
    if config.like:
        return checkpoints.untrained_like(config.like, config.seed)
    return checkpoints.untrained(
        config.encoder.to_dict(),
        frontend.resolve(config.front_end),
        config.window_seconds,
        config.seed,
    )


def embed(
    pretrained: checkpoints.Pretrained, prepared: Prepared, batch_size: int
) -> tuple[Embeddings, np.ndarray]:
    """The labelled recordings of every split, and the split of each."""
    if prepared.sample_rate != pretrained.settings.sample_rate:
        raise UserError(
            f"{prepared.directory} is at {prepared.sample_rate} Hz and the encoder was trained at "
            f"{pretrained.settings.sample_rate} Hz; prepare it again with "
            f"--sample_rate={pretrained.settings.sample_rate}"
        )
    if len(prepared.label_names) < 2:
        found = "labels of 1 class(es)" if prepared.label_names else "no labels"
        raise UserError(
            f"{prepared.directory} has {found}, and a probe tells two classes apart at least; "
            "prepare it from a manifest that has them, or with --label_column"
        )
    embedder = Embedder(
        pretrained.encoder, pretrained.settings, pretrained.window_samples, batch_size
    )
    parts, splits = [], []
    for split in prepared.splits:
        found = embedder(pretrained.variables, prepared, split, shown=True)
        parts.append(found)
        splits += [split] * len(found.labels)
    whole = Embeddings(
        np.concatenate([part.features for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.subjects for part in parts]),
    )
    if any(";" in label for label in whole.labels):
        raise UserError(f"{prepared.directory} has several labels a recording; a probe takes one")
    kept = whole.labels != ""
    if not kept.all():
        logging.info("left out %d recordings without a label", np.sum(~kept))
    return (
        Embeddings(whole.features[kept], whole.labels[kept], whole.subjects[kept]),
        np.array(splits)[kept],
    )


def digest(variables: Any) -> str:
    """sha256 over the bytes of all leaves, in order."""
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(variables):
        total.update(np.asarray(leaf).tobytes())
    return total.hexdigest()


def draw(workdir: Workdir, summary: dict[str, Any], found: probes.ProbeResult, note: str) -> None:
    """The confusion matrix and, for two classes, the ROC curve."""
    labels = summary["labels"]
    title = f"{summary['n_recordings']} recordings of {summary['n_subjects']} subjects"
    figures.confusion_figure(
        workdir.figure("confusion"), summary["confusion"], labels, title, note=note
    )
    if len(labels) == 2:
        score = found.scores[:, 1] - found.scores[:, 0]
        figures.roc_figure(
            workdir.figure("roc"), found.true, score, f"'{labels[1]}', {title}", note=note
        )


def table(result: dict[str, Any]) -> str:
    """The headline numbers, with their intervals, for a person to read."""

    def cell(value: float, interval: list[float], sign: str = "") -> str:
        return f"{value:{sign}.3f} [{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}]"

    names = list(result["intervals"])
    width = max(map(len, names)) + 2
    floor = result.get("floor")
    heads = ["pre-trained", "untrained (floor)", "difference"] if floor else [result["init"]]
    lines = [" " * (width + 2) + "".join(f"{head:<26}" for head in heads).rstrip()]
    for name in names:
        cells = [cell(result[name], result["intervals"][name])]
        if floor:
            difference = floor["difference"][name]
            cells.append(cell(floor[name], floor["intervals"][name]))
            cells.append(cell(difference["value"], difference["interval"], "+"))
        lines.append(f"  {name:<{width}}" + "".join(f"{c:<26}" for c in cells).rstrip())
    lines.append(f"  {'majority_accuracy':<{width}}{result['majority_accuracy']:.3f}")
    return "\n".join(lines)


def main(_: list[str]) -> None:
    config = config_lib.checked(_CONFIG.value, RULES)
    workdir_path = program.required(_WORKDIR)
    prepared = open_prepared(pathlib.Path(config.data))
    pretrained = load_encoder(config)
    workdir = Workdir(workdir_path, config_lib.to_dict(config))
    bootstrap = {"resamples": config.resamples, "seed": config.seed}

    def run(encoder: checkpoints.Pretrained) -> tuple[probes.ProbeResult, list[str]]:
        embeddings, splits = embed(encoder, prepared, config.batch_size)
        classes = sorted(set(embeddings.labels))
        found = probes.probe(
            embeddings.features,
            np.searchsorted(classes, embeddings.labels),
            embeddings.subjects,
            classifier=config.classifier,
            folds=config.folds,
            splits=splits if config.folds == 0 else None,
            seed=config.seed,
        )
        return found, classes

    before = digest(pretrained.variables)
    found, classes = run(pretrained)
    summary = metrics.summarise(found.true, found.scores, classes, found.subjects, **bootstrap)
    synthetic = prepared.synthetic or pretrained.synthetic
    result = {
        **summary,
        "init": config.init,
        "classifier": config.classifier,
        "folds": config.folds,
        "penalties": found.penalties,
        "synthetic": synthetic,
        "warnings": found.warnings,
        "encoder_sha256": {"before": before, "after": digest(pretrained.variables)},
    }
    if config.floor and config.init != "random":
        floor, _ = run(checkpoints.untrained_like(config.init, config.seed))
        result["floor"] = {
            **metrics.summarise(floor.true, floor.scores, classes, floor.subjects, **bootstrap),
            "difference": metrics.differences(
                found.true, found.scores, floor.scores, found.subjects, **bootstrap
            ),
        }
    draw(workdir, summary, found, "synthetic data" if synthetic else "")
    workdir.result(result)
    for warning in found.warnings:
        logging.warning("%s", warning)
    how = f"{config.folds} folds by subject" if config.folds else "the dataset's own splits"
    print(
        f"linear probe of {config.init}{' (synthetic data)' if synthetic else ''}: "
        f"{summary['n_recordings']} recordings of {summary['n_subjects']} subjects scored, {how}; "
        f"95 % intervals over subjects\n{table(result)}"
    )


if __name__ == "__main__":
    program.run(main)
