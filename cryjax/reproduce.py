"""The paper's experiment on any data: rows x tasks x label fractions x seeds x folds, and a report.

    python -m cryjax.reproduce --config=configs/reproduce_smoke.py --workdir=TABLE

Rows: 'scratch'; 'supervised' and 'simclr', pre-trained on general audio; and each of these with
'+adapted', trained further with SimCLR on unlabelled cries without the test subjects. Each row is
probed, fine-tuned, or both, on each task. Finished work is not repeated: stopped at any point, the
same command resumes. Writes table.md, table.csv, label_efficiency.png and report.html.
"""

import concurrent.futures
import dataclasses
import json
import pathlib
import shlex
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from cryjax import finetune, linear_probe, pretrain
from cryjax.audio import frontend
from cryjax.command import config as config_lib
from cryjax.command import program
from cryjax.command.errors import TooFewLabels, UserError
from cryjax.command.files import write_json
from cryjax.command.progress import Progress
from cryjax.data.records import Prepared
from cryjax.evaluation import bootstrap, experiment, probes, report, results, tables
from cryjax.evaluation.datasets import Datasets
from cryjax.evaluation.embeddings import Embeddings
from cryjax.evaluation.experiment import Cell, Found
from cryjax.evaluation.figures.experiment import label_efficiency_figure
from cryjax.evaluation.recipe import check, part_of_config
from cryjax.training import recipe, simclr, start
from cryjax.training.stopping import Stop, Stopped
from cryjax.training.trained import load_pretrained, untrained
from cryjax.training.workdir import Workdir, read_metrics

# Signs of a begun experiment; not prepared data, which depend only on what `prepare` checks.
LEFT = ("runs/*", "embeddings/*", "cells/*", "tuned/*")
# Fields that may change on resuming: they add to the experiment, or show it in another way.
MAY_CHANGE = ("title", "rows", "probe.fractions", "probe.seeds", "finetune.", "resamples")


