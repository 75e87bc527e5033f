"""Rules for a config of `cryjax.reproduce`, by field and as a whole."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import ml_collections

from cryjax.command import config as config_lib
from cryjax.command.config import integer, one_of, text
from cryjax.command.errors import UserError
from cryjax.training import simclr, supervised

BASES = ("scratch", "supervised", "simclr")
ROWS = (*BASES, *(f"{base}+adapted" for base in BASES))
METHODS = ("probe", "finetune")
_SEEDS = config_lib.Rule(
    lambda x: isinstance(x, tuple) and bool(x) and all(type(s) is int and s >= 0 for s in x),
    "a tuple of whole numbers from 0 up, such as (0, 1)",
)
_FRACTIONS = config_lib.Rule(
    lambda x: isinstance(x, tuple) and all(type(f) in (int, float) and 0 < f <= 1 for f in x),
    "a tuple of fractions up to 1, such as (0.1, 1.0), or () to leave the method out",
)


RULES = {
    "title": text(required="a title"),
    "general": text(),
    "labelled": text(),
    "unlabelled": text(),
    "rows": config_lib.Rule(
        lambda x: isinstance(x, tuple) and bool(x) and all(row in ROWS for row in x),
        "a tuple of one or more of " + ", ".join(ROWS),
    ),
    "folds": config_lib.FOLDS,
    "fold_seed": integer(),
    "resamples": integer(20),  # with fewer, an interval says nothing
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
    """Raises UserError if a field, or a recipe in it, is invalid for its program."""
    for name, rules in RECIPES.items():
        recipe = config.get(name)
        if not isinstance(recipe, ml_collections.ConfigDict):
            raise UserError(f"config.{name} is missing; set it to a recipe from configs/")
        recipe = recipe.copy_and_resolve_references()
        with recipe.ignore_type():
            recipe.data = "given by the experiment"
        with part_of_config(name):
            config_lib.validate(recipe, rules)
        if excluded := recipe.get("exclude_subjects"):
            raise UserError(
                f"config.{name}.exclude_subjects={config_lib.shown(excluded)}: an experiment sets "
                "it, to all test subjects; to leave out others, give prepare --exclude"
            )
    rest = {name: value for name, value in config.items() if name not in (*RECIPES, "tasks")}
    config_lib.validate(rest, RULES)
    if not any(config[method].fractions for method in METHODS):
        raise UserError(
            "config.probe.fractions and config.finetune.fractions are both empty, so nothing would "
            "be measured; set one of them to fractions of the labels, such as (0.1, 1.0)"
        )
    if not isinstance(config.get("tasks"), ml_collections.ConfigDict) or not config.tasks:
        raise UserError("config.tasks is missing; give each task its data, as in configs/")
    for task, described in config.tasks.items():
        if not isinstance(described, ml_collections.ConfigDict):
            value = config_lib.shown(described)
            raise UserError(f"config.tasks.{task}={value}: it needs 'data' and 'positive'")
        if not task.replace("_", "").isalnum():
            raise UserError(f"config.tasks.{task}: use only letters, digits and '_' in a name")
        rules = {"data": text(required="data with labels"), "positive": text()}
        with part_of_config(f"tasks.{task}"):
            config_lib.validate(described, rules)
    needed = {
        "general": any(row.removesuffix("+adapted") != "scratch" for row in config.rows),
        "unlabelled": any(row.endswith("+adapted") for row in config.rows),
    }
    for name, needs in needed.items():
        if needs and not config[name]:
            raise UserError(
                f"config.{name} is missing, but config.rows needs it; give a prepared dataset, or "
                f'flags of prepare, as in --config.{name}="--manifest=FILE.csv"'
            )
    for name in ("adapt", "supervised", "tune"):
        for field in ("encoder", "front_end", "crop.seconds"):
            ours, theirs = (_field(config[part], field) for part in ("pretrain", name))
            if ours != theirs:
                raise UserError(
                    f"config.pretrain.{field} and config.{name}.{field} differ "
                    f"({config_lib.shown(ours)}, {config_lib.shown(theirs)}); "
                    "all rows share one encoder: make them equal"
                )


@contextlib.contextmanager
def part_of_config(name: str) -> Iterator[None]:
    """Names fields of a part of the config by their full path in error messages."""
    try:
        yield
    except UserError as error:
        # Not names that merely end in it, as a folder may.
        raise UserError(re.sub(r"(?<![\w./-])config\.", f"config.{name}.", str(error))) from error


def _field(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = config[part]
    return config
