"""A run's schedule."""

import types

from cryjax.training.run import Schedule


def test_never_logging_is_logging_every_step():
    plan = types.SimpleNamespace(total=10, in_steps=int)
    config = types.SimpleNamespace(log_every="0", checkpoint_every="4", pictures_every="0")
    assert Schedule.of(config, plan, "5") == Schedule(10, 1, 4, 5, 0)
