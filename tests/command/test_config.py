"""Configs are refused by field, value and remedy; lengths become steps in one place."""

import re
import sys

import ml_collections
import pytest
from absl import flags
from ml_collections import config_flags

from cryjax.command import config as config_lib
from cryjax.command.config import integer, interval, number, one_of, text
from cryjax.command.errors import UserError

RULES = {
    "data": text(required="a folder"),
    "size": integer(1),
    "rate": number(above=0),
    "inner.kind": one_of("a", "b"),
    "inner.range": interval(0),
    "total": config_lib.LENGTH,
}


def good():
    return ml_collections.ConfigDict(
        {
            "data": "x",
            "size": 2,
            "rate": 0.1,
            "inner": {"kind": "a", "range": (0.0, 1.0)},
            "total": "2 epochs",
        }
    )


def test_accepts_what_is_right():
    config_lib.validate(good(), RULES)


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("data", "", "a folder"),
        ("size", 0, "from 1 up"),
        ("size", True, "whole number"),
        ("size", 2.0, "whole number"),
        ("rate", 0.0, "above 0"),
        ("rate", float("nan"), "above 0"),
        ("rate", float("inf"), "above 0"),
        ("inner.kind", "c", "a, b"),
        ("inner.range", (2.0, 1.0), "in order"),
        ("inner.range", (-1.0, 1.0), "from 0 up"),
        ("inner.range", "12", "two numbers"),
        ("total", "2 weeks", "epochs"),
        ("total", "-2 epochs", "epochs"),
        ("total", "1e99 epochs", "epochs"),
    ],
)
def test_names_field_value_and_remedy(field, value, remedy):
    config = good()
    with config.ignore_type():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError) as error:
        config_lib.validate(config, RULES)
    message = str(error.value)
    assert f"config.{field}={value!r}" in message and remedy in message and "\n" not in message


def test_unknown_and_missing_fields():
    config = good()
    config.extra = 1
    with pytest.raises(UserError, match=r"unknown field config\.extra.*inner\.kind"):
        config_lib.validate(config, RULES)
    config = good()
    del config.inner["kind"]
    with pytest.raises(UserError, match=r"config\.inner\.kind is missing"):
        config_lib.validate(config, RULES)


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        ("20000 steps", 20_000),
        ("1 step", 1),
        ("100 epochs", 400),
        ("0.5 epochs", 2),
        ("5e6 examples", 19531),
        ("1 examples", 1),
        ("0", 0),
        ("0 epochs", 0),
    ],
)
def test_lengths(length, expected):
    assert config_lib.LENGTH.accepts(length)
    assert config_lib.steps(length, batch_size=256, examples=1024) == expected


def test_differences():
    old = {"a": 1, "b": {"c": 2, "d": 3}}
    new = {"a": 1, "b": {"c": 5}, "e": 6}
    assert config_lib.differences(old, new) == [
        "b.c: 2 -> 5",
        "b.d: 3 -> '(none)'",
        "e: '(none)' -> 6",
    ]


def parsed(path):
    sys.modules.pop("config_config", None)  # else a recipe would have what others had
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values)
    values(["program", f"--config={path}"])
    return values.config


def test_a_recipe_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"--config=nowhere\.py cannot be loaded.*'nowhere\.py'"):
        config_lib.checked(parsed("nowhere.py"), None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("x = 1\ndef get_config(:", r"SyntaxError: .* \(line 2\)"),
        ("x = 1\n\ny = z", r"NameError: name 'z' is not defined \(line 3\)"),
        ("import not_installed", r"ModuleNotFoundError: .*'not_installed' \(line 1\)"),
        ("import pathlib\n\npathlib.Path('/none').read_text()", r"OSError: .*'/none'"),
        ("def get_config():\n    return int('a')", r"ValueError: invalid literal.* \(line 2\)"),
        ("def get_config(which):\n    return 1", r"TypeError: get_config\(\) missing .*'which'"),
        ("x = 1", "AttributeError: .* no attribute 'get_config'"),
    ],
)
def test_a_recipe_that_fails_is_named_with_its_line(tmp_path, content, said):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(content)
    with pytest.raises(Exception) as caught:
        config_lib.checked(parsed(recipe), None)
    error = caught.value if isinstance(caught.value, UserError) else None
    error = error or config_lib.not_loaded(caught.value)
    assert re.fullmatch(rf"--config={recipe} cannot be loaded: {said}", str(error))


def test_an_error_outside_a_recipe_is_not_of_it():
    assert config_lib.not_loaded(ValueError("x")) is None


@pytest.mark.parametrize("returned", ["3", "{}", "print"])
def test_a_recipe_that_returns_no_config_is_refused(tmp_path, returned):
    (tmp_path / "recipe.py").write_text(f"def get_config():\n    return {returned}")
    with pytest.raises(UserError, match=r"its get_config returns \w+, not ConfigDict"):
        config_lib.checked(parsed(tmp_path / "recipe.py"), None)
