"""Stopping: what is noted, and when; how a run takes it is in test_loop."""

import signal

import pytest

from cryjax.training import stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_python_swallows_stops_at_the_next_check(number):
    before = signal.getsignal(number)

    class Told:
        def __del__(self):
            signal.raise_signal(number)

    with pytest.raises(stopping.Stopped), stopping.Stop() as stop:
        stop.check()
        Told()
        stop.check()
    assert signal.getsignal(number) == before
