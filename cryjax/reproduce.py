"""The paper's experiment on any data: rows x tasks x label fractions x seeds x folds, and a report.

    python -m cryjax.reproduce --config=configs/reproduce_smoke.py --workdir=TABLE

Rows: 'scratch'; 'supervised' and 'simclr' pre-training on general audio; and each of these again,
'+adapted', with SimCLR on unlabelled cries, from which the test subjects are left out. Each row is
probed and fine-tuned on each task. What is finished is not done again: stopped at any point, the
same command goes on. Writes table.md, table.csv, label_efficiency.png and report.html.
"""

import concurrent.futures
import csv
import dataclasses
import functools
import hashlib
import json
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import flax
import jax
import ml_collections
import numpy as np
import optax
import orbax.checkpoint as ocp
import sklearn
from absl import logging

from cryjax import __version__, finetune, linear_probe, pretrain
from cryjax.audio import frontend
from cryjax.command import config as config_lib
from cryjax.command import program
from cryjax.command.config import integer, one_of, text
from cryjax.command.errors import TooFewLabels, UserError
from cryjax.command.progress import Progress
from cryjax.data.records import Prepared, open_prepared, read_info
from cryjax.data.subjects import check_one_key
from cryjax.evaluation import experiment, figures, folds, probes, report, tables, tasks
from cryjax.evaluation.embeddings import Embeddings
from cryjax.evaluation.experiment import Cell, Found
from cryjax.training import checkpoints, simclr, supervised
from cryjax.training.workdir import Workdir, read_metrics, write_json

BASES = ("scratch", "supervised", "simclr")
ROWS = (*BASES, *(f"{base}+adapted" for base in BASES))
METHODS = ("probe", "finetune")
# What may be added to, or looked at in another way, in a work directory that has begun.
LEFT = ("data/*", "runs/*", "embeddings/*", "cells/*", "tuned/*")
MAY_CHANGE = ("title", "rows", "probe.fractions", "probe.seeds", "finetune.", "resamples")


def _fractions(x: Any) -> bool:
    return bool(x) and all(isinstance(f, int | float) and 0 < f <= 1 for f in x)


_SEEDS = config_lib.Rule(
    lambda x: isinstance(x, tuple) and all(type(s) is int and s >= 0 for s in x),
    "a tuple of whole numbers from 0 up, as (0, 1)",
)
_FRACTIONS = config_lib.Rule(
    lambda x: isinstance(x, tuple) and _fractions(x), "a tuple of shares up to 1, as (0.1, 1.0)"
)


