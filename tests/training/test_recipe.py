"""What recipes share: refusals whose remedies work, and the numbers of a plan."""

import pathlib

import numpy as np
import pytest

from cryjax.audio import augment, frontend
from cryjax.command import config as config_lib
from cryjax.command.errors import UserError
from cryjax.training import recipe

FOLDER = pathlib.Path(__file__).parents[2] / "configs"


@pytest.fixture
def config():
    return config_lib.load(FOLDER / "pretrain_small.py")


@pytest.mark.parametrize("grouped", ["", "'mix'"])
@pytest.mark.parametrize(("size", "devices"), [(2, 8), (36, 8), (90, 4), (7, 1), (30, 3)])
def test_the_batch_size_that_is_named_is_accepted(config, size, devices, grouped):
    needed = devices * (augment.MIX_GROUP if grouped else 1)
    for _ in range(2):  # for the devices, then for the groups
        config.batch_size = size
        if size % needed == 0:
            break
        with pytest.raises(UserError, match=f"batch_size={size} ") as error:
            recipe.check_devices(config, devices, grouped=grouped)
        size = int("".join(c for c in str(error.value).split("multiple")[-1] if c.isdigit()))
    assert size > 0
    config.batch_size = size
    recipe.check_devices(config, devices, grouped=grouped)


def test_transforms_without_effect_are_named_where_the_front_end_undoes_them(config):
    for name, settings in frontend.PRESETS.items():
        config.front_end = name
        config.transforms = ("mix", "gain", "time_mask", "band_pass")
        said = recipe.without_effect(config)
        undone = settings.normalise != "none"
        assert bool(said) == ("transforms: gain, band_pass without effect" in said) == undone
        config.transforms = ("mix", "time_mask")
        assert recipe.without_effect(config) == ""


def test_a_plan_has_the_steps_and_rates_that_the_config_says(config):
    config.batch_size, config.total = 50, "4 epochs"
    config.front_end, config.clip_seconds = "panns_16k", 3.5
    config.optimizer.update(
        name="sgd", learning_rate=0.4, scaling="linear", warmup="1 epochs", momentum=0.5,
        weight_decay=0.1,
    )  # fmt: skip
    plan = recipe.plan(config, examples=500)
    assert (plan.total, plan.in_steps("3 epochs"), plan.clip_samples) == (40, 30, 56_000)
    peak = 0.4 * 50 / 256
    for step, share in ((0, 0.0), (5, 0.5), (10, 1.0), (25, 0.5), (40, 0.0)):
        assert float(plan.learning_rate(step)) == pytest.approx(share * peak, abs=1e-7)
    kernel = {"kernel": np.ones((2, 2), np.float32)}
    state, update = plan.optimizer.init(kernel), kernel
    for _ in range(3):
        update, state = plan.optimizer.update(kernel, state, kernel)
    # The third step's rate, times the sum of decayed gradients of 1 + 0.1.
    wanted = -0.2 * peak * 1.1 * (1 + 0.5 + 0.25)
    np.testing.assert_allclose(update["kernel"], wanted, rtol=1e-5)
    assert {name: x.shape for name, x in plan.batch(8).items()} == {
        "audio": (8, 56_000),
        "length": (8,),
    }
    config.optimizer.warmup = "40 steps"
    with pytest.raises(UserError, match="warmup='40 steps' is 40 steps, but the run has 40"):
        recipe.plan(config, examples=500)


def test_a_crop_at_the_highest_speed_may_be_the_whole_clip(config):
    config.crop.update(seconds=0.2, speed=(0.5, 1.1))
    config.clip_seconds = 0.22  # under 0.2 * 1.1 in floating point
    recipe.plan(config, examples=500)
    config.clip_seconds = 0.21
    with pytest.raises(UserError, match=r"use a clip of 0\.22 seconds"):
        recipe.plan(config, examples=500)


def test_views_are_made_by_the_configs_own_numbers_in_its_order(config):
    config.transforms, config.front_end = ("mix", "gain"), "panns_16k"
    config.gain.probability = 0.25
    views = recipe.view_recipe(config)
    assert [name for name, _ in views["transforms"]] == ["mix", "gain"]
    assert views["transforms"][1][1] == config.gain.to_dict()
    assert views["settings"] == frontend.PRESETS["panns_16k"]
    assert views["crop"] == config.crop.to_dict()
