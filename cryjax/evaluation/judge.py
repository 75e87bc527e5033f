"""A classifier's probabilities for whole recordings, their metrics, and their file."""

import csv
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from cryjax.command.files import whole
from cryjax.data.records import Index
from cryjax.evaluation import bootstrap, metrics, tasks
from cryjax.evaluation.embeddings import Embedder, Embeddings
from cryjax.training import steps, supervised
from cryjax.training.trained import load_trained


class Judge:
    """Scores recordings with a state trained on the classes in `learnt`, bool [classes]."""

    def __init__(
        self,
        task: tasks.Task,
        parts: supervised.Supervised,
        config: Any,
        devices: Any,
        learnt: np.ndarray,
    ):
        self._task = task
        self._learnt = learnt
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
        """For whole recordings, [recordings, classes] in `features`."""
        return self._embedder(variables, self._task.prepared.at(index), shown=shown)

    def of_run(self, path: str, index: Index) -> Embeddings:
        """Same, by the model that a run saved: the best on validation, or the last."""
        trained = load_trained(path)
        variables = {"encoder": trained.pretrained.variables, "head": trained.variables}
        return self.probabilities(variables, index, shown=True)

    def metrics(self, state: steps.TrainState, index: Index) -> dict[str, float]:
        """Validation metrics of a state in training, named as in metrics.jsonl."""
        live = state.live if state.average is None else state.average
        variables = {
            "encoder": {kind: live[kind]["encoder"] for kind in ("params", "batch_stats")},
            "head": {"params": live["params"]["head"]},
        }
        found = self.probabilities(variables, index)
        true, scores = (
            self._task.true(found.labels),
            metrics.scores_of(found.features, self._learnt),
        )
        once = np.ones((1, len(found.labels)))
        named = metrics.headlines(true, len(self._task.classes), probabilities=True)
        return {
            f"validation_{name}": float(metric(true, scores, once)[0])
            for name, metric in named.items()
        }


def write_predictions(
    path: pathlib.Path, found: Embeddings, classes: Sequence[str], what: str = "p"
) -> None:
    """Writes a row per scored recording: number, subject, label, and `what` for each class."""
    with whole(path, newline="") as file:
        table = csv.writer(file)
        table.writerow(["recording", "subject", "label", *(f"{what}({name})" for name in classes)])
        rows = zip(found.recordings, found.subjects, found.labels, found.features, strict=True)
        for recording, subject, label, scores in rows:
            table.writerow([recording, subject, label, *(f"{score:.9g}" for score in scores)])


def unvarying(result: dict[str, Any]) -> list[str]:
    """A warning of metrics that no resample changes, as where all recordings are right."""
    # In one order, and None where there is no interval, from result.json too.
    ends = sorted(result["intervals"].items())
    named = [name for name, (low, high) in ends if low is not None and low == high]
    if not named:
        return []
    return [
        f"{', '.join(named)}: the same in every resample, so the interval has no width; that is "
        "not certainty: other subjects may well give another value"
    ]


def summarise(
    found: Embeddings, task: tasks.Task, config: Any, learnt: np.ndarray
) -> dict[str, Any]:
    """Metrics over recordings and, if each subject has one label, over subjects; and 'warnings'.

    Args:
      found: probabilities.
      task: with the classes.
      config: of the run.
      learnt: bool [classes].

    Raises:
      UserError: if a probability is not finite.
    """
    metrics.check_finite(found.features, "probabilities", found.recordings)
    true = task.true(found.labels)
    result = bootstrap.summarise_both(
        true,
        metrics.scores_of(found.features, learnt),
        task.classes,
        found.subjects,
        resamples=config.resamples,
        seed=config.seed,
        probabilities=True,
    )
    result["warnings"] = bootstrap.cautions(true, found.subjects, task.classes) + unvarying(result)
    return result
