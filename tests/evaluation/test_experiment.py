"""Cells of an experiment: folds are joined in order, rows compared by the seeds that both have."""

import csv
import dataclasses
import json
import types

import numpy as np
import pytest

from cryjax.command.errors import UserError
from cryjax.data.records import Index
from cryjax.evaluation import bootstrap, experiment, judge, tasks
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
    intervals = {"macro_auc": [0.2, 0.8], "f1": [None, None], "accuracy": [1.0, 1.0]}
    still = judge.unvarying({"intervals": intervals})
    assert len(still) == 1 and still[0].startswith("accuracy:")
    warnings = ["no class hurt", *few, *still]
    result = {"scored": "test", "n_train": 5, "warnings": warnings, "learnt": ["ill", "well"]}
    result["intervals"] = intervals
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


def test_a_fine_tuned_seed_that_lacks_a_fold_is_left_out_and_a_probe_has_all_in_one():
    cells = {
        Cell("scratch", "finetune", "a", 1.0, seed, fold): found(range(10 * fold, 10 * fold + 10))
        for seed, fold in ((0, 0), (0, 1), (1, 0))
    }
    cells[Cell("scratch", "probe", "a", 1.0, 0)] = found(range(20))
    seeds = experiment.by_seed(cells, {"a": 2})
    assert {key[1]: [*parts] for key, parts in seeds.items()} == {"finetune": [0], "probe": [0]}
    assert len(seeds["scratch", "finetune", "a", 1.0][0].true) == 20


def test_fine_tuning_is_compared_by_seed_with_all_labels_too():
    """Its seeds are runs that differ in more than an encoder, unlike a probe's."""
    cells = {Cell("scratch", "finetune", "a", 1.0, seed): found(range(30), seed) for seed in (0, 1)}
    cells[Cell("simclr", "finetune", "a", 1.0, 0)] = found(range(30))
    _, simclr = experiment.lines(experiment.by_seed(cells, {"a": 1}), CONFIG)
    assert simclr.difference["macro_auc"].value == 0.0


def test_a_line_says_of_how_many_seeds_and_recordings_it_is_and_what_its_scores_are():
    cells = {
        Cell("scratch", method, "a", 0.5, seed): dataclasses.replace(
            found(range(30)), trained=10.0 + 2 * seed, scores=np.full((30, 3), 1 / 3)
        )
        for method in ("probe", "finetune")
        for seed in (0, 1, 2)
    }
    made = experiment.lines(experiment.by_seed(cells, {"a": 1}), CONFIG)
    assert [(line.seeds, line.n_train) for line in made] == [(3, 12)] * 2
    drawn = [
        experiment.lines(
            {("scratch", "probe", "a", 1.0): {0: found(range(30))}},
            types.SimpleNamespace(resamples=20, fold_seed=seed),
        )[0].metrics["macro_auc"].interval
        for seed in (0, 1, 1)
    ]  # fmt: skip
    assert drawn[0] != drawn[1] == drawn[2]
    # Only a classifier's probabilities can be calibrated.
    assert ["calibration_error" in line.metrics for line in made] == [False, True]


def test_the_question_is_whether_simclr_is_better_than_supervision():
    config = types.SimpleNamespace(resamples=20, fold_seed=0, rows=("simclr", "supervised"))
    cells = {Cell("simclr", "probe", "a", 1.0, 0): found(range(30), 9.0)}
    cells[Cell("supervised", "probe", "a", 1.0, 0)] = found(range(30))
    (one,) = experiment.comparisons(experiment.by_seed(cells, {"a": 1}), config)
    assert (one.row, one.other) == ("simclr", "supervised")
    assert one.difference["macro_auc"].value > 0.1


def test_a_run_without_test_recordings_is_no_result(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({"scored": "validation"}))
    task = tasks.Task(types.SimpleNamespace(directory="DATA"), ("ill", "well"), False)
    with pytest.raises(UserError, match="DATA has no split 'test'"):
        Found.of_run(tmp_path, task)


def test_a_task_is_counted_in_labelled_recordings_not_in_their_segments():
    person = np.repeat(np.arange(6), 4)  # two recordings of two segments each
    labels = np.array(["ill", "well", "well", "", "well", "ill"])[person]
    whole = Index(
        np.full(24, "train"), np.arange(24), np.arange(24) // 2, labels, np.char.mod("s%d", person)
    )
    prepared = types.SimpleNamespace(index=lambda: whole)
    tested = dataclasses.replace(
        found(range(4)), true=np.array([0, 1, 1, 1]), subjects=np.array(["s0", "s1", "s1", "s2"])
    )
    counted = experiment.task_of("a", tasks.Task(prepared, ("ill", "well"), False), tested, 3)
    assert counted.folds == 3
    assert counted.held == ((4, 2, 1, 1), (6, 3, 3, 2))
    assert (counted.n_recordings, counted.n_subjects) == (10, 5)
    assert counted.majority_accuracy == 0.75
