"""What a file does to its decoder, it does to itself alone."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

import programs
import recordings
from cryjax.data import decode, guard

# Of the decoding process: what a decoder's fault would do, by the name of the file.
FAULTS = """
import ctypes, os, time
import soundfile
from cryjax.data import decode
real = soundfile.SoundFile.__init__
def faulty(self, file, *arguments, **options):
    name = os.fsdecode(file)
    if "crash" in name:
        ctypes.string_at(0)
    if "hang" in name:
        time.sleep(60)
    if "greedy" in name:
        bytearray(3 << 30)
    if "surprise" in name:
        raise RuntimeError("of a file")
    real(self, file, *arguments, **options)
soundfile.SoundFile.__init__ = faulty
"""


@pytest.fixture
def files(tmp_path):
    def write(name):
        audio = np.random.default_rng(0).normal(size=20_000) * 0.1
        soundfile.write(tmp_path / name, audio, 8_000)
        return tmp_path / name

    return write


def test_the_same_as_without(files, tmp_path):
    path = files("ü\n.wav")
    with guard.Decoder() as decoder:
        for _ in range(2):
            found = decoder.decode(path, 16_000)
            np.testing.assert_array_equal(found, recordings.decode(path, 16_000))
            assert decoder.own_rate == soundfile.info(path).samplerate
        (tmp_path / "bad.wav").write_bytes(b"nonsense")
        for bad, said in ((tmp_path / "bad.wav", "decode it"), (tmp_path / "none", "no such")):
            with pytest.raises(decode.Unusable, match=said):
                decoder.decode(bad, 16_000)
        with pytest.raises(decode.Unusable, match="8000 Hz, under 9000 Hz"):
            next(decoder.stream(path, 16_000, lowest_rate=9_000))
        odd = os.fsdecode(b"\xff.wav")
        path.rename(tmp_path / odd)
        assert len(decoder.decode(tmp_path / odd, 8_000)) == 20_000


def test_faults_lose_one_file(files, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(FAULTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    good = files("good.wav")
    start = time.monotonic()
    with guard.Decoder(silent_seconds=3.0, memory=2 << 30) as decoder:
        for name, said in (
            ("crash.wav", "its decoder crashed"),
            ("greedy.wav", "it needs too much memory"),
            ("surprise.wav", r"it cannot be decoded \(RuntimeError\)"),
            ("hang.wav", "its decoder did not respond for 3 s"),
        ):
            with pytest.raises(decode.Unusable, match=said):
                decoder.decode(files(name), 8_000)
            assert len(decoder.decode(good, 8_000)) == 20_000
    assert time.monotonic() - start < 40


def test_nothing_is_left_when_its_user_is_killed(files, tmp_path):
    script = """
import os, pathlib, signal, sys
from cryjax.data import guard
decoder = guard.Decoder()
decoder.decode(pathlib.Path(sys.argv[1]), 8_000)
print(os.listdir(os.environ["TMPDIR"]), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    folder = tmp_path / "temporary"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script, files("a.wav")],
        env=programs.environment(TMPDIR=str(folder)), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "cryjax-decoder-" in done.stdout and done.returncode == -signal.SIGKILL, done.stderr
    deadline = time.monotonic() + 60
    while list(folder.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not list(folder.iterdir())


def test_a_stream_that_is_left_does_not_disturb_the_next(files):
    path = files("a.wav")
    with guard.Decoder() as decoder:
        stream = decoder.stream(path, 16_000)
        next(stream)
        stream.close()
        assert len(decoder.decode(path, 8_000)) == 20_000
