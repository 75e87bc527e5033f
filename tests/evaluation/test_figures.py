"""Figures are written, and show what they are given."""

import numpy as np
import pytest
from matplotlib import image
from matplotlib.figure import Figure

from cryjax.evaluation import metrics
from cryjax.evaluation.figures import classifier, experiment, maps
from cryjax.evaluation.figures.classifier import confusion_figure, roc_figure
from cryjax.evaluation.figures.spectrograms import views_figure
from cryjax.evaluation.figures.training import training_figure
from cryjax.evaluation.results import Estimate, Line, Task


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
    subjects = np.arange(50) // 5
    makers = {
        "views": lambda p, k: views_figure(p, views * k, hop_seconds=0.01),
        "training": lambda p, k: training_figure(
            p, [line | {"loss": k * line["step"]} for line in history]
        ),
        "confusion": lambda p, k: confusion_figure(
            p, [[9 * k, 1], [3, 7]], ["cry", "$^$ name"], "$^$ title"
        ),
        "roc": lambda p, k: roc_figure(p, true, score + k * true, subjects, "$^$ title"),
    }
    for name, make in makers.items():
        one, other = (pixels(make(tmp_path / f"{name}{k}.png", k))[:, :, :3] for k in (1, 2))
        assert one.std() > 0.05  # not blank
        assert one.shape != other.shape or np.any(one != other), name


def test_note_is_shown(tmp_path):
    given = [0, 1], [0.0, 1.0], ["a", "b"], "title"
    plain = roc_figure(tmp_path / "a.png", *given)
    noted = roc_figure(tmp_path / "b.png", *given, note="synthetic")
    corner = (slice(-20, None), slice(-120, None))
    assert np.any(pixels(plain)[corner] != pixels(noted)[corner])


def test_the_kept_step_is_marked(tmp_path):
    history = [{"step": step, "loss": 1.0} for step in range(10)]
    early, late = (
        pixels(training_figure(tmp_path / f"{kept}.png", history, kept=kept)) for kept in (3, 7)
    )
    assert np.any(early != late)


@pytest.mark.filterwarnings("ignore:No positive samples")
def test_a_detector_scored_on_one_class_has_a_figure(tmp_path):
    given = np.zeros(8, int), np.linspace(0, 1, 8), np.arange(8) // 2, "title"
    pixels(roc_figure(tmp_path / "a.png", *given))


TASKS = (
    Task("injury", ("no", "yes"), 60, 20, 20, 6, 0.8),
    Task("$x$ and $y$ of a name too long", ("a", "b", "c"), 60, 20, 20, 6, 0.5),
)


def efficiency_lines(value=0.7, rows=("scratch", "simclr", "other")):
    return [
        Line(
            row,
            method,
            task.name,
            fraction,
            1,
            int(60 * fraction),
            # The interval of a mean over seeds may lie beside it.
            {"macro_auc": Estimate(value + 0.02 * place, (value, value + 0.01))},
            {},
        )
        for task in TASKS
        for method in ("probe", "finetune")
        for place, row in enumerate(rows)
        for fraction in (1.0, 0.05, 0.2)
    ]


def test_label_efficiency(tmp_path):
    lines = efficiency_lines()
    whole = pixels(experiment.label_efficiency_figure(tmp_path / "a.png", lines, TASKS))
    other = experiment.label_efficiency_figure(tmp_path / "b.png", efficiency_lines(0.8), TASKS)
    assert np.any(whole != pixels(other))
    only = experiment.label_efficiency_figure(
        tmp_path / "c.png", lines, TASKS, only=("injury", "probe"), note="synthetic"
    )
    assert pixels(only).shape[1] < whole.shape[1]
    some = [line for line in lines if (line.task, line.method) != ("injury", "probe")]
    experiment.label_efficiency_figure(tmp_path / "d.png", some, TASKS)
    nan = float("nan")
    gap = Line("simclr", "probe", "injury", 1.0, 1, 9, {"f1": Estimate(nan, (nan, nan))}, {})
    pixels(experiment.label_efficiency_figure(tmp_path / "e.png", [gap], TASKS[:1], "f1"))
    pixels(experiment.label_efficiency_figure(tmp_path / "f.png", [gap], TASKS[:1], "accuracy"))


def test_few_fractions_are_offset_as_little_as_many():
    rows = ["scratch", "simclr"]
    estimate = {"f1": Estimate(0.5, (0.4, 0.6))}
    for fractions in ((0.1, 1.0), (0.1, 0.2, 0.5, 1.0)):
        ax = Figure().subplots()
        lines = [Line(row, "probe", "a", x, 1, 9, estimate, {}) for row in rows for x in fractions]
        experiment._efficiency_panel(ax, lines, experiment._row_styles(rows), "f1")
        across = ax.transAxes.inverted().transform
        (first, second) = (
            across(ax.transData.transform((line.get_xdata()[0], 0.5)))[0] for line in ax.lines
        )
        assert 0.03 < second - first < 0.08


def test_rows_differ_in_colour_and_marker():
    rows = ["scratch", "supervised", "supervised+adapted", "simclr", "simclr+adapted", "x", "y"]
    styles = experiment._row_styles(rows)
    for key in ("color", "marker"):
        assert len({style[key] for style in styles.values()}) == len(rows)


@pytest.mark.parametrize("classes", [2, 4])
def test_area_under_roc_is_macro_auc(classes):
    rng = np.random.default_rng(classes)
    true = rng.integers(classes, size=200)
    scores = rng.normal(size=(200, classes)) + np.eye(classes)[true]
    x, y = experiment._roc(true, scores)
    if classes == 2:
        expected = metrics.auc(true == 1, scores[:, 1] - scores[:, 0], np.ones((1, 200)))[0]
    else:
        expected = metrics.macro_auc(true, scores, np.ones((1, 200)))[0]
    assert np.trapezoid(y, x) == pytest.approx(expected, abs=0.003)


