"""Tracks and saves the best validation checkpoint during a run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cryjax.training import parallel
from cryjax.training.checkpoints import BEST, Checkpoints
from cryjax.training.run import Run
from cryjax.training.steps import TrainState


def best_step(
    history: Sequence[Mapping[str, float]], metric: str, patience: int
) -> tuple[int, bool]:
    """The step with the best validation score so far, the first of ties; 0 if none was scored.

    Args:
      history: lines of metrics.jsonl.
      metric: its name in them; higher is better.
      patience: stop after this many scores without improvement; 0 for never.

    Returns:
      The step, and whether to stop.
    """
    lines = [line for line in history if np.isfinite(line.get(metric, np.nan))]
    if not lines:
        return 0, False
    best = max(lines, key=lambda line: (line[metric], -line["step"]))["step"]
    since = sum(line["step"] > best for line in lines)
    return int(best), bool(patience) and since >= patience


class Best:
    """The best validation checkpoint so far, kept in a run's `best` folder."""

    def __init__(self, run: Run, config: Any, start: int):
        """Resumes from step `start`, discarding later ones."""
        self._metric, self._patience = f"validation_{config.select}", config.patience
        self._meta = run.meta
        self._saved = Checkpoints(run.workdir.path, folder=BEST, keep=1)
        self._saved.rewind(start)
        # Every process keeps it: all must choose the same step, and only one writes the file.
        lines = [line for line in run.workdir.metrics() if line["step"] <= start]
        self._history = parallel.from_first(lines)
        if self._saved.latest is None:  # deleted with a step that is redone: start over
            self._history = []

    def take(self, state: TrainState, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """Records a step's metrics and returns them; saves the state if it is the best.

        The first process's: another's may differ in the last bit.
        """
        metrics = parallel.from_first(metrics)
        self._history.append({"step": step, **metrics})
        if best_step(self._history, self._metric, 0)[0] == step:
            self._saved.save_model(state, step, self._meta)
            self._saved.wait()  # before the step's own checkpoint marks it as done
        return metrics

    def enough(self) -> bool:
        """Whether the config's patience has run out."""
        return best_step(self._history, self._metric, self._patience)[1]

    def close(self, state: TrainState) -> int | None:
        """Returns the best step; if none was scored, saves `state` and returns its step."""
        if self._saved.latest is None:
            self._saved.save_model(state, int(state.step), self._meta)
        step = self._saved.latest
        self._saved.close()
        return step
