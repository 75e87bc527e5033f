"""Each corpus is read from a small tree in its published layout; the rows are spelled out."""

import csv
import json
import shutil

import numpy as np
import pytest
import soundfile

import programs
from cryjax.command.errors import UserError
from cryjax.data import corpora, records, subjects
from cryjax.data.manifest import read_manifest

APP = "0D1AD73E-4C5E-45F3-85C4-9A3CB71E8856"
ANDROID = "0c8f14a9-6999-485b-97a2-913c1cbf099c"
INFO = "FSD50K.metadata/{}_clips_info_FSD50K.json"
CLEANED = "donateacry_corpus_cleaned_and_updated_data"

# Corpus -> metadata files, and the audio that is there.
TREES = {
    "vggsound": (
        {
            "vggsound.csv": '---g-f_I2yQ,1,people marching,test\n"Yb_ccdefghi",30,"dog, bow-wow",'
            "train\nGone_ccdefg,120,people marching,train\n"
        },
        [
            "scratch/video/---g-f_I2yQ_000001.mp4",
            "Yb_ccdefghi_000030.wav",
            "Yb_ccdefghi_000031.wav",
        ],
    ),
    "audioset": (
        {
            "class_labels_indices.csv": "index,mid,display_name\n0,/m/09x0r,Speech\n"
            '23,/t/dd00002,"Baby cry, infant cry"\n1,/m/01,"Odd; name"\n',
            "balanced_train_segments.csv": "# Segments csv created Sun Mar  5 10:54:31 2017\n"
            "# num_ytids=2, num_segs=2, num_unique_labels=2, num_positive_labels=3\n"
            "# YTID, start_seconds, end_seconds, positive_labels\n"
            '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00002"\n'
            'Yone_gOne__, 0.000, 10.000, "/m/09x0r"\n',
            "unbalanced_train_segments.csv": "# YTID, start_seconds, end_seconds, ...\n"
            '---1_cCGK4M, 0.000, 10.000, "/m/01"\n',
            "eval_segments.csv": "# YTID, start_seconds, end_seconds, positive_labels\n"
            'Y4gqARaEJE_, 0.000, 10.000, "/t/dd00002"\n'
            'abcdefghijk, 20.000, 30.000, "/m/unnamed"\n',
        },
        [
            "balanced_train_segments/Y--PJHxphWEs.wav",
            "balanced_train_segments/Y--PJHxphWEs.txt",
            "unbalanced/part00/---1_cCGK4M_0.000_10.000.m4a",
            "eval/Y4gqARaEJE_.wav",
            "eval/abcdefghijk_20.mp4",
            "eval/abcdefghijk_20.flac",
        ],
    ),
    "fsd50k": (
        {
            "FSD50K.ground_truth/dev.csv": "fname,labels,mids,split\n"
            '64760,"Electric_guitar,Music","/m/02sgy,/m/04rlf",train\n'
            '16399,"Music","/m/04rlf",val\n21914,"Bark,Dog","/m/05tny_,/m/0bt9lr",train\n',
            "FSD50K.ground_truth/eval.csv": 'fname,labels,mids\n37199,"Bark,Dog","/m/0,/m/1"\n',
            INFO.format("dev"): json.dumps(
                {
                    "64760": {"title": "a", "uploader": "casual"},
                    "16399": {"title": "b", "uploader": "other"},
                    "21914": {"title": "c", "uploader": "other"},
                }
            ),
            INFO.format("eval"): json.dumps({"37199": {"title": "d", "uploader": "third"}}),
        },
        [f"FSD50K.dev_audio/{name}.wav" for name in (64760, 16399, 21914)]
        + ["FSD50K.eval_audio/37199.wav"],
    ),
    "esc50": (
        {
            "meta/esc50.csv": "filename,fold,target,category,esc10,src_file,take\n"
            "1-100032-A-0.wav,1,0,dog,True,100032,A\n"
            "1-100032-B-0.wav,1,0,dog,True,100032,B\n"
            "5-9032-A-20.wav,5,20,crying_baby,True,9032,A\n"
        },
        ["audio/1-100032-A-0.wav", "audio/5-9032-A-20.wav", "audio/._1-100032-A-0.wav"],
    ),
    "urbansound8k": (
        {
            "metadata/UrbanSound8K.csv": "slice_file_name,fsID,start,end,salience,fold,classID,"
            "class\n100032-3-0-0.wav,100032,0.0,0.317551,1,5,3,dog_bark\n"
            "106905-5-0-0.wav,106905,55.0,59.0,2,8,5,engine_idling\n"
            "106905-8-0-0.wav,106905,43.6,47.6,2,1,8,siren\n"
        },
        [
            "audio/fold5/100032-3-0-0.wav",
            "audio/fold8/106905-5-0-0.wav",
            "audio/fold1/106905-8-0-0.wav",
        ],
    ),
    "donateacry": (
        {f"{CLEANED}/README.md": "", f"{CLEANED}/burping/.DS_Store": ""},
        [
            f"{CLEANED}/hungry/{APP}-1430742197-1.0-m-04-hu.wav",
            f"{CLEANED}/discomfort/{APP.lower()}-1430844958178-1.7-f-26-ch.wav",
            f"{CLEANED}/belly_pain/{ANDROID}-1430760379259-1.7-m-72-bp.wav",
            f"{CLEANED}/tired/{ANDROID}-1430760394426-1.7-m-72-ti.wav",
        ],
    ),
    "cryceleb": (
        {
            "metadata.csv": "baby_id,period,duration,split,chronological_index,file_name,file_id\n"
            "1,B,1.32,train,001,audio/train/spk1/B/spk1_B_001.wav,1_B_001\n"
            "694,D,0.7,dev,000,audio/dev/spk694/D/spk694_D_000.wav,694_D_000\n"
            ",B,0.9,test,002,audio/test/anonymous1/B/anonymous1_B_002.wav,anonymous1_B_002\n"
            "2,B,1.1,train,001,audio/train/spk2/B/spk2_B_001.wav,2_B_001\n"
        },
        [
            "audio/train/spk1/B/spk1_B_001.wav",
            "audio/dev/spk694/D/spk694_D_000.wav",
            "audio/test/anonymous1/B/anonymous1_B_002.wav",
        ],
    ),
    "chillanto": (
        {"hunger/notes.txt": ""},
        [
            "asphyxia/0066029030.wav",
            "deaf/0025001010.wav",
            "deaf/0025002010.wav",
            "normal/0052001000.wav",
            "pain/0001001002.wav",
        ],
    ),
}

