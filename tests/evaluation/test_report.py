"""Reports hold every number, let no text of a user act, fetch nothing, and cope with gaps."""

import csv
import dataclasses
import html.parser
import itertools
import math

import numpy as np
import pytest

from cryjax.evaluation import report, tables
from cryjax.evaluation.embeddings import Embeddings
from cryjax.evaluation.results import (
    Comparison,
    Estimate,
    Experiment,
    Line,
    Scores,
    Task,
)

EVIL = "<script>alert('x')</script>"
NAN = Estimate(math.nan, (math.nan, math.nan))
# Elements without a closing tag.
VOID = {"meta", "link", "img", "wbr"}


def task(name="trigger", labels=("hunger", "pain", EVIL)):
    return Task(name, labels, 90, 30, 30, 10, 0.7)


def lines(rng, name="trigger", methods=("probe", "finetune"), fractions=(0.1, 1.0)):
    def estimate(sign=1.0):
        value = sign * rng.uniform(0.2, 0.9)
        return Estimate(value, (value - 0.1, value + 0.1), 0.01)

    return tuple(
        Line(
            row,
            method,
            name,
            fraction,
            2,
            round(80 * fraction),
            {"accuracy": estimate(), "macro_auc": estimate(), "f1": NAN},
            {} if row == "scratch" else {"macro_auc": estimate(-1.0)},
        )
        for method in methods
        for fraction in fractions
        for row in ("scratch", "simclr+adapted")
    )


def scores(rng, classes=3):
    return Scores(rng.integers(classes, size=30), rng.normal(size=(30, classes)))


@pytest.fixture
def full():
    rng = np.random.default_rng(0)
    names = np.array(["hunger", EVIL])[rng.integers(2, size=20)]
    embeddings = Embeddings(
        rng.normal(size=(20, 8)), np.arange(20), names, rng.integers(9, size=20).astype(str)
    )
    detection = task("injury", ("no injury", "injury"))
    detection = dataclasses.replace(detection, held=((81, 29, 27, 9), (9, 8, 7, 6)))
    return Experiment(
        title=f"A title {EVIL}",
        synthetic=True,
        tasks=(task(), detection),
        lines=lines(rng) + lines(rng, "injury"),
        comparisons=(
            Comparison(
                "simclr+adapted",
                "simclr",
                "probe",
                "injury",
                0.1,
                {"macro_auc": Estimate(0.125, (0.0625, 0.25))},
            ),
        ),
        scores={
            ("scratch", "probe", "trigger"): scores(rng),
            ("simclr+adapted", "finetune", "injury"): scores(rng, 2),
        },
        embeddings={("simclr", "trigger"): embeddings},
        training={EVIL: [{"step": n, "loss": 5.0 / n, "kind": "x"} for n in range(1, 9)]},
        configs={"reproduce": {"data": {"init": EVIL}, "seeds": [0, 1]}},
        versions={"jax": "0.10.2"},
        data=({"name": EVIL, "split": "train", "recordings": 90, "labels": {"hunger": 3}},),
        commands=("python -m cryjax.reproduce --config.name='<a & b>'",),
        notes=(f"only 2 test subjects in {EVIL}",),
    )


def test_stars_are_explained_where_there_are_any(full, bare):
    assert "a star marks" in tables.reading(full)
    without = tuple(dataclasses.replace(line, difference={}) for line in full.lines)
    assert "a star marks" in tables.reading(dataclasses.replace(full, lines=without))
    assert "a star marks" not in tables.reading(bare)


def test_folds_are_told_from_a_test_set(full):
    for folds, how in ((1, "scored as a test set."), (5, "in 5 folds by")):
        found = tuple(dataclasses.replace(task, folds=folds) for task in full.tasks)
        assert how in tables.about(found[0], full.lines)
        said = tables.reading(dataclasses.replace(full, tasks=found))
        assert ("With folds" in said) == (folds > 1)
        # At 1 % of 174 subjects and five classes it was 2.8 %.
        assert "the few more that it takes to have one of every class" in said


@pytest.fixture
def bare(full):
    return Experiment("Bare", False, full.tasks[:1], (), (), {}, {}, {}, {}, {}, (), (), ())