RULES = {
    "title": text(required="a title"),
    "general": text(),
    "labelled": text(),
    "unlabelled": text(),
    "rows": config_lib.Rule(
        lambda x: isinstance(x, tuple) and bool(x) and all(row in ROWS for row in x),
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
        recipe = config.get(name)
        if not isinstance(recipe, ml_collections.ConfigDict):
            raise UserError(f"config.{name} is missing; give it a recipe of configs/")
        recipe = recipe.copy_and_resolve_references()
        with recipe.ignore_type():
            recipe.data = "given by the experiment"
        _check_part(name, recipe, rules)
    rest = {name: value for name, value in config.items() if name not in (*RECIPES, "tasks")}
    config_lib.validate(rest, RULES)
    if not isinstance(config.get("tasks"), ml_collections.ConfigDict) or not config.tasks:
        raise UserError("config.tasks is missing; give each task its data, as configs/ has them")
    for task, described in config.tasks.items():
        if not isinstance(described, ml_collections.ConfigDict):
            said = config_lib.shown(described)
            raise UserError(f"config.tasks.{task}={said}: give it 'data' and 'positive'")
        if not task.replace("_", "").isalnum():
            raise UserError(f"config.tasks.{task}: name a task by letters, digits and '_'")
        rules = {"data": text(required="data with labels"), "positive": text()}
        _check_part(f"tasks.{task}", described, rules)
    needed = {
        "general": any(row.removesuffix("+adapted") != "scratch" for row in config.rows),
        "unlabelled": any(row.endswith("+adapted") for row in config.rows),
    }
    for name, needs in needed.items():
        if needs and not config[name]:
            raise UserError(
                f"config.{name} is missing, and config.rows need it; give a prepared dataset, or "
                f'flags of prepare, as --config.{name}="--manifest=FILE.csv"'
            )
    for name in ("adapt", "supervised", "tune"):
        for field in ("encoder", "front_end", "crop.seconds"):
            ours, theirs = (_field(config[part], field) for part in ("pretrain", name))
            if ours != theirs:
                raise UserError(
                    f"config.pretrain.{field} and config.{name}.{field} differ "
                    f"({config_lib.shown(ours)}, {config_lib.shown(theirs)}); "
                    "all rows have one encoder: make them equal"
                )


def _check_part(name: str, part: Any, rules: Mapping[str, config_lib.Rule]) -> None:
    """Checks a part of the config; what is wrong is named by its place in the whole."""
    try:
        config_lib.validate(part, rules)
    except UserError as error:
        raise UserError(str(error).replace("config.", f"config.{name}.", 1)) from error


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
        self.notes += [
            f"{name}: {line}"
            for line in done.stdout.splitlines()
            if line.startswith(("caveat", "licence", "skipped", "of these"))
        ]
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if "error:" in line]
            raise UserError(f"preparing '{name}' failed: {said[-1] if said else done.stderr}")
        return open_prepared(out)

    @functools.cached_property
    def general(self) -> Prepared:
        return self.data("general", self.config.general)

    @functools.cached_property
    def labelled(self) -> Prepared:
        described = self.config.labelled
        return self.data("labelled", described) if described else self.general

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

    def folds(self, task: str) -> int:
        """How often a task is divided: by config.folds, or by its own splits."""
        index = self.tasks[task].prepared.index()
        own = set(index.splits[index.labels != ""])
        return self.config.folds or (len(own) if folds.has_own_folds(own) else 1)

    @functools.cached_property
    def tested(self) -> dict[str, set[str]]:
        """What holds test subjects, as `pretrain` takes it -> those subjects.

        With folds every labelled subject is tested in one of them.
        """
        named = [
            f"{task.prepared.directory}{'' if self.folds(name) > 1 else ':test'}"
            for name, task in self.tasks.items()
        ]
        return {name: folds.subjects_of(name) for name in named}

    def excluded(self, prepared: Prepared) -> str:
        """The part of `tested` that a dataset to train on without labels holds."""
        held = set(prepared.index().subjects)
        return ",".join(name for name, subjects in self.tested.items() if subjects & held)

    def open(self) -> None:
        """Opens all data, so that a mistake in the last of them is told before hours of training.

        Raises:
          UserError: where one is missing, at another rate, or has labels of test subjects.
        """
        rate = frontend.resolve(self.config.pretrain.front_end).sample_rate
        rows = self.config.rows
        used = {name: task.prepared for name, task in self.tasks.items()}
        if any(row.startswith("simclr") for row in rows):
            used["general"] = self.general
        if any(row.startswith("supervised") for row in rows):
            used["labelled"] = self.labelled
        if any(row.endswith("+adapted") for row in rows):
            used["unlabelled"] = self.unlabelled
        for name, prepared in used.items():
            if "," in str(prepared.directory) or ":" in str(prepared.directory):
                raise UserError(
                    f"{prepared.directory}: ',' and ':' in a path would be read as a list; take "
                    "another --workdir, or another folder of data"
                )
            if prepared.sample_rate != rate:
                raise UserError(
                    f"{name}, {prepared.directory}, is at {prepared.sample_rate} Hz and "
                    f"config.pretrain.front_end at {rate} Hz; prepare it with --sample_rate={rate}"
                )
        check_one_key({str(p.directory): p.subject_key for p in used.values()})
        everybody = set().union(*self.tested.values())
        if "labelled" in used:
            known = everybody & set(self.labelled.index("train").subjects)
            if known:
                raise UserError(
                    f"{len(known)} test subject(s), as {sorted(known)[0]!r}, are in the labelled "
                    "data of supervised pre-training; leave them out (prepare --exclude)"
                )
        if "unlabelled" in used and not self.excluded(self.unlabelled):
            self.notes.append(
                "no test subject is named in the unlabelled recordings, so none was left out of "
                "adaptation: they have to be other people's"
            )
        self._recognise(used)
        self.used = used

    def _recognise(self, used: Mapping[str, Prepared]) -> None:
        """Raises UserError where a dataset is no longer what the folder's cells were made of."""
        file = self.folder / "datasets.json"
        before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        now = {}
        for name, prepared in used.items():
            info = json.dumps(read_info(prepared.directory), sort_keys=True)
            now[name] = hashlib.sha256(info.encode()).hexdigest()
            if before.get(name, now[name]) != now[name]:
                raise UserError(
                    f"'{name}', {prepared.directory}, was prepared anew since {self.folder} was "
                    "begun; take another --workdir"
                )
        write_json(file, before | now)

    def encoder(self, row: str) -> str:
        """The work directory of a row's encoder, trained if it is not yet; '' from scratch."""
        if row == "scratch":
            return ""
        base = row.removesuffix("+adapted")
        path = self.folder / "runs" / row
        if (path / "result.json").exists():
            return str(path)
        if row != base:
            excluded = self.excluded(self.unlabelled)
            init = self.encoder(base)
            pretrain.run(
                self._recipe("adapt", self.unlabelled, init=init, exclude_subjects=excluded),
                str(path),
            )
        elif base == "simclr":
            excluded = self.excluded(self.general)
            pretrain.run(
                self._recipe("pretrain", self.general, exclude_subjects=excluded), str(path)
            )
        else:
            finetune.run(self._recipe("supervised", self.labelled), str(path))
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
        experiment.save_arrays(path, {"splits": splits, **dataclasses.asdict(found)})
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
                            for fold in range(self.folds(task))
                        ]
        return found

    def find(self, cell: Cell, device: jax.Device) -> Found | str:
        """What a cell says; or why not, as where there are too few labels for it."""
        try:
            return self._probe(cell) if cell.method == "probe" else self._finetune(cell, device)
        except TooFewLabels as error:
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
        if result["scored"] != "test":
            raise UserError(
                f"{task.prepared.directory} has no split 'test'; prepare it with "
                "--splits=train=0.8,test=0.2, or take config.folds=5"
            )
        with (path / "predictions.csv").open(encoding="utf-8", newline="") as file:
            _, *rows = csv.reader(file)
        recordings, subjects, labels, *scores = zip(*rows, strict=True)
        return Found(
            np.array(recordings, int),
            task.true(np.array(labels)),
            np.array(scores, float).T,
            np.array(subjects),
            float(result["n_train"]),
            np.array(result["warnings"], str),
        )

    def run(self) -> dict[Cell, Found]:
        """All cells, those of several devices side by side."""
        self.open()
        # What many share comes first and has all devices.
        with Progress("encoder", len(self.config.rows), unit="encoders") as rows:
            for row in self.config.rows:
                rows.say(row)
                self.encoder(row)
                for task in self.tasks:
                    self.embeddings(row, task)
                rows.update()
        cells = self.cells()
        found: dict[Cell, Found | str] = {}
        free = list(self._devices)
        with Progress("cell", len(cells), unit="cells") as bar:

            def compute(cell: Cell) -> None:
                bar.note(cell.name)
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


