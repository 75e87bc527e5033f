"""A file is the old one or the new one, and a folder is one process's at a time."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from cryjax.command.errors import Unavailable, UserError
from cryjax.command.files import claim, hold, whole, write_json


@pytest.mark.parametrize(("mode", "old", "new"), [("w", "before", "é\n"), ("wb", b"before", b"\0")])
def test_takes_its_place_when_all_is_there(tmp_path, mode, old, new):
    def read():
        return path.read_bytes() if "b" in mode else path.read_text(encoding="utf-8")

    path = tmp_path / "deep" / "a.txt"
    with whole(path, mode) as file:
        file.write(old)
    with pytest.raises(OSError, match="full"), whole(path, mode) as file:
        file.write(new)
        raise OSError("the disk is full")
    assert read() == old
    with whole(path, mode) as file:
        file.write(new)
        file.flush()
        assert read() == old
    assert read() == new
    assert list(path.parent.iterdir()) == [path]


def test_is_on_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    synced = []

    def fsync(number):
        synced.append(
            (pathlib.Path(f"/proc/self/fd/{number}").readlink().name, os.fstat(number).st_size)
        )
        assert not (tmp_path / "a.txt").exists()

    monkeypatch.setattr(os, "fsync", fsync)
    with whole(tmp_path / "a.txt") as file:
        file.write("all of it")
    assert synced == [(".a.txt.partial", 9)]


def test_json_has_no_nan_and_what_is_none_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1, "b": [float("nan")]})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1, "b": [None]}


HOLDER = """
import pathlib, sys, time
from cryjax.command.files import hold
kept = hold(pathlib.Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_folder_is_held_by_one_process_until_it_dies(tmp_path):
    folder = tmp_path / "run"
    other = subprocess.Popen([sys.executable, "-c", HOLDER, folder], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(Unavailable, match=f"process {other.pid} on .* use another --workdir"):
            hold(folder, patience=0.1)
        other.send_signal(signal.SIGKILL)
        assert hold(folder, patience=30)  # as soon as the system knows
    finally:
        other.kill()
        other.communicate()


def test_a_folder_is_given_back_when_nothing_needs_it(tmp_path):
    first = hold(tmp_path)
    assert hold(tmp_path) is first  # by the same process as often as it likes
    command = [sys.executable, "-c", HOLDER.replace("60", "0"), tmp_path]
    del first
    assert subprocess.run(command, check=True, timeout=60, capture_output=True).stdout == b"held\n"


def test_what_one_process_writes_no_other_does(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("of before")
    first = claim(path)
    first.write("mine")
    first.flush()
    with pytest.raises(UserError, match=r"rows\.csv: another process is writing it"):
        claim(path)
    assert path.read_text() == "mine"
    path.rename(tmp_path / "done.csv")  # as when it is complete
    second = claim(path)
    second.write("yours")
    first.close()
    second.close()
    assert (tmp_path / "done.csv").read_text() == "mine" and path.read_text() == "yours"
    assert not claim(path).close() and not path.read_text()