class Study:
    """The runs of an experiment in its folder. What exists already is not computed again."""

    def __init__(self, config: Any, folder: pathlib.Path, stop: Stop):
        self.config = config
        self.folder = folder
        self._stop = stop
        self.data = Datasets(config, folder)
        self.notes: list[str] = []
        self._devices = jax.local_devices()

    def encoder(self, row: str) -> str:
        """The work directory of a row's encoder, trained if it is not yet; '' for 'scratch'."""
        if row == "scratch":
            return ""
        base = row.removesuffix("+adapted")
        path = self.folder / "runs" / row
        if (path / "result.json").exists():
            return str(path)
        if row != base:
            excluded = self.data.excluded(self.data.unlabelled)
            init = self.encoder(base)
            pretrain.run(
                self._recipe("adapt", self.data.unlabelled, init=init, exclude_subjects=excluded),
                str(path),
                stop=self._stop,
            )
        elif base == "simclr":
            excluded = self.data.excluded(self.data.general)
            pretrain.run(
                self._recipe("pretrain", self.data.general, exclude_subjects=excluded),
                str(path),
                stop=self._stop,
            )
        else:
            finetune.run(self._recipe("supervised", self.data.labelled), str(path), stop=self._stop)
        jax.clear_caches()
        return str(path)

    def _recipe(self, name: str, prepared: Prepared, **fields: Any) -> Any:
        found = self.config[name].copy_and_resolve_references()
        found.update({"data": str(prepared.directory), **fields})
        return found

    def embeddings(self, row: str, task: str, seed: int) -> tuple[Embeddings, np.ndarray]:
        """A task's labelled recordings embedded by a row's encoder, and their splits.

        Only that of 'scratch' depends on the seed, which initialises it.
        """
        name = f"{row}-{task}-{seed}" if row == "scratch" else f"{row}-{task}"
        path = self.folder / "embeddings" / f"{name}.npz"
        if path.exists():
            with np.load(path, allow_pickle=False) as kept:
                parts = dict(kept)
            splits = parts.pop("splits")
            return Embeddings(**parts), splits
        tune = self.config.tune
        pretrained = (
            untrained(
                tune.encoder.to_dict(),
                frontend.resolve(tune.front_end),
                tune.crop.seconds,
                seed,
            )
            if row == "scratch"
            else load_pretrained(self.encoder(row))
        )
        found, splits = linear_probe.embed(pretrained, self.data.tasks[task].prepared, 64)
        experiment.save_arrays(path, {"splits": splits, **dataclasses.asdict(found)})
        return found, splits

    def cells(self) -> list[Cell]:
        """All cells to compute, cheap ones first."""
        config, found = self.config, []
        for row in config.rows:
            for task in self.data.tasks:
                for fraction in config.probe.fractions:
                    # With all labels, the seed has no effect on the probe of a trained encoder.
                    alike = fraction == 1 and row != "scratch"
                    seeds = config.probe.seeds[:1] if alike else config.probe.seeds
                    found += [Cell(row, "probe", task, fraction, seed) for seed in seeds]
        for row in config.rows:
            for task in self.data.tasks:
                for fraction in config.finetune.fractions:
                    for seed in config.finetune.seeds:
                        found += [
                            Cell(row, "finetune", task, fraction, seed, fold)
                            for fold in range(self.data.folds(task))
                        ]
        return found

    def find(self, cell: Cell, device: jax.Device) -> Found | str:
        """The result of a cell; or why there is none, if it has too few labels."""
        try:
            return self._probe(cell) if cell.method == "probe" else self._finetune(cell, device)
        except TooFewLabels as error:
            return str(error)

    def _probe(self, cell: Cell) -> Found:
        name = f"{cell.row}-{cell.fraction:g}-{cell.seed}.npz"
        path = self.folder / "cells" / cell.task / name
        if path.exists():
            return Found.load(path)
        embedded, splits = self.embeddings(cell.row, cell.task, cell.seed)
        result = probes.probe(
            embedded.features,
            self.data.tasks[cell.task].true(embedded.labels),
            embedded.subjects,
            classifier=self.config.probe.classifier,
            folds=self.config.folds,
            splits=None if self.config.folds else splits,
            seed=self.config.fold_seed,
            fraction=cell.fraction,
            label_seed=cell.seed,
            classes=self.data.tasks[cell.task].classes,
            recordings=embedded.recordings,
        )
        recordings = embedded.recordings[result.rows]
        found = Found(
            recordings,
            result.true,
            result.scores,
            result.subjects,
            result.trained,
            np.array(result.warnings, str),
        )
        found.save(path)
        return found

    def _finetune(self, cell: Cell, device: jax.Device) -> Found:
        path = self.folder / "tuned" / cell.task / cell.row
        path = path / f"{cell.fraction:g}-{cell.seed}-{cell.fold}"
        task = self.data.tasks[cell.task]
        if not (path / "result.json").exists():
            tune = self._recipe(
                "tune",
                task.prepared,
                init=self.encoder(cell.row),
                positive=self.config.tasks[cell.task].positive,
                label_fraction=float(cell.fraction),
                label_seed=cell.seed,
                seed=cell.seed,
                folds=self.config.folds,
                fold=cell.fold,
                fold_seed=self.config.fold_seed,
            )
            finetune.run(tune, str(path), devices=[device], stop=self._stop)
            if len(self._devices) == 1:  # or it would clear what other threads are about to use
                jax.clear_caches()
        return Found.of_run(path, task)

    def _check_recipes(self) -> None:
        """Raises UserError if a recipe does not fit its data, before another trains for hours."""
        config, used = self.config, self.data.used
        for part, name in (("pretrain", "general"), ("adapt", "unlabelled")):
            if name in used:
                examples = self.data.examples(used[name], config[part].split)
                with part_of_config(part):
                    simclr.check_batch(config[part], examples, len(self._devices))
                    recipe.plan(config[part], examples)
        supervised = ["labelled"] if "labelled" in used else []
        tuned = self.data.tasks if config.finetune.fractions else []
        for part, names in (("supervised", supervised), ("tune", tuned)):
            for name in names:
                with part_of_config(part):
                    recipe.plan(config[part], len(used[name].index()))

    def run(self) -> dict[Cell, Found]:
        """Computes all cells, on several devices in parallel."""
        self.data.open()
        for note in self.data.notes:
            logging.warning("%s", note)
        self._check_recipes()
        # What many cells share comes first, on all devices.
        with Progress("encoder", len(self.config.rows), unit="encoders") as rows:
            for row in self.config.rows:
                self._stop.check()
                rows.say(row)
                self.encoder(row)
                for task in self.data.tasks:
                    for seed in self.config.probe.seeds if row == "scratch" else [0]:
                        self.embeddings(row, task, seed)
                rows.update()
        cells = self.cells()
        found: dict[Cell, Found | str] = {}
        free = list(self._devices)
        with Progress("cell", len(cells), unit="cells") as bar:

            def compute(cell: Cell) -> None:
                self._stop.check()
                bar.note(cell.name)
                device = free.pop()
                found[cell] = self.find(cell, device)
                free.append(device)
                bar.update()

            if len(free) == 1:  # in this thread, where a signal can stop it cleanly
                for cell in cells:
                    compute(cell)
            else:
                with concurrent.futures.ThreadPoolExecutor(len(free)) as pool:
                    list(pool.map(compute, cells))
        missing: dict[str, list[str]] = {}  # reason -> names of cells
        for cell in cells:
            if isinstance(reason := found[cell], str):
                missing.setdefault(reason, []).append(cell.name)
        for reason, names in missing.items():
            more = f" and {len(names) - 1} more" * (len(names) > 1)
            self.notes.append(f"{names[0]}{more}: {reason}")
        return {cell: what for cell in cells if isinstance(what := found[cell], Found)}