def test_a_roc_curve_leaves_out_what_has_no_score_as_the_macro_auc_does():
    rng = np.random.default_rng(0)
    true = rng.integers(3, size=300)
    scores = rng.normal(size=(300, 3)) + np.eye(3)[true]
    scores[:40, 1] = np.nan
    scores[:, 2] = np.nan
    x, y = experiment._roc(true, scores)
    expected = metrics.macro_auc(true, scores, np.ones((1, 300)))[0]
    assert np.trapezoid(y, x) == pytest.approx(expected, abs=0.003)
    assert experiment._roc(true, np.full((300, 3), np.nan)) is None


def test_rocs(tmp_path):
    rng = np.random.default_rng(0)
    true = rng.integers(3, size=40)
    found = {row: (true, rng.normal(size=(40, 3))) for row in ("scratch", "simclr")}
    one = pixels(experiment.rocs_figure(tmp_path / "a.png", found, "title"))
    found["simclr"] = (true, np.eye(3)[true])
    assert np.any(one != pixels(experiment.rocs_figure(tmp_path / "b.png", found, "title")))
    experiment.rocs_figure(
        tmp_path / "c.png", {"scratch": (true * 0, found["scratch"][1])}, "title"
    )


def test_maps(tmp_path):
    rng = np.random.default_rng(0)
    label = rng.integers(2, size=60)
    features = rng.normal(size=(60, 70)).astype(np.float32) + 20 * label[:, None]
    kept, points = maps.project(features, most=40)
    assert len(kept) == len(points) == 40 and np.all(np.diff(kept) > 0)
    np.testing.assert_array_equal(points, maps.project(features, most=40)[1])
    # Clusters far apart stay apart.
    groups = [points[label[kept] == group] for group in (0, 1)]
    between = np.linalg.norm(groups[0].mean(0) - groups[1].mean(0))
    assert between > max(np.linalg.norm(group - group.mean(0), axis=1).mean() for group in groups)
    names = np.array(["_a", "$b$", "", *map(str, range(17))])[np.arange(40) % 20]
    all_grey = pixels(maps.map_figure(tmp_path / "a.png", points, names, "by label", most=0))
    colours = pixels(maps.map_figure(tmp_path / "b.png", points, names, "by label"))
    spread = [np.ptp(picture[..., :3], axis=-1).max() for picture in (all_grey, colours)]
    assert spread[0] < 0.01 < 0.5 < spread[1]


def test_few_subjects_make_a_wide_band():
    rng = np.random.default_rng(0)
    true = np.arange(200) % 2
    # Half of the recordings are told apart, and of the others the opposite is said.
    half = np.arange(200) // 100
    score = rng.normal(size=200) + (2 * true - 1) * (1 - 2 * half)

    def width(subjects):
        low, high = classifier._band(true, score, subjects)
        assert np.all(low <= high) and np.all((low >= 0) & (high <= 1))
        return (high - low)[20:-20].mean()

    # Whose they are makes the difference: of two subjects, or of a hundred.
    assert width(half) > 1.5 * width(np.arange(200) // 2)
    assert np.isnan(classifier._band(true, score, np.zeros(200))).all()  # one has no interval


def test_the_area_under_the_drawn_curve_is_the_auc(monkeypatch):
    """Of equal scores too: a step curve of these was drawn at 0 up to the end."""
    drawn = []
    monkeypatch.setattr(classifier, "save", lambda figure, *_: drawn.append(figure.axes[0]))
    true = np.arange(40) % 2
    for score in (np.zeros(40), np.arange(40) // 7 % 3 + true):
        classifier.roc_figure(None, true, score, np.arange(40), "")
        (line,) = (line for line in drawn[-1].lines if line.get_label() == "classifier")
        x, y = line.get_path().vertices.T
        if line.get_drawstyle() == "steps-post":
            x, y = np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1]
        assert np.trapezoid(y, x) == pytest.approx(
            metrics.auc(true == 1, score, np.ones((1, 40)))[0]
        )


def test_figures_are_light_and_keep_their_colours(tmp_path):
    smooth = np.cumsum(np.random.default_rng(0).normal(size=(4, 2, 81, 40)), axis=2)
    path = views_figure(tmp_path / "views.png", smooth, hop_seconds=0.01)
    assert path.stat().st_size < 100_000
    # The map of colours is dark at one end and pale at the other.
    found = pixels(path)[:, :, :3].mean(axis=2)
    assert found.min() < 0.05 and found.max() > 0.95


def test_two_that_are_both_nearly_sure_do_not_tie(tmp_path, monkeypatch):
    """Softmaxes in float32 that differ by less than the difference of two of them can."""
    sure = np.float32([1e-9, 3e-9, 2e-9, 4e-9])
    drawn = []
    monkeypatch.setattr(
        classifier, "roc_figure", lambda path, true, score, *_, **__: drawn.append(score)
    )
    result = {
        "labels": ["a", "b"], "synthetic": False, "n_recordings": 4, "n_subjects": 4,
        "confusion": [[2, 0], [2, 0]],
    }  # fmt: skip
    scores = np.stack([np.ones(4, np.float32) - sure, sure], axis=1)
    classifier.draw(
        lambda name: tmp_path / f"{name}.png", result, np.array([0, 0, 1, 1]), scores, np.arange(4)
    )
    assert len(set(drawn[0])) == 4
