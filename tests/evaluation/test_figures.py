"""Figures are written, and show what they are given."""

import numpy as np
from matplotlib import image

from cryjax.evaluation import figures


def pixels(path):
    found = image.imread(path)
    assert found.shape[0] > 150 and found.shape[1] > 200
    return found


def test_each_is_written_and_follows_its_data(tmp_path):
    rng = np.random.default_rng(0)
    views = rng.normal(size=(3, 2, 40, 20)) * 10
    history = [{"step": n, "loss": 5.0 / n, "clips_per_second": 9.0} for n in range(1, 30)]
    history.append({"step": 30, "neighbour_accuracy": 0.5})
    true, score = rng.integers(2, size=50), rng.normal(size=50)
    makers = {
        "views": lambda p, k: figures.views_figure(p, views * k, hop_seconds=0.01),
        "training": lambda p, k: figures.training_figure(
            p, [line | {"loss": k * line["step"]} for line in history]
        ),
        "confusion": lambda p, k: figures.confusion_figure(
            p, [[9 * k, 1], [3, 7]], ["cry", "no cry"], "title"
        ),
        "roc": lambda p, k: figures.roc_figure(p, true, score + k * true, "title"),
    }
    for name, make in makers.items():
        one, other = (pixels(make(tmp_path / f"{name}{k}.png", k))[:, :, :3] for k in (1, 2))
        assert one.std() > 0.05  # not blank
        assert one.shape != other.shape or np.any(one != other), name


def test_note_is_shown(tmp_path):
    plain = figures.roc_figure(tmp_path / "a.png", [0, 1], [0.0, 1.0], "title")
    noted = figures.roc_figure(tmp_path / "b.png", [0, 1], [0.0, 1.0], "title", note="synthetic")
    corner = (slice(-20, None), slice(-120, None))
    assert np.any(pixels(plain)[corner] != pixels(noted)[corner])