def assemble(study: Study, cells: Mapping[Cell, Found]) -> tables.Experiment:
    """What the cells say, as the report takes it."""
    config, folder = study.config, study.folder
    counted = {name: study.folds(name) for name in study.tasks}
    seeds = experiment.by_seed(cells, counted)
    if not seeds:
        raise UserError(f"no cell could be computed: {'; '.join(study.notes[:3])}")
    notes, described = dict.fromkeys(study.notes), []
    for name, task in study.tasks.items():
        found = [one for key, of_key in seeds.items() if key[2] == name for one in of_key.values()]
        if found:
            described.append(experiment.task_of(name, task, found[0]))
            notes |= dict.fromkeys(f"{name}: {said}" for one in found for said in one.warnings)
    first = {key: next(iter(found.values())) for key, found in seeds.items() if key[3] == 1}
    runs = sorted((folder / "runs").glob("*"))
    versions = {module.__name__: module.__version__ for module in (jax, flax, optax, np, sklearn)}
    return tables.Experiment(
        title=config.title,
        synthetic=any(prepared.synthetic for prepared in study.used.values()),
        tasks=tuple(described),
        lines=tuple(experiment.lines(seeds, config)),
        comparisons=tuple(experiment.comparisons(seeds, config)),
        scores={
            key[:3]: tables.Scores(one.true, one.scores, one.subjects) for key, one in first.items()
        },
        embeddings={
            (row, name): _map(study.embeddings(row, name)[0])
            for row in dict.fromkeys((config.rows[0], config.rows[-1]))
            for name in study.tasks
        },
        training={run.name: read_metrics(run / "metrics.jsonl") for run in runs},
        configs={"experiment": config_lib.to_dict(config)},
        versions={
            "cryjax": __version__,
            **versions,
            "orbax-checkpoint": ocp.__version__,
            "python": platform.python_version(),
            "device": jax.devices()[0].device_kind,
        },
        data=tuple(experiment.counts(study.used)),
        commands=(shlex.join(["python", "-m", "cryjax.reproduce", *sys.argv[1:]]),),
        notes=tuple(notes),
    )


def _map(found: Embeddings) -> tables.EmbeddingSet:
    return tables.EmbeddingSet(found.features, found.labels, found.subjects)


def main(config: Any, folder: str) -> None:
    check(config)
    home = pathlib.Path(folder).absolute()
    workdir = Workdir(home, config_lib.to_dict(config), may_change=MAY_CHANGE, left=LEFT)
    logging.set_verbosity(logging.WARNING)  # each run would say what it loads
    study = Study(config, home)
    whole = assemble(study, study.run())
    for note in whole.notes:
        logging.warning("%s", note)
    tables.write_csv(whole, home / "table.csv")
    tables.write_markdown(whole, home / "table.md")
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