def other_code(folder: pathlib.Path) -> list[str]:
    """A note if results in the folder may have been computed by other code than this."""
    file, now = folder / "code.json", start.inputs_of("")
    if not file.exists():
        write_json(file, now)
    changed = config_lib.differences(json.loads(file.read_text(encoding="utf-8")), now)
    if not changed:
        return []
    return [
        f"some numbers may come from different code than the rest ({'; '.join(changed)}); use "
        "another --workdir to have all from one"
    ]


def assemble(study: Study, cells: Mapping[Cell, Found]) -> results.Experiment:
    """Assembles the results of the cells for the report."""
    config, folder = study.config, study.folder
    notes = dict.fromkeys([*study.data.notes, *study.notes])
    counted = {name: study.data.folds(name) for name in study.data.tasks}
    seeds = experiment.by_seed(cells, counted)
    if not seeds:
        raise UserError(f"no cell could be computed: {'; '.join([*notes][:3])}")
    described = []
    for name, task in study.data.tasks.items():
        found = [one for key, of_key in seeds.items() if key[2] == name for one in of_key.values()]
        if found:
            described.append(experiment.task_of(name, task, found[0], counted[name]))
            few = bootstrap.cautions(found[0].true, found[0].subjects, task.classes)
            told = [*few, *(warning for one in found for warning in one.warnings)]
            known = task.prepared.cautions  # already in the datasets' notes
            notes |= dict.fromkeys(f"{name}: {warning}" for warning in told if warning not in known)
    first = {key: next(iter(found.values())) for key, found in seeds.items() if key[3] == 1}
    # Not those of rows that an earlier command had.
    needed = {name for row in config.rows for name in (row, row.removesuffix("+adapted"))}
    runs = [run for run in sorted((folder / "runs").glob("*")) if run.name in needed]
    return results.Experiment(
        title=config.title,
        synthetic=any(prepared.synthetic for prepared in study.data.used.values()),
        tasks=tuple(described),
        lines=tuple(experiment.lines(seeds, config)),
        comparisons=tuple(experiment.comparisons(seeds, config)),
        scores={key[:3]: results.Scores(one.true, one.scores) for key, one in first.items()},
        embeddings={
            (row, name): study.embeddings(row, name, config.probe.seeds[0])[0]
            for row in dict.fromkeys((config.rows[0], config.rows[-1]))
            for name in study.data.tasks
        },
        training={run.name: read_metrics(run / "metrics.jsonl") for run in runs},
        configs={"experiment": config_lib.to_dict(config)},
        versions=experiment.versions(),
        data=tuple(experiment.counts(study.data.used)),
        commands=(shlex.join(["python", "-m", "cryjax.reproduce", *sys.argv[1:]]),),
        notes=tuple(notes),
    )


def main(config: Any, folder: str) -> None:
    check(config)
    home = pathlib.Path(folder).absolute()
    workdir = Workdir(home, config_lib.to_dict(config), may_change=MAY_CHANGE, left=LEFT)
    logging.set_verbosity(logging.WARNING)  # or each run logs what it loads
    with Stop() as stop:
        study = Study(config, home, stop)
        study.notes += other_code(home)
        try:
            whole = assemble(study, study.run())
        except (Stopped, KeyboardInterrupt):
            logging.warning("stopping: finished work is kept; the same command resumes")
            raise Stopped from None
    for note in whole.notes:
        if note not in study.data.notes:  # those were logged at the start
            logging.warning("%s", note)
    tables.write_csv(whole, home / "table.csv")
    tables.write_markdown(whole, home / "table.md")
    label_efficiency_figure(
        home / "label_efficiency.png",
        whole.lines,
        whole.tasks,
        note="synthetic data" if whole.synthetic else "",
    )
    report.write_report(whole, home / "report.html")
    workdir.result({"cells": len(whole.lines), "synthetic": whole.synthetic})
    print((home / "table.md").read_text(encoding="utf-8"))
    print(f"{home}: table.md, table.csv, label_efficiency.png, report.html")


if __name__ == "__main__":
    program.run_recipe(
        main,
        None,
        recipe="Recipe, such as configs/reproduce_smoke.py.",
        workdir="Folder of the experiment; an existing one is resumed.",
    )
