"""The programs predict, export and import_weights: files and exports give the run's numbers."""

import csv
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors
import soundfile
from matplotlib import image

import lively
import programs
from cryjax import predict
from cryjax.data.records import open_prepared
from cryjax.interop import panns, run

TINY = (
    *programs.TINY_FINETUNE,
    "--config.total=4 steps",
    "--config.resamples=20",
)


@pytest.fixture(scope="module")
def tuned(prepared, tmp_path_factory):
    """A run, and its test recordings as files: {number: path}."""
    home = tmp_path_factory.mktemp("predict")
    programs.succeed(
        "finetune", *TINY, f"--workdir={home / 'run'}", f"--config.data={prepared}"
    )  # fmt: skip
    dataset = open_prepared(prepared)
    source, files = dataset.source("train"), {}
    for number in sorted(predictions(home / "run")):
        rows = [source[int(row)] for row in dataset.index().rows]
        pieces = [x["audio"] for x in rows if x["recording"] == number]
        files[number] = home / "recordings" / f"{number}.wav"
        files[number].parent.mkdir(exist_ok=True)
        soundfile.write(files[number], np.concatenate(pieces), dataset.sample_rate, "PCM_16")
    return home / "run", files


def predictions(folder: pathlib.Path) -> dict[int, list[float]]:
    with (folder / "predictions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        int(row["recording"]): [float(v) for k, v in row.items() if k.startswith("p(")]
        for row in rows
    }


def read(path: pathlib.Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def scores(row: dict) -> list[float]:
    return [float(value) for name, value in row.items() if name.startswith("p(")]


def test_the_numbers_of_the_run(tuned, tmp_path):
    folder, files = tuned
    programs.succeed(
        "predict", f"--model={folder}", f"--out={tmp_path / 'out.csv'}",
        f"--windows={tmp_path / 'windows.jsonl'}", f"--embeddings={tmp_path / 'embeddings.npy'}",
        f"--figures={tmp_path / 'figures'}", next(iter(files.values())).parent,
    )  # fmt: skip
    found = {int(pathlib.Path(row["recording"]).stem): row for row in read(tmp_path / "out.csv")}
    wanted = predictions(folder)
    assert found.keys() == wanted.keys() and len(found) == 20
    for number, row in found.items():
        np.testing.assert_allclose(scores(row), wanted[number], atol=1e-6)
        assert row["error"] == "" and float(row["seconds"]) == pytest.approx(
            soundfile.info(files[number]).duration, abs=1e-3
        )
    lines = [json.loads(x) for x in (tmp_path / "windows.jsonl").read_text().splitlines()]
    for row in found.values():
        own = [line for line in lines if line["recording"] == row["recording"]]
        assert len(own) == int(row["windows"]) > 1
        np.testing.assert_allclose(
            np.mean([scores(x) for x in own], axis=0), scores(row), atol=1e-6
        )
        assert own[0]["start"] == 0 and own[-1]["end"] == pytest.approx(
            float(row["seconds"]), abs=2e-3
        )
    assert np.load(tmp_path / "embeddings.npy", allow_pickle=False).shape == (20, 32)
    drawn = sorted((tmp_path / "figures").iterdir())
    assert len(drawn) == 20 and image.imread(drawn[0]).std() > 0.05


@pytest.mark.parametrize(
    "kind", ["onnx", pytest.param("stablehlo", marks=pytest.mark.slow), "folder"]
)
def test_an_export_predicts_the_same(tuned, tmp_path, kind):
    folder, files = tuned
    out = tmp_path / (f"model.{kind}" if kind != "folder" else "model")
    done = programs.succeed("export", f"--model={folder}", f"--format={kind}", f"--out={out}")
    assert "recordings/probabilities" in done.stdout and "noise/embedding" in done.stdout
    assert "writing" in done.stderr and "replacing" not in done.stdout
    assert "unfinished" not in done.stderr
    assert not list(tmp_path.glob(".*"))  # nothing is left behind
    chosen = list(files.values())[:3]
    programs.succeed("predict", f"--model={out}", f"--out={tmp_path / 'out.csv'}", *chosen)
    wanted = predictions(folder)
    for number, row in zip(files, read(tmp_path / "out.csv"), strict=False):
        np.testing.assert_allclose(scores(row), wanted[number], atol=1e-5)
    if kind == "folder":
        example = subprocess.run(
            [sys.executable, out / "example.py", chosen[0]],
            capture_output=True,
            text=True,
            check=True,
        )
        said = dict(line.split(": ") for line in example.stdout.splitlines())
        assert list(said) == ["discomfort", "hunger", "pain"]
        found = np.array(list(said.values()), float)
        np.testing.assert_allclose(found, wanted[next(iter(files))], atol=6e-4)  # three decimals
        card = (out / "README.md").read_text()
        result = json.loads((folder / "result.json").read_text())
        low, high = result["intervals"]["macro_auc"]
        assert f"{result['macro_auc']:.3f} [{low:.3f}, {high:.3f}]" in card
        assert "Not a medical device" in card and "Synthetic audio" in card
        config = json.loads((out / "config.json").read_text())
        assert config["id2label"]["2"] == "pain" and config["front_end"]["sample_rate"] == 8000


@pytest.mark.slow
def test_the_card_of_an_encoder_tells_nothing_of_its_classifier(tuned, tmp_path):
    folder, out = tuned[0], tmp_path / "encoder"
    programs.succeed(
        "export", f"--model={folder}", "--format=folder", "--encoder_only", f"--out={out}"
    )
    card = (out / "README.md").read_text()
    assert "`embedding`" in card and "macro_auc" not in card and "accuracy" not in card


def test_the_export_of_an_unfinished_run_says_so(tuned, tmp_path):
    run_, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(tuned[0], run_)
    (run_ / "result.json").unlink()
    done = programs.succeed("export", f"--model={run_}", "--format=folder", f"--out={out}")
    assert done.stderr.count("is unfinished: step ") == done.stderr.count("of '4 steps'") == 1
    assert "of '4 steps': unfinished when exported" in (out / "README.md").read_text()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_export_leaves_nothing(small, tmp_path, number, status):
    out = tmp_path / "out" / "model.onnx"
    process = programs.start("export", f"--model={small}", "--format=onnx", f"--out={out}")
    deadline = time.monotonic() + 120
    while not list(out.parent.glob(".*/*/*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    done = programs.finish(process)
    assert done.returncode == status and "Traceback" not in done.stderr, done.stderr
    assert not list(out.parent.iterdir())


def test_what_was_scored_before_an_interruption_is_kept(small, tmp_path):
    soundfile.write(tmp_path / "one.wav", lively.waveform(16_000)[0], 8_000)
    for number in range(3000):
        (tmp_path / "many" / f"{number:04d}.wav").parent.mkdir(exist_ok=True)
        (tmp_path / "many" / f"{number:04d}.wav").symlink_to(tmp_path / "one.wav")
    out, rows = tmp_path / "out.csv", tmp_path / "out.partial.csv"
    places = [f"--out={out}", f"--embeddings={tmp_path / 'e.npy'}"]
    process = programs.start("predict", f"--model={small}", *places, tmp_path / "many")
    deadline = time.monotonic() + 120
    while not (rows.exists() and len(read(rows)) > 9) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    done = programs.finish(process)
    assert done.returncode == 130 and "Traceback" not in done.stderr, done.stderr
    kept = read(rows)
    assert f"the first {len(kept)} of 3000 recordings are in {rows}" in done.stderr
    assert len(kept) < 3000 and all(len(scores(row)) == 2 for row in kept) and not out.exists()
    assert len(np.load(tmp_path / "e.partial.npy")) == len(kept)
    programs.succeed("predict", f"--model={small}", *places, tmp_path / "one.wav")
    assert len(read(out)) == len(np.load(tmp_path / "e.npy")) == 1
    assert not list(tmp_path.glob("*.partial.*"))


def test_a_folder_is_its_audio_files(tmp_path):
    for name in ("b.FLAC", "a.wav", "._a.wav", "notes.txt", "deeper/c.caf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = predict.recordings([str(tmp_path)], tmp_path)
    assert [path.name for _, path in found] == ["a.wav", "b.FLAC", "c.caf"]


def test_broken_recordings_are_rows(tuned, tmp_path):
    folder, files = tuned
    (tmp_path / "broken.wav").write_bytes(b"nonsense")
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), 8000)
    soundfile.write(tmp_path / "low.wav", lively.waveform(4000)[0], 4000)
    good = next(iter(files.values()))
    names = ["broken.wav", "silent.wav", "low.wav", "missing.wav"]
    arguments = [f"--model={folder}", f"--out={tmp_path / 'out.csv'}"]
    paths = [*(tmp_path / name for name in names), good]
    done = programs.run("predict", *arguments, *paths)
    assert done.returncode == 1 and "4 recordings cannot be used" in done.stderr
    rows = read(tmp_path / "out.csv")
    said = [row["error"] for row in rows]
    assert "cannot decode" in said[0] or "can decode it" in said[0]
    assert said[1:] == ["silent", "a sample rate of 4000 Hz, under 8000 Hz", "no such file", ""]
    assert all(row["p(pain)"] == "" for row in rows[:4]) and rows[4]["p(pain)"] != ""
    programs.succeed("predict", *arguments, "--upsample", tmp_path / "low.wav")
    assert read(tmp_path / "out.csv")[0]["error"] == ""


@pytest.mark.parametrize("flag", ["out", "windows"])
def test_only_its_own_tables_are_replaced(small, tmp_path, flag):
    soundfile.write(tmp_path / "a.wav", lively.waveform(8_000)[0], 8_000)
    for suffix, other in ((".csv", "path,label\na.wav,pain\n"), (".jsonl", '{"path": "a.wav"}\n')):
        table = tmp_path / f"{flag}{suffix}"
        places = {"out": tmp_path / "other.csv", flag: table}
        arguments = [f"--model={small}", *(f"--{name}={path}" for name, path in places.items())]
        table.write_text(other)
        said = programs.refuse("predict", *arguments, tmp_path / "a.wav")
        assert f"{table}: exists, and is not from predict" in said and table.read_text() == other
        table.write_text("")
        for _ in range(2):  # an empty file, and an earlier output
            programs.succeed("predict", *arguments, tmp_path / "a.wav")
            assert str(tmp_path / "a.wav") in table.read_text()


@pytest.mark.parametrize("flag", ["out", "windows", "embeddings"])
def test_a_folder_is_no_output_file(small, tmp_path, flag):
    folder = tmp_path / ("folder.npy" if flag == "embeddings" else "folder.csv")
    folder.mkdir()
    places = {"out": tmp_path / "out.csv", flag: folder}
    said = programs.refuse(
        "predict", f"--model={small}", *(f"--{name}={path}" for name, path in places.items()), "a"
    )
    assert f"{folder}: is a folder" in said and not list(folder.iterdir())


def test_standard_input(tuned, tmp_path):
    folder, files = tuned
    number, file = next(iter(files.items()))
    command = [sys.executable, "-m", "cryjax.predict", f"--model={folder}", "--out=out.csv", "-"]
    subprocess.run(
        command, input=file.read_bytes(), cwd=tmp_path, check=True, capture_output=True,
        env=programs.environment(PYTHONPATH=str(programs.ROOT)),
    )  # fmt: skip
    (row,) = read(tmp_path / "out.csv")
    assert row["recording"] == "-"
    np.testing.assert_allclose(scores(row), predictions(folder)[number], atol=1e-6)


def test_weights_come_in_and_go_out(tmp_path):
    """safetensors -> run -> safetensors, and what an encoder alone can do."""
    source = lively.source("cnn6", "panns_16k", ("a", "b"))
    tensors = panns.to_state_dict(source.variables, "cnn6", source.description.front_end)
    panns.write_tensors(tmp_path / "in.safetensors", tensors, "float32")
    (tmp_path / "labels.csv").write_text("index,mid,display_name\n0,x,Crying\n1,y,Speech\n")
    folder = tmp_path / "run"
    done = programs.succeed(
        "import_weights", f"--weights={tmp_path / 'in.safetensors'}", f"--workdir={folder}",
        f"--labels={tmp_path / 'labels.csv'}", "--window_seconds=0.5",
    )  # fmt: skip
    assert "cnn6 of width 0.0625, front end panns_16k (16000 Hz), 2 classes" in done.stdout
    out = tmp_path / "out.safetensors"
    out.touch()
    done = programs.succeed("export", f"--model={folder}", "--format=safetensors", f"--out={out}")
    assert "replacing the existing file" in done.stdout and "unfinished" not in done.stderr
    back = panns.read_tensors(out)
    for name, tensor in panns.read_tensors(tmp_path / "in.safetensors").items():
        np.testing.assert_array_equal(back[name], tensor)
    with safetensors.safe_open(out, "numpy") as file:
        described = json.loads(file.metadata()["cryjax"])
    assert described["labels"] == ["Crying", "Speech"]
    assert described["front_end"]["sample_rate"] == 16_000
    encoder = tmp_path / "encoder.onnx"
    done = programs.succeed(
        "export", f"--model={folder}", "--format=onnx", f"--out={encoder}", "--encoder_only",
        "--weights=int8",
    )  # fmt: skip
    assert "tested on noise alone" in done.stdout and "probabilities" not in done.stdout
    soundfile.write(tmp_path / "a.flac", lively.waveform(44_100)[1], 44_100)
    said = programs.refuse("predict", f"--model={encoder}", f"--out={tmp_path / 'o.csv'}", "a.flac")
    assert "no classifier" in said and "--embeddings" in said
    programs.succeed(
        "predict", f"--model={encoder}", f"--out={tmp_path / 'o.csv'}",
        f"--embeddings={tmp_path / 'e.npy'}", tmp_path / "*.flac",
    )  # fmt: skip
    assert np.load(tmp_path / "e.npy").shape == (1, 32)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "run"
    source = lively.source("cnn6", labels=("a", "b"))
    run.write(folder, "cnn6", 1 / 16, "small_8k", 0.5, source.variables, ("a", "b"))
    return folder


@pytest.mark.parametrize(
    ("program", "arguments", "said"),
    [
        ("predict", ["--model=nowhere", "--out=o.csv", "a.wav"], "nowhere: no model found"),
        ("predict", ["--model=RUN", "--out=o.csv"], "no recordings; name files"),
        ("predict", ["--model=RUN", "--out=o.txt", "a.wav"], "name it .csv or .jsonl"),
        # No forgotten file name makes it overwrite what it reads.
        ("predict", ["--model=RUN", "--out=o.csv", "--embeddings", "a.wav", "b.wav"], "in .npy"),
        ("predict", ["--model=RUN", "--out=o.csv", "--embeddings=m.onnx", "a.wav"], "in .npy"),
        ("export", ["--model=RUN", "--format=onnx", "--out=m.bin"], "must end in .onnx"),
        ("export", ["--model=RUN", "--format=folder", "--out=RUN"], "already exists"),
        ("export", ["--model=RUN", "--format=folder", "--out=RUN/config.json"], "already exists"),
        ("export", ["--model=RUN", "--format=onnx", "--out=RUN/config.json/x/m.onnx"],
         "cannot be written (Not a directory)"),
        ("export", ["--model=RUN", "--format=onnx"], "--out is missing"),
        (
            "export",
            ["--model=RUN", "--format=onnx", "--out=TMP/m.onnx", "--weights=int8",
             "--tolerance=1e-9"],
            "the export differs from the run by",
        ),
        ("import_weights", ["--weights=x.pth", "--workdir=w"], "no such file"),
    ],
)  # fmt: skip
def test_mistakes(small, tmp_path, program, arguments, said):
    for name, place in {"RUN": str(small), "TMP": str(tmp_path)}.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    assert said in programs.refuse(program, *arguments)
    assert not list(tmp_path.iterdir())
