"""Checks configs before anything compiles; errors name the field, value and what is accepted."""

import dataclasses
import json
import math
import pathlib
import re
import runpy
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
from absl import flags

from cryjax.command.errors import UserError


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a field accepts: a test of its value, and the same in words."""

    accepts: Callable[[Any], bool]
    words: str


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and x == x and abs(x) < 1e30


def _is_range(x: Any) -> bool:
    return isinstance(x, tuple | list) and len(x) == 2 and all(map(_is_number, x)) and x[0] <= x[1]


def number(low: float = -1e30, high: float = 1e30, *, above: float | None = None) -> Rule:
    """A number from `low` to `high`; strictly above `above`, if given."""
    upper = f" to {high:g}" if high < 1e30 else " up"
    if above is not None:
        words = f"a number above {above:g}" + (f", up{upper}" if high < 1e30 else "")
        return Rule(lambda x: _is_number(x) and above < x <= high, words)
    bounds = f"from {low:g}{upper}"
    return Rule(lambda x: _is_number(x) and low <= x <= high, f"a number {bounds}")


def integer(low: int = 0, high: float = math.inf) -> Rule:
    return Rule(
        lambda x: isinstance(x, int) and not isinstance(x, bool) and low <= x <= high,
        f"a whole number from {low}" + (f" to {high}" if high < math.inf else " up"),
    )


def one_of(*choices: str) -> Rule:
    return Rule(lambda x: isinstance(x, str) and x in choices, "one of " + ", ".join(choices))


def interval(low: float = -1e30) -> Rule:
    """An ordered pair of numbers, the first at least `low`."""
    bound = f" from {low:g} up" if low > -1e30 else ""
    words = f"two numbers in order{bound}, such as (1, 2)"
    return Rule(lambda x: _is_range(x) and x[0] >= low, words)


def boolean() -> Rule:
    return Rule(lambda x: isinstance(x, bool), "True or False")


def text(*, required: str = "") -> Rule:
    """A string, not empty if `required`, which says how to give one."""
    return Rule(lambda x: isinstance(x, str) and (bool(x) or not required), required or "a string")


FOLDS = Rule(
    lambda x: isinstance(x, int) and not isinstance(x, bool) and (x == 0 or x >= 2),
    "a whole number from 2 up, or 0 for the dataset's own splits",
)

_LENGTH = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[0-9]{1,2})?)\s*(steps?|epochs?|examples?)\s*")
LENGTH = Rule(
    lambda x: isinstance(x, str) and (x == "0" or _is_length(x)),
    'a length, such as "20000 steps", "100 epochs" or "5e6 examples"',
)


def _is_length(x: str) -> bool:
    found = _LENGTH.fullmatch(x)
    return found is not None and float(found[1]) <= 1e15  # a thousand 9s parse as infinity


def never(length: str) -> bool:
    """Whether a length is zero, in any unit."""
    return steps(length, batch_size=1, examples=1) == 0


def steps(length: str, *, batch_size: int, examples: int) -> int:
    """A length in steps: '100 epochs', '20000 steps', '5e6 examples', or '0'.

    Args:
      length: one that `LENGTH` accepts.
      batch_size: global.
      examples: per epoch.

    Returns:
      Steps, rounded to the nearest; at least 1 unless the length is 0.
    """
    if length == "0":
        return 0
    found = _LENGTH.fullmatch(length)
    if found is None:
        raise ValueError(f"{length!r} is not a length")
    amount, unit = found.groups()
    of_one = {"step": 1.0, "epoch": examples / batch_size, "example": 1.0 / batch_size}
    count = float(amount) * of_one[unit.rstrip("s")]
    return max(1, round(count)) if count else 0


def datasets(data: str) -> list[tuple[str, str]]:
    """'A,B:2', as in `config.data` -> [('A', ''), ('B', '2')]: folders, weights as written."""
    entries = [entry.partition(":") for entry in data.split(",")]
    return [(folder, weight) for folder, _, weight in entries]


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict) and len(value):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def shown(value: Any) -> str:
    """A value on one line, cut to 200 characters."""
    value = value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value
    return " ".join(repr(value).split())[:200]


def validate(config: ml_collections.ConfigDict, rules: Mapping[str, Rule]) -> None:
    """Checks every field against its rule.

    Args:
      config: the user's config.
      rules: dotted field -> rule. Exactly these must be there.

    Raises:
      UserError: naming the field, its value and what is accepted.
    """
    flat = _flatten(config)
    for field in flat:
        if field not in rules:
            known = ", ".join(sorted(rules))
            raise UserError(f"unknown field config.{field}; this program's fields: {known}")
    for field, rule in rules.items():
        if field not in flat:
            raise UserError(f"config.{field} is missing; give it {rule.words}")
        if not rule.accepts(flat[field]):
            raise UserError(f"config.{field}={shown(flat[field])} is not {rule.words}")


def load(path: pathlib.Path) -> ml_collections.ConfigDict:
    """The config of another recipe, for a recipe that contains it."""
    return runpy.run_path(str(path))["get_config"]()


def not_loaded(error: BaseException | None) -> UserError | None:
    """What to say of an error inside a recipe, with its line; None for an error elsewhere.

    Args:
      error: raised while flags were parsed, possibly again as another.
    """
    found = None
    while error is not None:
        path, lines = "", []
        for frame, line in traceback.walk_tb(error.__traceback__):
            code, module = frame.f_code, str(frame.f_globals.get("__name__"))
            if code.co_name == "parse" and module.startswith("ml_collections.config_flags"):
                path = str(frame.f_locals.get("path", ""))
            elif code.co_filename == path.partition(":")[0]:
                lines.append(line)
        if isinstance(error, SyntaxError) and error.filename == path.partition(":")[0]:
            lines.append(error.lineno or 0)
        if path:  # the innermost: ml_collections raises some again
            message = error.msg if isinstance(error, SyntaxError) else str(error)
            if isinstance(error, OSError):  # ml_collections lists where it looked
                message = message.splitlines()[-1]
            why = " ".join(f"{type(error).__name__}: {message}".split())
            where = f" (line {lines[-1]})" if lines else ""
            found = UserError(f"--config={path} cannot be loaded: {why}{where}")
        error = error.__cause__ or error.__context__
    return found


def checked(
    config: ml_collections.ConfigDict | None,
    rules: Mapping[str, Rule] | None,
    recipe: str = "give a recipe, such as configs/pretrain_small.py",
) -> ml_collections.ConfigDict:
    """The config of the command line, validated.

    Args:
      config: from the command line; None if there was none.
      rules: for its fields; None checks none.
      recipe: how to describe --config if it is missing.

    Raises:
      UserError: if it is wrong or missing.
    """
    if config is None and not ("config" in flags.FLAGS and flags.FLAGS["config"].present):
        raise UserError(f"--config is missing: {recipe}")
    try:
        getattr(config, "items", None)
    except OSError as error:  # ml_collections defers it until the config is used
        raise not_loaded(error) or UserError(f"--config cannot be loaded: {error}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(
            f"--config cannot be loaded: its get_config returns {type(config).__name__}, not "
            "ConfigDict"
        )
    if rules is not None:
        validate(config, rules)
    return config


def to_dict(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The config as plain JSON values (tuples become lists)."""
    return json.loads(json.dumps(config.to_dict()))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Dotted fields whose values differ, as 'field: old -> new'."""
    old, new = _flatten(old), _flatten(new)
    missing = "(none)"
    return [
        f"{field}: {old.get(field, missing)!r} -> {new.get(field, missing)!r}"
        for field in sorted(old.keys() | new.keys())
        if old.get(field, missing) != new.get(field, missing)
    ]
