"""Nothing that names a person or a file of theirs is in what programs write or print."""

import csv
import pathlib

import numpy as np
import pytest
import soundfile

import programs
from cryjax.data import subjects
from cryjax.data.records import open_prepared
from cryjax.data.synthetic import CORPORA

MARKS = ("Marked-Folder", "Marked-Name", "Marked-Infant", "Marked-Missing")
FINETUNE = (
    *programs.TINY_FINETUNE,
    "--config.total=2 steps",
    "--config.validation=0.0",
    "--config.resamples=20",
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """30 recordings of 6 infants, and a missing one, with marked paths and subjects."""
    home = tmp_path_factory.mktemp("clinic")
    (home / MARKS[0]).mkdir()
    with (home / "m.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "subject"])
        for number, clip in enumerate(CORPORA["cries"](30, 0)):
            path = f"{MARKS[0]}/{MARKS[1]}-{number}.wav"
            soundfile.write(home / path, clip.render(8_000), 8_000)
            table.writerow([path, clip.label, f"{MARKS[2]}-{number % 6}"])
        table.writerow([f"{MARKS[0]}/{MARKS[3]}.wav", "pain", f"{MARKS[2]}-0"])
    return home / "m.csv"


def everything(folder: pathlib.Path) -> bytes:
    """All bytes and names under a folder, with arrays and datasets decoded."""
    found = []
    for path in folder.rglob("*"):
        found.append(path.name.encode())
        if path.is_file():
            found.append(path.read_bytes())
        if path.suffix == ".npz":  # compressed
            with np.load(path, allow_pickle=False) as arrays:
                found += [repr(arrays[name].tolist()).encode() for name in arrays]
        if (path / "prepared.json").is_file():
            prepared = open_prepared(path)
            for split in prepared.splits:
                found += [repr(example).encode() for example in prepared.source(split)]
            found.append(repr(prepared.index()).encode())
    return b"\n".join(found)


def assert_unmarked(folder, said):
    """Neither the folder nor what programs printed has a mark; the folder has no key."""
    left = everything(folder)
    for mark in MARKS:
        assert mark.encode() not in left
        # Not even one that the command line named.
        assert all(mark not in done.stdout + done.stderr for done in said)
    assert subjects.read_key().hex().encode() not in left


def test_a_mark_would_be_found(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", subjects=np.full(100, MARKS[0]))
    (tmp_path / MARKS[1]).mkdir()
    (tmp_path / "report.html").write_text(MARKS[2])
    left = everything(tmp_path)
    assert all(mark.encode() in left for mark in MARKS[:3])


def test_marks_are_found_nowhere(manifest, tmp_path):
    data, run = f"--config.data={tmp_path / 'data'}", f"--workdir={tmp_path}"
    init = f"--config.init={tmp_path / 'run'}"
    made = programs.succeed(
        "prepare", f"--manifest={manifest}", f"--out={tmp_path / 'data'}", "--sample_rate=8000",
        f"--mapping={manifest.with_name('mapping.csv')}",
    )  # fmt: skip
    assert "skipped 1 recordings" in made.stdout
    said = [made]
    for program, *arguments in (
        ("pretrain", *programs.TINY, "--config.total=4 steps", "--config.batch_size=16",
         f"{run}/run", data, f"--config.exclude_subjects={MARKS[2]}-0"),
        ("linear_probe", "--config=configs/linear_probe.py", "--config.resamples=20",
         f"{run}/probe", data, init),
        ("finetune", *FINETUNE, f"{run}/tuned", data, init),
        ("export", f"--model={tmp_path / 'tuned'}", "--format=folder", f"--out={tmp_path / 'hub'}"),
    ):  # fmt: skip
        said.append(programs.succeed(program, *arguments))
    assert_unmarked(tmp_path, said)
    key = subjects.read_key()
    mapping = manifest.with_name("mapping.csv").read_text()
    for number in range(6):
        name = f"{MARKS[2]}-{number}"
        assert f"{name},{subjects.pseudonym(name, key)}," in mapping
    assert mapping.count("no such file") == 1


@pytest.mark.slow
def test_no_mark_gets_into_an_experiment(manifest, tmp_path):
    given = f"--manifest={manifest}"
    done = programs.succeed(
        "reproduce", "--config=tests/tiny_experiment.py", f"--workdir={tmp_path / 'table'}",
        f"--config.unlabelled={given}", "--config.adapt.batch_size=8",
        "--config.tasks.injury.positive=",
        f"--config.tasks.injury.data={given} --splits=train=0.6,test=0.4",
        "--config.probe.fractions=(1.0,)", "--config.probe.seeds=(0,)", "--config.resamples=20",
    )  # fmt: skip
    report = (tmp_path / "table" / "report.html").read_text(encoding="utf-8")
    assert "injury: skipped 1 recordings" in report and "simclr+adapted" in report
    assert_unmarked(tmp_path, [done])
