"""The paper's experiment on any data: rows x tasks x label fractions x seeds x folds, and a report.

    python -m cryjax.reproduce --config=configs/reproduce_smoke.py --workdir=TABLE

Rows: 'scratch'; 'supervised' and 'simclr' pre-training on general audio; and each of these again
with SimCLR adaptation on unlabelled cries, from which the test subjects are left out. Each row is
probed and fine-tuned on each task. What is finished is not done again: stopped at any point, the
same command goes on. Writes table.md, table.csv, label_efficiency.png and report.html.
"""

import concurrent.futures
import csv
import dataclasses
import functools
import json
import os
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import tqdm
from absl import logging

from cryjax import __version__, finetune, linear_probe, pretrain
from cryjax.audio import frontend
from cryjax.command import config as config_lib
from cryjax.command import program
from cryjax.command.config import integer, one_of, text
from cryjax.command.errors import UserError
from cryjax.data.records import Prepared, open_prepared
from cryjax.evaluation import experiment, figures, folds, probes, report, tasks
from cryjax.evaluation.embeddings import Embeddings
from cryjax.evaluation.experiment import Cell, Found
from cryjax.training import checkpoints, simclr, supervised
from cryjax.training.workdir import Workdir, read_metrics

ROWS = ("scratch", "supervised", "simclr", "supervised+adapted", "simclr+adapted")
METHODS = ("probe", "finetune")
# What may be added to, or looked at in another way, in a work directory that has begun.
MAY_CHANGE = ("title", "rows", "probe.fractions", "probe.seeds", "finetune.", "resamples")


def _fractions(x: Any) -> bool:
    return bool(x) and all(isinstance(f, int | float) and 0 < f <= 1 for f in x)


_SEEDS = config_lib.Rule(
    lambda x: isinstance(x, tuple) and all(isinstance(s, int) for s in x), "a tuple as (0, 1)"
)
_FRACTIONS = config_lib.Rule(
    lambda x: isinstance(x, tuple) and _fractions(x), "a tuple of shares up to 1, as (0.1, 1.0)"
)


RULES = {
    "title": text(required="a title"),
    "general": text(required="data as --manifest=GENERAL.csv, or a prepared dataset"),
    "unlabelled": text(required="data as --manifest=CRIES.csv, or a prepared dataset"),
    "rows": config_lib.Rule(
        lambda x: isinstance(x, tuple) and bool(x) and set(x) <= set(ROWS),
        "a tuple of " + ", ".join(ROWS),
    ),
    "folds": config_lib.FOLDS,
    "fold_seed": integer(),
    "resamples": integer(1),
    **{f"{method}.fractions": _FRACTIONS for method in METHODS},
    **{f"{method}.seeds": _SEEDS for method in METHODS},
    "probe.classifier": one_of("ridge", "logistic"),
}
# Recipes within the config, each with the rules of its program.
RECIPES = {
    "pretrain": simclr.RULES,
    "adapt": simclr.RULES,
    "supervised": supervised.RULES,
    "tune": supervised.RULES,
}


def check(config: Any) -> None:
    """Raises UserError where a field, or a recipe in the config, is not as its program takes it."""
    for name, rules in RECIPES.items():
        if name not in config:
            raise UserError(f"config.{name} is missing; give it a recipe of configs/")
        recipe = config[name].copy_and_resolve_references()
        recipe.data = "given by the experiment"
        try:
            config_lib.validate(recipe, rules)
        except UserError as error:
            raise UserError(str(error).replace("config.", f"config.{name}.", 1)) from error
    if not config.get("tasks"):
        raise UserError("config.tasks is missing; give each task its data, as configs/ has them")
    for task, described in config.tasks.items():
        if not task.replace("_", "").isalnum():
            raise UserError(f"config.tasks.{task}: name a task by letters, digits and '_'")
        config_lib.validate(
            described, {"data": text(required="data with labels"), "positive": text()}
        )
    rest = {name: value for name, value in config.items() if name not in (*RECIPES, "tasks")}
    config_lib.validate(rest, RULES)
    for name in ("adapt", "supervised", "tune"):
        for field in ("encoder", "front_end", "crop.seconds"):
            ours, theirs = (_field(config[part], field) for part in ("pretrain", name))
            if ours != theirs:
                raise UserError(
                    f"config.pretrain.{field} and config.{name}.{field} differ ({ours}, {theirs}); "
                    "all rows have one encoder: make them equal"
                )


