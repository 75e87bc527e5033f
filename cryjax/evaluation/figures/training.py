"""Training curves of a run."""

import pathlib
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cryjax.evaluation.figures.style import BLUE, GREY, plain, save

# Metrics of a training run worth a panel: name in metrics.jsonl, title.
PRETRAINING = (
    ("loss", "loss (nats)"),
    ("contrastive_accuracy", "contrastive accuracy (share)"),
    ("effective_rank", "effective rank of the projections"),
    ("neighbour_accuracy", "neighbour accuracy across subjects (share)"),
    ("alignment", "alignment (distance² of positives)"),
    ("uniformity", "uniformity"),
    ("gradient_norm", "gradient norm"),
    ("clips_per_second", "clips per second"),
)
# Same for a supervised run.
SUPERVISED = (
    ("loss", "loss (nats)"),
    ("batch_accuracy", "accuracy on batches (share)"),
    ("validation_macro_auc", "validation macro AUC"),
    ("validation_accuracy", "validation accuracy (share)"),
    ("validation_average_precision", "validation average precision"),
    ("gradient_norm", "gradient norm"),
    ("learning_rate", "learning rate"),
    ("clips_per_second", "clips per second"),
)


def training_figure(
    path: pathlib.Path,
    history: Sequence[Mapping[str, float]],
    *,
    note: str = "",
    names: Sequence[tuple[str, str]] = PRETRAINING,
    kept: int | None = None,
    columns: int = 4,
    panel: tuple[float, float] = (3.1, 2.3),
) -> pathlib.Path:
    """Curves of a run's metrics over its steps.

    Args:
      path: of the PNG.
      history: the lines of metrics.jsonl.
      note: in the corner.
      names: metrics to plot, as (name in metrics.jsonl, title).
      kept: the step that was chosen, which a dashed line marks.
      columns: of panels, at most.
      panel: width and height of one, in inches.
    """
    panels = [
        (title, [(line["step"], line[name]) for line in history if name in line])
        for name, title in names
    ]
    panels = [(title, points) for title, points in panels if points]
    columns = max(min(columns, len(panels)), 1)  # a run may end before its first line
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(panel[0] * columns, panel[1] * rows + 0.2), layout="constrained")
    for place, (title, points) in enumerate(panels, 1):
        ax = figure.add_subplot(rows, columns, place)
        ax.plot(*zip(*points, strict=True), color=BLUE, lw=1.2, marker="." * (len(points) < 20))
        ax.set_title(title, fontsize=9)
        ax.tick_params(labelsize=8)
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        if len(points) == 1:  # or ticks would be fractions of a step
            ax.set_xlim(points[0][0] - 1, points[0][0] + 1)
        if kept is not None:
            ax.axvline(kept, color=GREY, ls="--", lw=1)
        ax.grid(alpha=0.25, lw=0.5)
        plain(ax)
    label = "step" if kept is None else "step (dashed: the one kept)"
    figure.supxlabel(label, fontsize=9)
    return save(figure, path, note)