class Page(html.parser.HTMLParser):
    """The tags of a page, in order, with what is open checked to be closed; and its text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if self.open[-1:] != ["style"] else ""

    def all(self, *names):
        return [(tag, attributes) for tag, attributes in self.tags if tag in names]


def written(experiment, folder):
    report.write_report(experiment, folder / "report.html")
    tables.write_markdown(experiment, folder / "table.md")
    tables.write_csv(experiment, folder / "table.csv")
    assert {path.name for path in folder.iterdir()} == {"report.html", "table.md", "table.csv"}
    return Page(folder / "report.html"), (folder / "table.md").read_text(encoding="utf-8")


def test_csv_holds_every_number_in_full(full, tmp_path):
    one = dataclasses.replace(full.lines[0], metrics={"f1": Estimate(np.float32(0.1), (0, 1))})
    full = dataclasses.replace(full, lines=(*full.lines, one))
    tables.write_csv(full, tmp_path / "deep" / "table.csv")
    with (tmp_path / "deep" / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    expected = [(line, name) for line in full.lines for name in line.metrics]
    assert len(rows) == len(expected)
    for row, (line, name) in zip(rows, expected, strict=True):
        assert (row["row"], row["method"], row["task"]) == (line.row, line.method, line.task)
        own = line.metrics[name]
        named = ("fraction", "value", "low", "high", "spread")
        found = [float(row[key] or "nan") for key in named]
        wanted = [line.fraction, own.value, *own.interval, own.spread]
        np.testing.assert_array_equal(found, wanted)
        assert (int(row["seeds"]), int(row["n_train"])) == (line.seeds, line.n_train)
        gain = line.difference.get(name)
        found = [row[key] for key in ("difference", "difference_low", "difference_high")]
        assert found == (["", "", ""] if gain is None else list(map(repr, _ends(gain))))


def _ends(estimate):
    return estimate.value, *estimate.interval


def test_markdown_and_report_hold_every_line(full, tmp_path):
    page, markdown = written(full, tmp_path)
    for line in full.lines:
        value, low, high = _ends(line.metrics["macro_auc"])
        cell = f"{value:.3f} [{low:.3f}, {high:.3f}]"
        assert any(row.startswith(f"| {line.row} ") and cell in row for row in markdown.split("\n"))
        assert cell in page.text
        for gain in line.difference.values():
            value, low, high = _ends(gain)
            star = "*" if high < 0 else ""
            cell = f"{value:+.3f}{star} [{low:+.3f}, {high:+.3f}]"
            assert cell in markdown and cell in page.text
    assert "'no injury', the commonest class, is right 0.700" in " ".join(markdown.split())
    assert "0.700 of the time" in markdown and "| majority class, chance" in markdown
    assert "sensitivity" not in markdown  # none was given
    assert "(injury is positive)" in markdown
    assert "simclr+adapted over simclr" in markdown and "+0.125* [+0.062, +0.250]" in page.text
    found = [block for block in markdown.split("\n\n") if block.startswith("|")]
    assert len(found) == 2 * (2 * 2 + 1) + 2
    (classes,) = [table for table in found if table.startswith("| class ")]
    assert " ".join(classes.split("\n")[-1].split()) == "| injury | 9 | 8 | 7 | 6 |"
    for table in found:  # aligned
        assert len({len(row) for row in table.strip().split("\n")}) == 1
    for text in (page.text, markdown):
        assert "SYNTHETIC DATA" in text and "only 2 test subjects" in text and "–" in text
        assert "nan" not in text


@pytest.mark.parametrize(("people", "starred"), [(5, False), (6, True)])
def test_no_star_of_a_handful_of_subjects(full, tmp_path, people, starred):
    few = tuple(dataclasses.replace(task, n_test_subjects=people) for task in full.tasks)
    _, markdown = written(dataclasses.replace(full, tasks=few), tmp_path)
    for gain in [line.difference["macro_auc"] for line in full.lines if line.difference]:
        assert (f"{gain.value:+.3f}* [" in markdown) == starred
    assert ("+0.125* [" in markdown) == starred and "+0.125" in markdown


def test_no_star_where_a_class_has_a_handful_of_subjects(full, tmp_path):
    for people, starred in ((5, False), (6, True)):
        held = ((81, 29, 27, 20), (9, 8, 8, people))
        few = tuple(dataclasses.replace(task, n_test_subjects=26, held=held) for task in full.tasks)
        _, markdown = written(dataclasses.replace(full, tasks=few), tmp_path / str(people))
        assert ("+0.125* [" in markdown) == starred


def test_report_asks_for_nothing_and_escapes(full, tmp_path):
    page, markdown = written(full, tmp_path)
    assert not page.all("script", "iframe", "object", "embed", "form")
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert value.startswith(("data:", "#")), (tag, value)
            assert "url(" not in (value or "")
    assert ("link", {"rel": "icon", "href": "data:,"}) in page.tags
    raw = (tmp_path / "report.html").read_text(encoding="utf-8")
    style = raw[raw.index("<style>") : raw.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert page.text.count(EVIL) >= 5  # as text
    assert "<a & b>" in page.text
    assert "<script" not in markdown.replace(r"\<", "")
    targets = {attributes.get("id") for _, attributes in page.tags}
    assert all(attributes["href"][1:] in targets for _, attributes in page.all("a"))


def test_report_is_accessible_and_small(full, tmp_path):
    page, _ = written(full, tmp_path)
    assert ("html", {"lang": "en"}) in page.tags
    images = [attributes for _, attributes in page.all("img")]
    # Two methods a task, a ROC curve a method scored, two maps, one run.
    assert len(images) == 4 + 2 + 2 + 1
    assert all(len(image["alt"]) > 20 for image in images)
    assert max(len(image["src"]) for image in images) < 100_000 * 4 / 3
    levels = [int(tag[1]) for tag, _ in page.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    boxes = [attributes for _, attributes in page.all("div") if attributes.get("role") == "region"]
    assert len(boxes) == len(page.all("table"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_confusion_counts_are_those_of_the_scores(full, tmp_path):
    right = Scores(np.array([0, 0, 1, 2]), np.eye(3)[[0, 0, 1, 0]])
    full = dataclasses.replace(full, scores={("simclr", "probe", "trigger"): right})
    page, _ = written(full, tmp_path)
    shaded = [attributes["style"] for _, attributes in page.tags if "style" in attributes]
    most, none = "background:#0072b2;color:#fff", "background:#ffffff;color:#000"
    assert shaded == [most, none, none, none, most, none, most, none, none]
    assert "true \\ predictedhungerpain" + EVIL[:23] + "…hunger200pain010" in page.text


@pytest.mark.parametrize(
    "gap",
    [
        {"scores": {}, "embeddings": {}, "training": {}},
        {"configs": {}, "versions": {}, "data": (), "commands": (), "notes": ()},
        {"lines": ()},
        {"training": {"empty": [], "no number": [{"step": 1, "loss": "x"}]}, "synthetic": False},
    ],
)
def test_missing_pieces_are_left_out(full, tmp_path, gap):
    page, markdown = written(dataclasses.replace(full, **gap), tmp_path)
    assert ("SYNTHETIC" in page.text) == ("SYNTHETIC" in markdown) == gap.get("synthetic", True)


def test_bare_and_odd_experiments(bare, tmp_path):
    rng = np.random.default_rng(0)
    written(bare, tmp_path)
    alone = lines(rng, methods=("probe",), fractions=(1.0,))
    written(dataclasses.replace(bare, lines=alone), tmp_path)
    nothing = tuple(dataclasses.replace(line, metrics={"macro_auc": NAN}) for line in alone)
    page, markdown = written(dataclasses.replace(bare, lines=nothing), tmp_path)
    assert "nan" not in page.text + markdown and "–" in page.text
    other = tuple(
        dataclasses.replace(line, row="byol", metrics={"f1": Estimate(0.5, (0.4, 0.6))})
        for line in alone
    )
    page, _ = written(dataclasses.replace(bare, lines=other), tmp_path)
    assert "F1, linear probe" in page.text
    digits = task("digits", tuple("0123456789"))
    one_class = Scores(np.zeros(5, int), rng.normal(size=(5, 10)))
    not_finite = Scores(np.arange(5), np.full((5, 10), np.nan))
    same = Embeddings(np.ones((6, 4)), np.arange(6), np.full(6, "a$b$"), np.full(6, "_s"))
    page, _ = written(
        dataclasses.replace(
            bare,
            tasks=(digits,),
            lines=lines(rng, "digits"),
            scores={("a", "probe", "digits"): one_class, ("b", "probe", "digits"): not_finite},
            embeddings={
                ("a", "digits"): same,
                ("b", "digits"): Embeddings(
                    np.ones((2, 4)), np.arange(2), np.full(2, "a"), np.full(2, "s")
                ),
                ("c", "digits"): dataclasses.replace(same, features=np.full((6, 4), np.nan)),
            },
        ),
        tmp_path,
    )
    assert page.text.count("No map") == 2