def _field(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = config[part]
    return config


class Study:
    """The runs of an experiment in its folder. What is there already is not made again."""

    def __init__(self, config: Any, folder: pathlib.Path):
        self.config = config
        self.folder = folder
        self.notes: list[str] = []
        self._devices = jax.local_devices()

    def data(self, name: str, described: str) -> Prepared:
        """A prepared dataset: given as one, or as what `prepare` makes it of."""
        if not described.startswith("--"):
            return open_prepared(described)
        out = self.folder / "data" / name
        rate = frontend.resolve(self.config.pretrain.front_end).sample_rate
        command = [sys.executable, "-m", "cryjax.prepare", *shlex.split(described)]
        done = subprocess.run(
            [*command, f"--out={out}", f"--sample_rate={rate}"],
            text=True,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if "error:" in line]
            raise UserError(f"preparing '{name}' failed: {said[-1] if said else done.stderr}")
        return open_prepared(out)

    @functools.cached_property
    def general(self) -> Prepared:
        return self.data("general", self.config.general)

    @functools.cached_property
    def unlabelled(self) -> Prepared:
        return self.data("unlabelled", self.config.unlabelled)

    @functools.cached_property
    def tasks(self) -> dict[str, tasks.Task]:
        """The tasks by name."""
        found = {}
        for name, described in self.config.tasks.items():
            prepared = self.data(name, described.data)
            recipe = self.config.tune.copy_and_resolve_references()
            recipe.update({"positive": described.positive, "task": "single"})
            found[name] = tasks.open_task(recipe, prepared.index(), prepared)
        return found

    def excluded(self) -> str:
        """The test subjects that the unlabelled recordings hold, as `pretrain` takes them.

        With folds every labelled subject is tested in one of them.
        """
        split = "" if self.config.folds else ":test"
        named = ",".join(f"{task.prepared.directory}{split}" for task in self.tasks.values())
        held = set(self.unlabelled.index(self.config.adapt.split).subjects)
        return named if folds.subjects_of(named) & held else ""

    def encoder(self, row: str) -> str:
        """The work directory of a row's encoder, trained if it is not yet; '' from scratch."""
        if row == "scratch":
            return ""
        base = row.removesuffix("+adapted")
        path = self.folder / "runs" / row
        if (path / "result.json").exists():
            return str(path)
        if row != base:
            recipe = self._recipe("adapt", self.unlabelled, init=self.encoder(base))
            recipe.exclude_subjects = self.excluded()
            pretrain.run(recipe, str(path))
        elif base == "simclr":
            pretrain.run(self._recipe("pretrain", self.general), str(path))
        else:
            finetune.run(self._recipe("supervised", self.general), str(path))
        jax.clear_caches()
        return str(path)

    def _recipe(self, name: str, prepared: Prepared, **fields: Any) -> Any:
        recipe = self.config[name].copy_and_resolve_references()
        recipe.update({"data": str(prepared.directory), **fields})
        return recipe

    def embeddings(self, row: str, task: str) -> tuple[Embeddings, np.ndarray]:
        """A task's labelled recordings by a row's encoder, and the split of each."""
        path = self.folder / "embeddings" / f"{row}-{task}.npz"
        if path.exists():
            with np.load(path, allow_pickle=False) as kept:
                parts = dict(kept)
            splits = parts.pop("splits")
            return Embeddings(**parts), splits
        tune = self.config.tune
        pretrained = (
            checkpoints.untrained(
                tune.encoder.to_dict(),
                frontend.resolve(tune.front_end),
                tune.crop.seconds,
                tune.seed,
            )
            if row == "scratch"
            else checkpoints.load_pretrained(self.encoder(row))
        )
        found, splits = linear_probe.embed(pretrained, self.tasks[task].prepared, 64)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez_compressed(file, splits=splits, **dataclasses.asdict(found))
        partial.replace(path)
        return found, splits

    def cells(self) -> list[Cell]:
        """All that is to be known, cheap things first."""
        config, found = self.config, []
        for row in config.rows:
            for task in self.tasks:
                for fraction in config.probe.fractions:
                    # With all labels a probe has nothing to draw by chance.
                    seeds = config.probe.seeds[:1] if fraction == 1 else config.probe.seeds
                    found += [Cell(row, "probe", task, fraction, seed) for seed in seeds]
        for row in config.rows:
            for task in self.tasks:
                for fraction in config.finetune.fractions:
                    for seed in config.finetune.seeds:
                        found += [
                            Cell(row, "finetune", task, fraction, seed, fold)
                            for fold in range(max(config.folds, 1))
                        ]
        return found

    def find(self, cell: Cell, device: jax.Device) -> Found | str:
        """What a cell says; or why not, as where there are too few labels for it."""
        try:
            return self._probe(cell) if cell.method == "probe" else self._finetune(cell, device)
        except UserError as error:
            return str(error)

    def _probe(self, cell: Cell) -> Found:
        name = f"{cell.row}-{cell.fraction:g}-{cell.seed}.npz"
        path = self.folder / "cells" / cell.task / name
        if path.exists():
            return Found.load(path)
        embedded, splits = self.embeddings(cell.row, cell.task)
        result = probes.probe(
            embedded.features,
            self.tasks[cell.task].true(embedded.labels),
            embedded.subjects,
            classifier=self.config.probe.classifier,
            folds=self.config.folds,
            splits=None if self.config.folds else splits,
            seed=self.config.fold_seed,
            fraction=cell.fraction,
            label_seed=cell.seed,
        )
        recordings = embedded.recordings[result.rows]
        found = Found(recordings, result.true, result.scores, result.subjects, result.trained)
        found.save(path)
        return found

    def _finetune(self, cell: Cell, device: jax.Device) -> Found:
        path = self.folder / "tuned" / cell.task / cell.row
        path = path / f"{cell.fraction:g}-{cell.seed}-{cell.fold}"
        task = self.tasks[cell.task]
        if not (path / "result.json").exists():
            recipe = self._recipe(
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
            finetune.run(recipe, str(path), devices=[device])
            if len(self._devices) == 1:  # or it would clear what other threads are about to use
                jax.clear_caches()
        result = json.loads((path / "result.json").read_text(encoding="utf-8"))
        with (path / "predictions.csv").open(encoding="utf-8", newline="") as file:
            _, *rows = csv.reader(file)
        recordings, subjects, labels, *scores = zip(*rows, strict=True)
        return Found(
            np.array(recordings, int),
            task.true(np.array(labels)),
            np.array(scores, float).T,
            np.array(subjects),
            float(result["n_train"]),
        )

    def run(self) -> dict[Cell, Found]:
        """All cells, those of several devices side by side."""
        # What many share comes first and has all devices.
        rows = tqdm.tqdm(self.config.rows, desc="encoders", unit="row")
        for row in rows:
            rows.set_postfix_str(row)
            self.encoder(row)
            for task in self.tasks:
                self.embeddings(row, task)
        cells = self.cells()
        found: dict[Cell, Found | str] = {}
        free = list(self._devices)
        with tqdm.tqdm(total=len(cells), desc="cells", unit="cell") as bar:

            def compute(cell: Cell) -> None:
                bar.set_postfix_str(cell.name)
                device = free.pop()
                found[cell] = self.find(cell, device)
                free.append(device)
                bar.update()

            if len(free) == 1:  # in this thread, where a signal can stop it in order
                for cell in cells:
                    compute(cell)
            else:
                with concurrent.futures.ThreadPoolExecutor(len(free)) as pool:
                    list(pool.map(compute, cells))
        said = [(cell, found[cell]) for cell in cells]
        self.notes += [f"{cell.name}: {what}" for cell, what in said if isinstance(what, str)]
        return {cell: what for cell, what in said if isinstance(what, Found)}


def assemble(study: Study, cells: Mapping[Cell, Found]) -> report.Experiment:
    """What the cells say, as the report takes it."""
    config, folder = study.config, study.folder
    seeds = experiment.by_seed(cells, config.folds)
    if not seeds:
        raise UserError(f"no cell could be computed: {'; '.join(study.notes[:3])}")
    table = experiment.lines(seeds, config)
    whole = {key[:3]: found[0] for key, found in sorted(seeds.items(), key=lambda item: item[0][3])}
    described = []
    for name, task in study.tasks.items():
        tested = next(found[0] for key, found in seeds.items() if key[2] == name)
        described.append(experiment.task_of(name, task, tested))
        if described[-1].n_test_subjects < probes.FEW_SUBJECTS:
            study.notes.append(
                f"{name}: only {described[-1].n_test_subjects} test subjects; the intervals are "
                "rough, and say nothing of other people"
            )
    datasets = {
        "general": study.general,
        "unlabelled": study.unlabelled,
        **{name: task.prepared for name, task in study.tasks.items()},
    }
    training = {
        run.name: read_metrics(run / "metrics.jsonl") for run in sorted((folder / "runs").glob("*"))
    }
    embedded = {
        (row, name): report.EmbeddingSet(*_map(study.embeddings(row, name)[0]))
        for row in config.rows
        for name in study.tasks
    }
    return report.Experiment(
        title=config.title,
        synthetic=any(prepared.synthetic for prepared in datasets.values()),
        tasks=tuple(described),
        lines=tuple(table),
        scores={
            key: report.Scores(one.true, one.scores, one.subjects) for key, one in whole.items()
        },
        embeddings=embedded,
        training=training,
        configs={"experiment": config_lib.to_dict(config)},
        versions={"cryjax": __version__, "jax": jax.__version__, "numpy": np.__version__},
        data=tuple(experiment.counts(datasets)),
        commands=(shlex.join(["python", "-m", "cryjax.reproduce", *sys.argv[1:]]),),
        notes=tuple(study.notes),
    )


def _map(found: Embeddings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return found.features, found.labels, found.subjects


def main(config: Any, folder: str) -> None:
    check(config)
    home = pathlib.Path(folder).absolute()
    workdir = Workdir(
        home, config_lib.to_dict(config), may_change=MAY_CHANGE, left=("data/*", "runs/*")
    )
    # Cells differ in their data alone: what one compiled serves the others.
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(home / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    logging.set_verbosity(logging.WARNING)  # each run would say what it loads
    study = Study(config, home)
    whole = assemble(study, study.run())
    for note in whole.notes:
        logging.warning("%s", note)
    report.write_csv(whole, home / "table.csv")
    report.write_markdown(whole, home / "table.md")
    figures.label_efficiency_figure(
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
        recipe="Recipe, as configs/reproduce_smoke.py.",
        workdir="Folder of the experiment; one that began goes on.",
    )
