"""Embeddings for TensorBoard: for its projector, and as a map among the images.

Only labels go with them: neither subjects nor sources.
"""

import io
import pathlib
from typing import Any

import numpy as np
from sklearn.decomposition import PCA

from cryjax.command.files import whole
from cryjax.evaluation.embeddings import Embedder, Embeddings
from cryjax.evaluation.figures.maps import FEWEST, map_figure
from cryjax.training.steps import TrainState
from cryjax.training.workdir import PROJECTOR, Workdir

MOST = 300  # examples to embed: enough for a map, and quick


def embeddings(workdir: Workdir, step: int, found: Embeddings, *, note: str) -> None:
    """Adds embeddings to the projector and a map of them to the images."""
    if len(found.labels) < FEWEST:
        return
    # A tab or newline would start another column or row.
    labels = [" ".join(label.split()) or "(none)" for label in found.labels]
    folder = workdir.path / PROJECTOR / f"{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    rows = ("\t".join(f"{x:.5g}" for x in row) for row in found.features)
    (folder / "tensors.tsv").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    # A single column, hence no header.
    named = "".join(f"{label}\n" for label in labels)
    (folder / "metadata.tsv").write_text(named, encoding="utf-8")
    _describe(workdir.path)

    # Principal components are quick, and distances keep their meaning.
    parts = PCA(2, svd_solver="full").fit(found.features)
    points = parts.transform(found.features)
    share = 100 * np.nan_to_num(parts.explained_variance_ratio_).sum()
    title = f"step {step}: two components, {share:.0f} % of the variance"
    drawn = io.BytesIO()
    map_figure(drawn, points, labels, title, note=note)
    workdir.image(step, "embeddings", drawn.getvalue())


def of_state(
    state: TrainState, step: int, *, workdir: Workdir, embedder: Embedder, source: Any, note: str
) -> None:
    """Same, for at most `MOST` examples embedded by a state's encoder."""
    found = embedder(state.encoder, source, most=MOST)
    embeddings(workdir, step, found, note=note)


def _describe(home: pathlib.Path) -> None:
    """Writes the projector's configuration, which lists all steps with embeddings."""
    entries = [
        f'embeddings {{\n  tensor_name: "step {int(path.parent.name)}"\n'
        f'  tensor_path: "{path.relative_to(home).as_posix()}"\n'
        f'  metadata_path: "{path.with_name("metadata.tsv").relative_to(home).as_posix()}"\n}}\n'
        for path in sorted((home / PROJECTOR).glob("*/tensors.tsv"))
    ]
    with whole(home / "projector_config.pbtxt") as file:
        file.write("".join(entries))