# Corpus -> path, label, subject and split of each row.
ROWS = {
    "vggsound": [
        ("scratch/video/---g-f_I2yQ_000001.mp4", "people marching", "---g-f_I2yQ", "test"),
        ("Yb_ccdefghi_000030.wav", "dog, bow-wow", "Yb_ccdefghi", "train"),
    ],
    "audioset": [
        (
            "balanced_train_segments/Y--PJHxphWEs.wav",
            "Speech;Baby cry, infant cry",
            "--PJHxphWEs",
            "train",
        ),
        ("unbalanced/part00/---1_cCGK4M_0.000_10.000.m4a", "Odd, name", "---1_cCGK4M", "train"),
        ("eval/Y4gqARaEJE_.wav", "Baby cry, infant cry", "Y4gqARaEJE_", "test"),
        ("eval/abcdefghijk_20.flac", "/m/unnamed", "abcdefghijk", "test"),
    ],
    "fsd50k": [
        ("FSD50K.dev_audio/64760.wav", "Electric_guitar;Music", "casual", "train"),
        ("FSD50K.dev_audio/16399.wav", "Music", "other/validation", "validation"),
        ("FSD50K.dev_audio/21914.wav", "Bark;Dog", "other/train", "train"),
        ("FSD50K.eval_audio/37199.wav", "Bark;Dog", "third", "test"),
    ],
    "esc50": [
        ("audio/1-100032-A-0.wav", "dog", "100032", "fold1"),
        ("audio/5-9032-A-20.wav", "crying_baby", "9032", "fold5"),
    ],
    "urbansound8k": [
        ("audio/fold5/100032-3-0-0.wav", "dog_bark", "100032", "fold5"),
        ("audio/fold8/106905-5-0-0.wav", "engine_idling", "106905/fold8", "fold8"),
        ("audio/fold1/106905-8-0-0.wav", "siren", "106905/fold1", "fold1"),
    ],
    "donateacry": [
        (TREES["donateacry"][1][2], "belly_pain", ANDROID, ""),
        (TREES["donateacry"][1][1], "discomfort", APP.lower(), ""),
        (TREES["donateacry"][1][0], "hungry", APP.lower(), ""),
        (TREES["donateacry"][1][3], "tired", ANDROID, ""),
    ],
    "cryceleb": [
        ("audio/train/spk1/B/spk1_B_001.wav", "", "1", "train"),
        ("audio/dev/spk694/D/spk694_D_000.wav", "", "694", "validation"),
        ("audio/test/anonymous1/B/anonymous1_B_002.wav", "", "anonymous1", "test"),
    ],
    "chillanto": [
        ("asphyxia/0066029030.wav", "asphyxia", "0066", ""),
        ("deaf/0025001010.wav", "deaf", "0025", ""),
        ("deaf/0025002010.wav", "deaf", "0025", ""),
        ("normal/0052001000.wav", "normal", "0052", ""),
        ("pain/0001001002.wav", "pain", "0001", ""),
    ],
}
LEFT_OUT = {"vggsound": "1 of 3", "audioset": "1 of 5", "esc50": "1 of 3", "cryceleb": "1 of 4"}
DIVIDED = {"fsd50k": "1 of 3", "urbansound8k": "1 of 2"}
METADATA = [
    (name, path)
    for name, (files, _) in TREES.items()
    for path in files
    if path.endswith((".csv", ".json")) and "segments" not in path  # of which one is enough
]


