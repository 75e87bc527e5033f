"""Whatever a field of a recipe is set to, it is accepted, or refused in a line that names it."""

import pathlib

import ml_collections
import pytest
from absl import flags
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from ml_collections import config_flags

from cryjax import linear_probe, reproduce
from cryjax.command import config as config_lib
from cryjax.command import program
from cryjax.command.errors import UserError
from cryjax.training import simclr, supervised

FOLDER = pathlib.Path(__file__).parents[2] / "configs"
RULES = {
    "finetune": supervised.RULES,
    "linear_probe": linear_probe.RULES,
    "pretrain": simclr.RULES,
    "pretrain_small": simclr.RULES,
}
RECIPES = sorted(path.stem for path in FOLDER.glob("*.py"))

TEXTS = st.one_of(
    st.text(max_size=20),
    st.from_regex(r"[0-9.]{1,5}(e[0-9]{1,3})? (steps?|epochs?|examples?|weeks)", fullmatch=True),
    st.sampled_from(("", "0", "auto", "none", "cnn14", "mix", "test", "simclr+adapted", "--x")),
    st.sampled_from(("9" * 400 + " steps", "1e99 epochs", ".e9 steps", "1" * 5000)),
)
PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(0, 40), st.floats(), st.floats(0, 1), TEXTS
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.sampled_from(("data", "name", "x")), inner, max_size=2),
    ),
    max_leaves=4,
)
EASY = settings(
    deadline=None,
    max_examples=60,
    phases=[Phase.generate],  # what fails is short enough as it is, and shrinking takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def good(recipe):
    """The recipe with its data given, so that it is the field at hand that is right or wrong."""
    config = config_lib.load(FOLDER / f"{recipe}.py")
    for part in (config, *config.get("tasks", {}).values()):
        for field in ("data", "init", "general", "unlabelled"):
            if field in part:
                part[field] = "FOLDER"
    return config


def check(recipe, config):
    """As the recipe's program does before it opens any data; and its lengths are steps."""
    if recipe not in RULES:
        return reproduce.check(config)
    rules = RULES[recipe]
    config = config_lib.checked(config, rules)
    for field, value in config_lib._flatten(config).items():
        if rules[field] is config_lib.LENGTH:
            assert config_lib.steps(value, batch_size=32, examples=1000) >= 0


def fields_of(config, prefix=""):
    """Every field, groups too."""
    for name, value in config.items():
        yield prefix + name
        if isinstance(value, ml_collections.ConfigDict):
            yield from fields_of(value, f"{prefix}{name}.")


def put(config, field, value):
    """Sets a field to a value of any type; over another it would be converted to that one's."""
    with config.unlocked():
        del config[field]
        config[field] = value


def named(line, field):
    """A line for a person, about a field or the group that it is in."""
    assert line and "\n" not in line and len(line) < 3000
    group, _, last = field.rpartition(".")
    # Or the same group in another recipe of an experiment, which may share it.
    shared = group.partition(".")[2]
    return (
        f"config.{field}" in line
        or (group and f"config.{group} " in line)
        or (shared and (f".{shared}.{last}" in line or f".{shared} " in line))
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_accepted_as_it_is(recipe):
    check(recipe, good(recipe))


@pytest.mark.parametrize("recipe", RECIPES)
@EASY
@given(data=st.data())
def test_any_value_is_accepted_or_refused_by_its_field(recipe, data):
    config, value = good(recipe), data.draw(VALUES)
    fields = st.sampled_from(list(fields_of(config)))
    for field in data.draw(st.lists(fields, min_size=10, max_size=10, unique=True)):
        *above, last = field.split(".")
        part = config
        for name in above:
            part = part[name]
        before = part[last]
        put(part, last, value)
        try:
            check(recipe, config)
        except UserError as error:
            line = str(error)
            assert named(line, field), f"{field}={value!r}: {line}"
            # Of a group it is the part that is wrong which is shown.
            said = isinstance(value, dict) or config_lib.shown(value)[:30] in line
            assert said or any(words in line for words in ("missing", "unknown field", "equal"))
        finally:
            put(part, last, before)


@pytest.mark.parametrize("recipe", RECIPES)
@EASY
@given(data=st.data())
def test_any_text_on_the_command_line_too(recipe, data, monkeypatch):
    field = data.draw(st.sampled_from(list(fields_of(good(recipe)))))
    text = data.draw(st.one_of(TEXTS, VALUES.map(repr), st.text("()[]{},'\"0-", max_size=9)))
    given_flags = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=given_flags)
    monkeypatch.setattr(flags, "FLAGS", given_flags)
    try:
        program._parse(["x", f"--config={FOLDER / recipe}.py", f"--config.{field}={text}"])
        check(recipe, given_flags.config)
    except UserError as error:
        # Without data each program asks for them, if it is not refused before.
        assert named(str(error), field) or "config.data" in str(error)
