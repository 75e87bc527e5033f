"""Progress in a log is a line at times, with true numbers; on a terminal it is one line redrawn."""

import io
import re

from cryjax.command.progress import Progress, over


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def run(steps, seconds_each, **how):
    """What is written over a run of so many steps, the first of which compiles for a minute."""
    stream, clock = io.StringIO(), Clock()
    with Progress("step", steps, stream=stream, clock=clock, **how) as progress:
        progress.say("compiling")
        clock.now += 60
        progress.update(speed=False)
        progress.restart()
        for step in range(1, steps):
            clock.now += seconds_each
            progress.note(f"loss {step}")
            progress.update()
    return stream.getvalue()


def test_a_log_gets_lines_without_carriage_returns():
    said = run(2000, 0.5, unit="clips", of_each=32)
    lines = said.splitlines()
    assert "\r" not in said and said.endswith("\n")
    assert "step 0 of 2000 (0 %), compiling" in lines[0] and "clips/s" not in lines[0]
    assert 5 < len(lines) < 40
    assert "step 1 of 2000" in lines[1] and "left" not in lines[1]
    for line in lines[2:-1]:
        done, loss, speed = re.search(
            r"step (\d+) of 2000 .*loss (\d+), (\S+) clips/s", line
        ).groups()
        assert int(done) == int(loss) + 1
        assert float(speed) == 64  # the minute of compilation is not counted
        minutes, seconds = re.search(r", (\d\d):(\d\d) left", line).groups()
        assert abs(int(minutes) * 60 + int(seconds) - (2000 - int(done)) * 0.5) <= 1
    assert "step 2000 of 2000 (100 %)" in lines[-1] and lines[-1].endswith("took 17:39")


def test_lines_grow_rare():
    day = run(86_400, 1.0).splitlines()
    assert len(day) < 350


def test_what_is_quick_says_nothing_in_a_log():
    stream = io.StringIO()
    assert list(over([1, 2, 3], "index", stream=stream, clock=Clock())) == [1, 2, 3]
    assert stream.getvalue() == ""


def test_other_processes_say_nothing():
    assert run(100, 60.0, shown=False) == ""


def test_a_terminal_has_one_line_redrawn():
    stream = Terminal()
    with Progress("step", 10, unit="clips", stream=stream) as progress:
        progress.say("compiling")
        progress.note("loss 1.5")
        progress.update(10)
    said = stream.getvalue()
    assert said.count("\n") == 1 and "\r" in said and "compiling" in said
    last = said.split("\r")[-1]
    assert "step 10 of 10" in last and "100 %" in last and "loss 1.5" in last and "took" in last
