"""A wait that lasts too long is told of, and one that would last for ever ends the process."""

import subprocess
import sys
import time

from absl import logging

from cryjax.training.watch import Watch


def test_a_wait_is_told_of_once_and_only_where_that_is_asked_for(caplog):
    logging.set_verbosity(logging.INFO)
    with Watch(0.1) as watch:
        with watch.over("no batch for step 1", "does the disk answer?"):
            pass
        with watch.over("step 1 did not finish"):
            time.sleep(1.0)
        assert not caplog.text
        with watch.over("no batch for step 2", "does the disk answer?"):
            time.sleep(1.0)
    assert caplog.text.count("no batch for step 2") == caplog.text.count("the disk answer?") == 1


def test_a_wait_may_have_a_limit_of_its_own():
    with Watch(0.1, 0.5) as watch, watch.over("no score", most_seconds=60.0):
        time.sleep(1.0)  # this process would end


HANGS = """
import time
from cryjax.training.watch import Watch
def read_a_disk_that_is_gone():
    time.sleep(60)
with Watch(0.1, 0.5) as watch, watch.over("no batch for step 7"):
    read_a_disk_that_is_gone()
"""


def test_a_process_that_hangs_ends_and_says_where():
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "no batch for step 7" in done.stderr
    assert "exiting so that the job can be restarted" in done.stderr
    assert "in read_a_disk_that_is_gone" in done.stderr
