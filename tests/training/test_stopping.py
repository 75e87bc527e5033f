"""Stopping: what is noted, and when; how a run takes it is in test_loop."""

import concurrent.futures
import signal
import sys

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


def test_a_second_interrupt_acts_at_once_and_a_second_sigterm_does_not():
    with stopping.Stop() as stop, stop.finishing_steps():
        for _ in range(2):  # schedulers repeat it
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.requested


def test_between_runs_a_signal_acts_at_once():
    with stopping.Stop() as stop:
        with stop.finishing_steps():
            pass
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_threads_that_get_no_signals_may_enter_one():
    def entered():
        with stopping.Stop() as stop:
            return stop.requested

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert not pool.submit(entered).result()


def test_other_errors_in_a_destructor_are_told_as_before(monkeypatch):
    class Told:
        def __del__(self):
            raise ValueError

    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    hook = sys.unraisablehook
    with stopping.Stop():
        Told()
    assert [one.exc_type for one in told] == [ValueError] and sys.unraisablehook is hook