@pytest.fixture
def tree(tmp_path):
    """Makes the folder of a corpus; the audio is empty files."""

    def make(name):
        metadata, audio = TREES[name]
        for path, text in (metadata | dict.fromkeys(audio, "")).items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text, "utf-8")
        return tmp_path

    return make


def message(name, folder):
    with pytest.raises(UserError) as caught:
        corpora.read_corpus(name, folder)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_every_corpus_is_tested_and_says_what_it_is():
    assert set(TREES) == set(ROWS) == set(corpora.CORPORA)
    for name, corpus in corpora.CORPORA.items():
        assert corpus.name == name and corpus.url.startswith("http")
        assert corpus.licence and corpus.caveat and "\n" not in corpus.licence + corpus.caveat


@pytest.mark.parametrize("name", TREES)
def test_rows_and_what_is_not_there(tree, name, caplog):
    folder = tree(name)
    rows = corpora.read_corpus(name, folder)
    found = [(row.path, row.label, row.subject, row.split) for row in rows]
    assert found == [(folder / path, *rest) for path, *rest in ROWS[name]]
    assert [row.name for row in rows] == [str(row.path) for row in rows]
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert (f"{LEFT_OUT.get(name)} recordings are missing" in said) == (name in LEFT_OUT)
    assert (f"divide {DIVIDED.get(name)} subjects" in said) == (name in DIVIDED)


@pytest.mark.parametrize("name", TREES)
def test_a_written_manifest_is_read_as_the_same_rows(tree, tmp_path_factory, name, monkeypatch):
    folder = tree(name)
    monkeypatch.chdir(folder.parent)
    rows = corpora.read_corpus(name, folder.name)
    path = tmp_path_factory.mktemp("elsewhere") / "m.csv"
    corpora.write_manifest(path, rows)
    assert read_manifest(path) == rows
    with pytest.raises(UserError, match="exists; give a new name"):
        corpora.write_manifest(path, rows)
    with pytest.raises(UserError, match="cannot be written"):
        corpora.write_manifest(path / "m.csv", rows)


@pytest.mark.parametrize(("name", "path"), METADATA)
def test_a_metadata_file_that_is_missing_or_broken_is_named(tree, name, path):
    folder = tree(name)
    (folder / path).write_bytes(b"\xff\xfe\xff")
    text = message(name, folder)
    assert str(folder / path) in text and "download it again" in text
    (folder / path).unlink()
    text = message(name, folder)
    assert str(folder / path) in text and "give the folder of the unpacked download" in text


def test_a_column_that_is_missing_is_named(tree):
    folder = tree("esc50")
    (folder / "meta/esc50.csv").write_text("filename,target\n1-100032-A-0.wav,0\n")
    assert "no column fold, category, src_file" in message("esc50", folder)


