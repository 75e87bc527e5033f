"""The datasets of an experiment: opened, prepared first if need be, and cross-checked."""

import functools
import hashlib
import json
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from cryjax.audio import frontend
from cryjax.command.errors import UserError
from cryjax.command.files import write_json
from cryjax.data import corpora, remarks
from cryjax.data.records import Prepared, open_prepared, read_info
from cryjax.data.subjects import check_one_key
from cryjax.evaluation import folds, tasks


def _remarks(prepared: Prepared) -> list[str]:
    """Remarks on a dataset for a reader of the numbers."""
    info = read_info(prepared.directory) or {}
    corpus = corpora.CORPORA.get(info["inputs"].get("corpus"))
    known = [f"licence: {corpus.licence}", f"caveat: {corpus.caveat}"] if corpus else []
    return known + remarks.of_dataset(info)


class Datasets:
    """The datasets named by a config of `cryjax.reproduce`; those it prepares are kept in a folder.

    Attributes:
      notes: remarks for a reader of the numbers.
      used: name -> dataset, those that the config needs, once `open` has checked them.
    """

    def __init__(self, config: Any, folder: pathlib.Path):
        self._config = config
        self._folder = folder
        self.notes: list[str] = []
        self.used: dict[str, Prepared] = {}

    def _open(self, name: str, described: str) -> Prepared:
        """Opens a prepared dataset, or makes one from flags of `prepare`."""
        if not described.startswith("--"):
            if described.endswith(".csv"):
                raise UserError(
                    f"'{name}' is {described}: give a manifest as a flag of prepare, "
                    f"--manifest={described}"
                )
            return open_prepared(described)
        out = self._folder / "data" / name
        rate = frontend.resolve(self._config.pretrain.front_end).sample_rate
        try:
            command = [sys.executable, "-m", "cryjax.prepare", *shlex.split(described)]
        except ValueError as error:
            raise UserError(
                f"'{name}' is {described} ({error}); a value with spaces or quotes must itself be "
                "quoted, as in --manifest='MY FILE.csv'"
            ) from error
        done = subprocess.run(
            [*command, f"--out={out}", f"--sample_rate={rate}"],
            text=True,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            why = done.stderr.rpartition("error: ")[2].strip()
            raise UserError(f"preparing '{name}' failed: {why}")
        return open_prepared(out)

    @functools.cached_property
    def general(self) -> Prepared:
        return self._open("general", self._config.general)

    @functools.cached_property
    def labelled(self) -> Prepared:
        described = self._config.labelled
        return self._open("labelled", described) if described else self.general

    @functools.cached_property
    def unlabelled(self) -> Prepared:
        return self._open("unlabelled", self._config.unlabelled)

    @functools.cached_property
    def tasks(self) -> dict[str, tasks.Task]:
        """The tasks by name."""
        found = {}
        for name, described in self._config.tasks.items():
            prepared = self._open(name, described.data)
            recipe = self._config.tune.copy_and_resolve_references()
            recipe.update({"positive": described.positive, "task": "single"})
            found[name] = tasks.open_task(recipe, prepared.index(), prepared)
        return found

    def folds(self, task: str) -> int:
        """Number of folds of a task: config.folds or fewer, or those of its own splits."""
        index = self.tasks[task].prepared.index()
        index = index[index.labels != ""]
        own = set(index.splits)
        if not self._config.folds:
            return len(own) if folds.has_own_folds(own) else 1
        of = index.by_recording
        made = folds.grouped_folds(
            of.labels, of.subjects, self._config.folds, self._config.fold_seed
        )
        return max(len(made), 1)  # with too few for folds, fold 0 reports it

    @functools.cached_property
    def tested(self) -> dict[str, set[str]]:
        """Entry of `exclude_subjects`, as `pretrain` takes it -> its test subjects.

        With folds, every labelled subject is tested in one.
        """
        named = [
            f"{task.prepared.directory}"
            f"{'' if self._config.folds or self.folds(name) > 1 else ':test'}"
            for name, task in self.tasks.items()
        ]
        return {name: folds.subjects_of(name) for name in named}

    @property
    def everybody(self) -> set[str]:
        """All test subjects."""
        return set().union(*self.tested.values())

    def excluded(self, prepared: Prepared) -> str:
        """The entries of `tested` with subjects in a dataset to train on without labels."""
        held = set(prepared.index().subjects)
        return ",".join(name for name, subjects in self.tested.items() if subjects & held)

    def examples(self, prepared: Prepared, split: str) -> int:
        """Number of examples of a split to train on without labels, test subjects left out."""
        everybody = self.everybody
        return sum(subject not in everybody for subject in prepared.index(split).subjects)

    def open(self) -> None:
        """Opens all data, so that a mistake in any of them is reported before hours of training.

        Raises:
          UserError: if one is missing, at another rate, or would train on labels of test subjects.
        """
        rate = frontend.resolve(self._config.pretrain.front_end).sample_rate
        rows = self._config.rows
        used = {name: task.prepared for name, task in self.tasks.items()}
        if any(row.startswith("simclr") for row in rows):
            used["general"] = self.general
        if any(row.startswith("supervised") for row in rows):
            used["labelled"] = self.labelled
        if any(row.endswith("+adapted") for row in rows):
            used["unlabelled"] = self.unlabelled
        by_folder = {prepared.directory: (name, prepared) for name, prepared in used.items()}
        for name, prepared in by_folder.values():
            self.notes += [f"{name}: {remark}" for remark in _remarks(prepared)]
        for prepared in used.values():
            if "," in str(prepared.directory) or ":" in str(prepared.directory):
                raise UserError(
                    f"{prepared.directory}: ',' and ':' in a path would be read as a list; use "
                    "another --workdir or data folder"
                )
            prepared.require_rate(rate, "config.pretrain.front_end")
        check_one_key({str(p.directory): p.subject_key for p in used.values()})
        if "labelled" in used:
            if len(self.labelled.label_names) < 2:
                raise UserError(
                    f"{self.labelled.directory} has fewer than two labels, too few to pre-train "
                    "the supervised rows; set config.labelled to data with more, or leave those "
                    "rows out of config.rows"
                )
            index = self.labelled.index()
            division = tasks.divide(index[index.labels != ""], self._config.supervised)
            used_labels = {*division.train.subjects, *division.validation.subjects}
            if known := self.everybody & used_labels:
                raise UserError(
                    f"{len(known)} test subject(s), such as {str(min(known))!r}, are in the "
                    "labelled data of supervised pre-training; exclude them (prepare --exclude)"
                )
        if "unlabelled" in used and not self.excluded(self.unlabelled):
            self.notes.append(
                "no test subject is named in the unlabelled recordings, so adaptation excludes "
                "nobody: check that the recordings are of other people"
            )
        self._recognise(used)
        self.used = used

    def _recognise(self, used: Mapping[str, Prepared]) -> None:
        """Raises UserError if a dataset is no longer the one the folder's cells were made from."""
        file = self._folder / "recordings.json"
        before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        now = {}
        for name, prepared in used.items():
            now[name] = hashlib.sha256(prepared.fingerprint.encode()).hexdigest()
            if before.get(name, now[name]) != now[name]:
                raise UserError(
                    f"'{name}', {prepared.directory}, holds different recordings than when "
                    f"{self._folder} was started; use another --workdir, or restore them"
                )
        write_json(file, before | now)
