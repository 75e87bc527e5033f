"""What did best on validation, while a run goes on."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cryjax.training.checkpoints import BEST, Checkpoints
from cryjax.training.steps import TrainState
from cryjax.training.workdir import Workdir


def best_step(
    history: Sequence[Mapping[str, float]], metric: str, patience: int
) -> tuple[int, bool]:
    """The step that did best on validation so far, the first of equals; 0 where none was scored.

    Args:
      history: lines of metrics.jsonl.
      metric: in them; the more the better.
      patience: scores without a better one after which it is enough; 0 is never.

    Returns:
      The step, and whether it is enough.
    """
    lines = [line for line in history if np.isfinite(line.get(metric, np.nan))]
    if not lines:
        return 0, False
    best = max(lines, key=lambda line: (line[metric], -line["step"]))["step"]
    since = sum(line["step"] > best for line in lines)
    return int(best), bool(patience) and since >= patience


class Best:
    """What did best on validation so far, kept in the folder `best` of a run."""

    def __init__(self, workdir: Workdir, config: Any, start: int, meta: dict[str, Any]):
        """Goes on from step `start`, forgetting what came after; `meta` goes into checkpoints."""
        self._metric, self._patience = f"validation_{config.select}", config.patience
        self._meta = meta
        self._saved = Checkpoints(workdir.path, folder=BEST, keep=1)
        self._saved.rewind(start)
        # Every process keeps its own: all must choose the same step, and only one writes the file.
        self._history = [line for line in workdir.metrics() if line["step"] <= start]
        if self._saved.latest is None:  # lost with a step that is done again: it cannot be told
            self._history = []

    def take(self, state: TrainState, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """Takes a step's metrics into account and gives them back; saves the state if best."""
        self._history.append({"step": step, **metrics})
        if best_step(self._history, self._metric, 0)[0] == step:
            self._saved.save_model(state, step, self._meta)
            self._saved.wait()  # before the step's own checkpoint says that it is done
        return metrics

    def enough(self) -> bool:
        """Whether the config's patience is at its end."""
        return best_step(self._history, self._metric, self._patience)[1]

    def close(self, state: TrainState) -> int | None:
        """Gives the step that was best, or that of `state`, the last, where nothing told."""
        if self._saved.latest is None:
            self._saved.save_model(state, int(state.step), self._meta)
        step = self._saved.latest
        self._saved.close()
        return step
