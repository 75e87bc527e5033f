"""Maps of embeddings: recordings laid out in a plane."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from cryjax.evaluation.figures.style import (
    AMBER,
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PALE,
    PURPLE,
    SKY,
    Place,
    literal,
    save,
    short,
)

# A map of fewer recordings shows nothing.
FEWEST = 5


def project(features: np.ndarray, *, most: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Lays embeddings out in a plane: PCA to 50 dimensions, then t-SNE; deterministic.

    Args:
      features: [recordings, features], at least `FEWEST` recordings.
      most: recordings to lay out; a random sample if there are more.

    Returns:
      int [kept], indices of recordings; [kept, 2], where they lie.
    """
    kept = np.arange(len(features))
    if len(kept) > most:
        kept = np.sort(np.random.default_rng(0).choice(kept, most, replace=False))
    chosen = features[kept].astype(np.float64)
    parts = min(50, *chosen.shape)
    # Spinning threads take minutes where others want the cores too, and sum in a different order
    # each time. A collapsed encoder has no variance to explain.
    with threadpool_limits(1), np.errstate(invalid="ignore"):
        reduced = PCA(parts, random_state=0).fit_transform(chosen)
        # 'pca' divides the first two components by a deviation, zero for a collapsed encoder.
        start = "pca" if parts > 1 and reduced[:, 0].std() > 0 else "random"
        perplexity = min(30.0, (len(kept) - 1) / 3)
        tsne = TSNE(perplexity=perplexity, init=start, random_state=0)
        return kept, tsne.fit_transform(reduced)


def map_figure(
    path: Place,
    points: np.ndarray,
    names: Sequence[str],
    title: str,
    *,
    most: int = 14,
    note: str = "",
) -> Place:
    """A map of embeddings, coloured by a name of each: its label or its subject.

    Args:
      path: of the PNG.
      points: [recordings, 2].
      names: [recordings].
      title: of the figure.
      most: number of names to colour, the most frequent; others are grey.
      note: in the corner.
    """
    counts = Counter(names)
    chosen = [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    others = max(len(chosen) - most, 0)
    chosen = chosen[:most] if others else sorted(chosen)
    figure = Figure(figsize=(4.9, 3.7), layout="constrained")
    ax = figure.subplots()
    dots: dict[str, Any] = {"s": 14 if len(points) > 300 else 24, "lw": 0.3, "ec": "white"}
    named = np.asarray(names)
    handles = {}
    if others:
        rest = ~np.isin(named, chosen)
        handles[f"{others} others"] = ax.scatter(*points[rest].T, color=PALE, **dots)
    colours = (BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY, BLACK)
    for place, name in enumerate(chosen):
        turn, colour = divmod(place, len(colours))
        handles[name] = ax.scatter(
            *points[named == name].T,
            color=colours[colour],
            marker="o^sD"[turn % 4],
            alpha=0.85,
            **dots,
        )
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_title(literal(title), fontsize=10)
    figure.legend(
        handles.values(),
        [literal(short(name)) or "(none)" for name in handles],
        loc="outside right center",
        fontsize=8,
        frameon=False,
        handletextpad=0.2,
        markerscale=1.5,
    )
    return save(figure, path, note, dpi=160)