def test_audioset_needs_one_list(tree):
    folder = tree("audioset")
    for part in ("balanced_train", "unbalanced_train"):
        (folder / f"{part}_segments.csv").unlink()
    assert [row.split for row in corpora.read_corpus("audioset", folder)] == ["test", "test"]
    (folder / "eval_segments.csv").unlink()
    text = message("audioset", folder)
    assert str(folder / "eval_segments.csv") in text and "download one or more" in text


def test_fsd50k_needs_every_uploader(tree):
    folder = tree("fsd50k")
    (folder / INFO.format("eval")).write_text('{"37199": {"title": "d"}}')
    text = message("fsd50k", folder)
    assert str(folder / INFO.format("eval")) in text and "no uploader for clip 37199" in text


@pytest.mark.parametrize(
    ("name", "below", "bad"),
    [("donateacry", f"{CLEANED}/tired", "cry.wav"), ("chillanto", "pain", "001.wav")],
)
def test_folders_of_classes(tree, name, below, bad):
    folder = tree(name)
    (folder / below / bad).touch()
    text = message(name, folder)
    assert str(folder / below / bad) in text and "rename or remove it" in text
    shutil.rmtree(folder / below)
    text = message(name, folder)
    assert str(folder / below) in text and "unpacked download" in text


def test_the_folders_of_donateacry_alone(tree):
    rows = corpora.read_corpus("donateacry", tree("donateacry") / CLEANED)
    assert [row.label for row in rows] == ["belly_pain", "discomfort", "hungry", "tired"]


def test_no_folder_no_corpus_no_audio(tree, tmp_path):
    assert "no such folder; give the one" in message("esc50", tmp_path / "none")
    assert "esc50" in message("nonesuch", tmp_path)
    folder = tree("esc50")
    shutil.rmtree(folder / "audio")
    assert "none of 3 recordings is there" in message("esc50", folder)


def test_prepare_esc50(tmp_path):
    """Two folds, one clip not there, prepared and, by way of a manifest, again."""
    folder = tmp_path / "ESC-50-master"
    (folder / "audio").mkdir(parents=True)
    (folder / "meta").mkdir()
    clips = [(1, "A", 100032), (1, "B", 100032), (2, "A", 9032), (2, "A", 77), (2, "A", 78)]
    with (folder / "meta/esc50.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["filename", "fold", "target", "category", "esc10", "src_file", "take"])
        for seed, (fold, take, source) in enumerate(clips):
            name = f"{fold}-{source}-{take}-0.wav"
            table.writerow([name, fold, 0, "dog", "True", source, take])
            if source != 78:
                noise = np.random.default_rng(seed).normal(size=8_000) * 0.1
                soundfile.write(folder / "audio" / name, noise, 8_000)
    public = ["--corpus=esc50", f"--corpus_dir={folder}"]
    common = ["--sample_rate=8000", "--workers=1"]
    out = tmp_path / "data"
    done = programs.succeed("prepare", *public, *common, f"--out={out}")
    assert "CC BY-NC 3.0" in done.stdout and "caveat: 40 clips per class" in done.stdout
    assert "1 of 5 recordings are missing" in done.stderr
    prepared = records.open_prepared(out)
    assert prepared.splits == {"fold1": 2, "fold2": 2} and prepared.label_names == ("dog",)
    assert {example["subject"] for example in prepared.source("fold1")} == {
        subjects.pseudonym("100032", subjects.read_key())
    }
    info = json.loads((out / "prepared.json").read_text("utf-8"))
    assert info["inputs"]["corpus"] == "esc50"

    manifest = tmp_path / "esc50.csv"
    done = programs.succeed("prepare", *public, f"--write_manifest={manifest}")
    assert "4 recordings" in done.stdout and "--manifest" in done.stdout
    assert read_manifest(manifest) == corpora.read_corpus("esc50", folder)

    line = programs.refuse("prepare", *public, f"--out={tmp_path / 'x'}", "--splits=train=1")
    assert "has its own splits" in line
    manifest.write_text(f"path\n{folder / 'audio/1-100032-A-0.wav'}\n")
    done = programs.succeed(
        "prepare", *public, *common, f"--exclude={manifest}", f"--out={tmp_path / 'less'}"
    )
    assert "left out 2 recordings of 1 excluded subjects" in done.stdout
    assert records.open_prepared(tmp_path / "less").splits == {"fold2": 2}
