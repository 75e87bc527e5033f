"""Cells of an experiment: folds are joined in order, rows compared by the seeds that both have."""

import csv
import json
import types

import numpy as np
import pytest

from cryjax.evaluation import bootstrap, experiment, tasks
from cryjax.evaluation.experiment import Cell, Found

CONFIG = types.SimpleNamespace(resamples=20, fold_seed=0, rows=("scratch", "simclr"))


def found(recordings, better=0.0):
    """All of a recording follows from its number."""
    recordings = np.asarray(recordings)
    true = recordings // 2 % 3
    scores = np.sin(np.outer(recordings, [1.0, 2.0, 3.0])) + better * np.eye(3)[true]
    return Found(recordings, true, scores, np.char.mod("s%d", recordings), 7.0, np.array(["said"]))


def test_joined_folds_are_in_the_order_of_their_recordings():
    joined = experiment.join_folds([found([3, 1, 11, 5]), found([10, 0, 4]), found([2, 9, 6])])
    expected = found([0, 1, 2, 3, 4, 5, 6, 9, 10, 11])
    for name in ("recordings", "true", "scores", "subjects", "trained", "warnings"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(expected, name), err_msg=name)


def test_rows_are_compared_by_the_seeds_that_both_have():
    cells = {Cell("scratch", "probe", "a", 0.5, seed): found(range(30)) for seed in (0, 1)}
    cells |= {Cell("simclr", "probe", "a", 0.5, seed): found(range(30), seed) for seed in (1, 2)}
    scratch, simclr = experiment.lines(experiment.by_seed(cells, {"a": 1}), CONFIG)
    assert (scratch.seeds, simclr.seeds, scratch.difference) == (2, 2, {})
    one = bootstrap.summarise_seeds(
        found([*range(30)]).true,
        np.stack([found(range(30), seed).scores for seed in (0, 1)]),
        np.arange(30),
        resamples=20,
        seed=0,
    )  # its spread is that of two: half the gap times the square root of two
    gap = simclr.difference["macro_auc"].value
    assert gap > 0.05 and np.isclose(gap, one["macro_auc"]["spread"] * np.sqrt(2))


def test_with_all_labels_a_row_is_compared_with_every_untrained_encoder():
    cells = {Cell("scratch", "probe", "a", 1.0, seed): found(range(30), seed) for seed in (0, 1)}
    cells[Cell("simclr", "probe", "a", 1.0, 0)] = found(range(30), 2)
    scratch, simclr = experiment.lines(experiment.by_seed(cells, {"a": 1}), CONFIG)
    gap = simclr.metrics["macro_auc"].value - scratch.metrics["macro_auc"].value
    assert scratch.metrics["macro_auc"].spread > 0.05
    assert simclr.difference["macro_auc"].value == pytest.approx(gap)


def test_what_is_compared_with_scratch_is_not_compared_with_it_twice():
    rows = ("scratch", "scratch+adapted", "simclr", "simclr+adapted")
    config = types.SimpleNamespace(resamples=20, fold_seed=0, rows=rows)
    cells = {Cell(row, "probe", "a", 1.0, 0): found(range(30)) for row in rows}
    seeds = experiment.by_seed(cells, {"a": 1})
    assert all(line.difference for line in experiment.lines(seeds, config)[1:])
    made = experiment.comparisons(seeds, config)
    assert [(one.row, one.other) for one in made] == [("simclr+adapted", "simclr")]


def test_few_subjects_of_a_fold_are_not_few_of_all(tmp_path):
    subjects, labels = np.arange(8).astype(str), np.array(["ill", "well"] * 4)
    true = np.arange(8) % 2
    few = bootstrap.cautions(true, subjects, ("ill", "well"))
    assert len(few) == 1
    warnings = ["no class hurt", *few]
    result = {"scored": "test", "n_train": 5, "warnings": warnings, "learnt": ["ill", "well"]}
    (tmp_path / "result.json").write_text(json.dumps(result))
    with (tmp_path / "predictions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["recording", "subject", "label", "p(ill)", "p(well)"]]
            + [[n, subjects[n], labels[n], 0.25, 0.75] for n in range(8)]
        )
    task = tasks.Task(types.SimpleNamespace(), ("ill", "well"), False)
    loaded = Found.of_run(tmp_path, task)
    assert loaded.warnings.tolist() == ["no class hurt"]
    np.testing.assert_array_equal(loaded.true, true)
    np.testing.assert_array_equal(loaded.scores, [[0.25, 0.75]] * 8)
    # Of another fold, in which nobody is ill: its low probabilities are no scores.
    (tmp_path / "result.json").write_text(json.dumps(result | {"learnt": ["well"]}))
    np.testing.assert_array_equal(Found.of_run(tmp_path, task).scores, [[np.nan, 0.75]] * 8)
