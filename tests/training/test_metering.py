"""When metrics of views say that an encoder has collapsed; logging is in `test_loop`."""

from cryjax.training import metering


def test_a_collapse_is_named():
    assert "nearly the same" in metering.collapsed({"uniformity": -0.001, "effective_rank": 5.0})
    assert "on a line" in metering.collapsed({"uniformity": -2.0, "effective_rank": 1.05})
    assert not metering.collapsed({"uniformity": -2.0, "effective_rank": 20.0})
    assert not metering.collapsed({"uniformity": -0.05, "effective_rank": 1.3})
    assert not metering.collapsed({"loss": 1.0})
