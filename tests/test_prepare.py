"""The prepare program: what it makes, that it does so once, its errors."""

import csv
import json
import shutil

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds

import programs
from cryjax.data import records, subjects

RATE = 16_000


def prepare(*arguments):
    return programs.run("prepare", *arguments)


def refused(*arguments):
    """The one line that the program writes when it fails."""
    return programs.refuse("prepare", *arguments)


def write_manifest(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label", "subject"), *rows])
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """20 recordings of 1.5 s by 10 subjects, at three rates, and two that cannot be used."""
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(20):
        rate = (RATE, 44_100, 8_000)[i % 3]
        soundfile.write(folder / f"{i}.wav", rng.normal(size=rate * 3 // 2) * 0.1, rate)
        rows.append((f"{i}.wav", ("pain", "hunger")[i % 2], f"s{i // 2}"))
    soundfile.write(folder / "silent.flac", np.zeros(RATE), RATE)
    rows += [("silent.flac", "pain", "s0"), ("none.wav", "pain", "s1")]
    write_manifest(folder / "all.csv", rows)
    write_manifest(folder / "bad.csv", rows[-2:])
    write_manifest(folder / "held_out.csv", [("elsewhere.wav", "", "s0"), ("x.wav", "", "s7")])
    return folder


def renamed(subject):
    """What a dataset calls a subject."""
    return subjects.pseudonym(subject, subjects.read_key())


def all_of(prepared, split):
    return list(prepared.source(split))


@pytest.fixture(scope="module")
def made(folder):
    """The command that was run, and its result."""
    command = (f"--manifest={folder / 'all.csv'}", f"--out={folder / 'data'}")
    return command, prepare(*command, "--segment_seconds=1")


def test_a_manifest_with_good_and_bad_files(folder, made):
    _, done = made
    assert done.returncode == 0, done.stderr
    prepared = records.open_prepared(folder / "data")
    # The last half second is dropped.
    assert prepared.splits == {"train": 20} and prepared.label_names == ("hunger", "pain")
    found = all_of(prepared, "train")
    assert {example["subject"] for example in found} == {renamed(f"s{i}") for i in range(10)}
    assert all(len(example["audio"]) == RATE for example in found)
    with (folder / "data" / "skipped.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["recording", "reason"],
            ["20", "silent"],
            ["21", "no such file"],
        ]
    header, train = done.stdout.splitlines()[1:3]
    assert header.split() == ["split", "recordings", "examples", "subjects", "hours", "labels"]
    assert train.split()[:4] == ["train", "20", "20", "10"]
    assert "pain 10" in train and "hunger 10" in train
    assert "skipped 2 recordings (1 x silent; 1 x no such file)" in done.stdout
    assert "skipped.csv" in done.stdout
    assert "6 of 20 recordings were made at less than 16000 Hz (6 at 8000 Hz)" in done.stdout


def test_slips_that_a_manifest_may_have_are_said(folder, made, tmp_path):
    """A subject column of another name and a label spelt in two ways are only warned about."""
    assert "'subject'" not in made[1].stdout and "spelt" not in made[1].stdout
    rows = ["path,label,infant", *(f"{folder}/{i}.wav,pain,s0" for i in range(4))]
    rows += [f"{folder}/4.wav,Pain,s1", f"{folder}/5.wav,,S01"]
    (tmp_path / "m.csv").write_text("\n".join(rows), encoding="utf-8")
    arguments = f"--manifest={tmp_path / 'm.csv'}", f"--allow_dir={folder}"
    done = prepare(*arguments, f"--out={tmp_path / 'data'}")
    assert done.returncode == 0, done.stderr
    assert "recordings without a 'subject': 6;" in done.stdout
    assert "labels of only one recording: 'Pain'; are they spelt as intended?" in done.stdout
    assert "hyphens, leading zeros or a trailing '.0': 'Pain' 1, 'pain' 4" in done.stdout
    assert "1 of 6 recordings have no label" in done.stdout
    done = prepare(*arguments, "--subject_column=infant", f"--out={tmp_path / 'by_infant'}")
    assert done.returncode == 0, done.stderr
    assert "'S01', 's1'" in done.stdout and "without a 'subject'" not in done.stdout
    assert records.open_prepared(tmp_path / "by_infant").counts["train"]["subjects"] == 3


@pytest.mark.parametrize("by_flag", [False, True])
def test_a_split_that_no_program_looks_for_is_said(folder, tmp_path, by_flag):
    rows = [f"{folder}/{i}.wav,{'' if by_flag else ('train', 'Val')[i]}" for i in range(2)]
    (tmp_path / "m.csv").write_text("\n".join(["path,split", *rows]), encoding="utf-8")
    done = prepare(
        f"--manifest={tmp_path / 'm.csv'}", f"--allow_dir={folder}", f"--out={tmp_path / 'data'}",
        *["--splits=train=0.5,Val=0.5"][: by_flag],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "split 'Val': programs look for 'train', 'validation' and 'test'" in done.stdout
    assert "split 'train'" not in done.stdout


def test_the_same_audio_in_other_files(tmp_path):
    """Copies of one subject are used once, of two in two splits never; silence is no copy."""
    rng = np.random.default_rng(0)
    once, twice, other = (rng.integers(-9_000, 9_000, RATE, np.int16) for _ in range(3))
    stereo = np.stack([other, other], axis=1)
    for name, audio in (
        ("a.wav", once), ("a.flac", once), ("b.wav", twice), ("b.aiff", twice),
        ("c.wav", other), ("c.flac", stereo), ("0.wav", 0 * once), ("1.wav", 0 * once),
    ):  # fmt: skip
        soundfile.write(tmp_path / name, audio, RATE)
    (tmp_path / "m.csv").write_text(
        "path,label,subject,split\na.wav,pain,ann,train\nb.wav,pain,bob,train\n"
        "c.wav,pain,cid,test\na.flac,pain,ann,train\nb.aiff,pain,dan,test\n"
        "c.flac,,,train\n0.wav,pain,ann,train\n1.wav,hunger,bob,train\n"
    )
    done = prepare(
        f"--manifest={tmp_path / 'm.csv'}", f"--out={tmp_path / 'data'}", "--workers=2",
        f"--mapping={tmp_path / 'mapping.csv'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "skipped 6 recordings" in done.stdout
    assert "2 are the same audio under different labels or subjects" in done.stdout
    with (tmp_path / "mapping.csv").open(newline="") as file:
        said = {line["path"]: line["skipped"] for line in csv.DictReader(file)}
    assert said == {
        "a.wav": "",
        "b.wav": "the same audio as recording 4, with another subject",
        "c.wav": "",
        "a.flac": "the same audio as recording 0",
        "b.aiff": "the same audio as recording 1, with another subject",
        "c.flac": "the same audio as recording 2",
        "0.wav": "silent",
        "1.wav": "silent",
    }
    prepared = records.open_prepared(tmp_path / "data")
    for split, audio in (("train", once), ("test", other)):
        (example,) = all_of(prepared, split)
        np.testing.assert_array_equal(example["audio"], audio)


def test_again_does_nothing_and_other_inputs_are_refused(folder, made):
    command, _ = made
    before = {p: p.stat().st_mtime_ns for p in [folder, *(folder / "data").rglob("*")]}
    done = prepare(*command, "--segment_seconds=1")
    assert done.returncode == 0 and "nothing to do; to retry" in done.stdout
    assert "train" in done.stdout
    line = refused(*command, "--segment_seconds=2", "--sample_rate=8000")
    assert "different: sample_rate, segment_seconds" in line and "use another folder" in line
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert not list(folder.glob(".*"))


def test_only_bad_files(folder, tmp_path):
    done = prepare(f"--manifest={folder / 'bad.csv'}", f"--out={tmp_path / 'data'}")
    assert done.returncode == 2
    *_, line = done.stderr.splitlines()  # after the progress bar
    assert "none of 2 recordings can be used" in line and "1 x silent" in line
    assert f"the first missing file is '{folder / 'none.wav'}'" in line
    assert not list(tmp_path.iterdir())


def test_splits_and_excluded_subjects(folder, tmp_path):
    done = prepare(
        f"--manifest={folder / 'all.csv'}",
        f"--out={tmp_path / 'data'}",
        "--splits=train=0.75,test=0.25",
        f"--exclude={folder / 'held_out.csv'}",
        "--workers=1",
    )
    assert done.returncode == 0, done.stderr
    assert "left out 5 recordings of 2 excluded subjects" in done.stdout
    prepared = records.open_prepared(tmp_path / "data")
    found = {
        split: {example["subject"] for example in all_of(prepared, split)}
        for split in prepared.splits
    }
    assert (len(found["train"]), len(found["test"])) == (6, 2)
    assert not found["train"] & found["test"]
    assert not {renamed("s0"), renamed("s7")} & (found["train"] | found["test"])


def test_who_is_not_said_to_be_anybody_is_known_by_the_audio_alone(folder, tmp_path):
    """Wherever the file lies, so nobody is trained on and scored unnoticed; names do not matter."""
    for place, first in (("here", 3), ("there", 3), ("else", 6)):
        (tmp_path / place).mkdir()
        for n in range(3):
            shutil.copy(folder / f"{first + n}.wav", tmp_path / place / f"{n}.wav")
        (tmp_path / place / "m.csv").write_text("path\n0.wav\n1.wav\n2.wav\n")
        done = prepare(
            f"--manifest={tmp_path / place / 'm.csv'}", f"--out={tmp_path / place / 'data'}",
            f"--mapping={tmp_path / place / 'map.csv'}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    here, there, other = (
        records.open_prepared(tmp_path / place / "data") for place in ("here", "there", "else")
    )
    assert here.fingerprint == there.fingerprint != other.fingerprint
    people = [sorted(each.index().subjects) for each in (here, there, other)]
    assert people[0] == people[1] and len({*people[0], *people[2]}) == 6
    assert all(subjects.is_pseudonym(name) for name in people[0])
    with (tmp_path / "here" / "map.csv").open(newline="") as file:
        assert sorted(line["pseudonym"] for line in csv.DictReader(file)) == people[0]


def test_a_mapping_overwrites_no_file_but_a_mapping(folder, tmp_path):
    for name in ("mine.csv", "held_out.csv"):
        shutil.copy(folder / name.replace("mine", "all"), tmp_path / name)
    (tmp_path / "link.csv").symlink_to("mine.csv")
    (tmp_path / "notes.csv").write_text("recording,remark\n1,loud\n")
    (tmp_path / "data").mkdir()
    command = (
        f"--manifest={tmp_path / 'mine.csv'}", f"--exclude={tmp_path / 'held_out.csv'}",
        f"--allow_dir={folder}", f"--out={tmp_path / 'data'}",
    )  # fmt: skip
    for name, why in (
        ("mine.csv", "would overwrite what is read"),
        ("link.csv", "would overwrite what is read"),
        ("held_out.csv", "would overwrite what is read"),
        ("notes.csv", "is not a mapping; name another file"),
        (".", "cannot be written"),
        ("data/mapping.csv", "would be shared with --out"),
    ):
        before = {path: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()}
        assert why in refused(*command, f"--mapping={tmp_path / name}")
        after = {path: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()}
        assert before == after
    mapping = tmp_path / "mapping.csv"
    # Of a failure, nothing is left; an empty file or an older mapping is replaced.
    assert prepare(command[0], command[2], command[3], f"--mapping={mapping}").returncode == 2
    assert not mapping.exists()
    mapping.touch()
    command = (f"--manifest={folder / 'all.csv'}", f"--out={tmp_path / 'data'}")
    for _ in range(2):
        done = prepare(*command, f"--mapping={mapping}")
        assert done.returncode == 0, done.stderr
        with mapping.open(newline="") as file:
            assert [line["skipped"] for line in csv.DictReader(file)][19:] == [
                "",
                "silent",
                "no such file",
            ]
    # It has the columns of a manifest, and may be read as one, but is not written over itself.
    line = refused(f"--manifest={mapping}", f"--out={tmp_path / 'other'}", f"--mapping={mapping}")
    assert "would overwrite what is read" in line


def test_what_excludes_nothing_is_refused(folder, tmp_path):
    write_manifest(tmp_path / "others.csv", [("elsewhere.wav", "", "nobody")])
    line = refused(
        f"--manifest={folder / 'all.csv'}",
        f"--exclude={tmp_path / 'others.csv'}",
        f"--out={tmp_path / 'data'}",
    )
    assert "none of its subjects or files" in line and "others.csv" in line
    # Each file must exclude somebody.
    line = refused(
        f"--manifest={folder / 'all.csv'}",
        f"--exclude={folder / 'held_out.csv'},{tmp_path / 'others.csv'}",
        f"--out={tmp_path / 'data'}",
    )
    assert "none of its subjects or files" in line and "held_out.csv" not in line


def test_whom_exclude_may_have_missed_is_said(folder, tmp_path):
    rows = [(f"{i}.wav", "", subject) for i, subject in enumerate(["S 3", "s9", "s03", "nobody"])]
    write_manifest(tmp_path / "others.csv", rows)
    done = prepare(
        f"--manifest={folder / 'all.csv'}",
        f"--exclude={tmp_path / 'others.csv'},{folder / 'held_out.csv'}",
        f"--out={tmp_path / 'data'}",
    )
    assert done.returncode == 0, done.stderr
    assert "others.csv: 3 of its 4 subjects are not in " in done.stdout
    assert "held_out.csv: 0 of its 2 subjects are not in " in done.stdout
    assert "left out 7 recordings of 3 excluded subjects" in done.stdout
    assert "differ from excluded ones only in" in done.stdout and "'s03', 's3'" in done.stdout


def test_a_subject_is_excluded_by_any_of_its_files(folder, tmp_path):
    # Without a column 'subject', as in a list of a test set's files.
    (tmp_path / "test_set.csv").write_text(f"path\n{folder / '4.wav'}\n")
    done = prepare(
        f"--manifest={folder / 'all.csv'}",
        f"--exclude={tmp_path / 'test_set.csv'}",
        f"--out={tmp_path / 'data'}",
        "--workers=1",
    )
    assert "left out 2 recordings of 1 excluded subjects" in done.stdout, done.stderr


def test_synthetic_says_that_it_is(tmp_path):
    done = prepare(
        "--synthetic=cries", "--examples=30", f"--out={tmp_path / 'data'}", "--sample_rate=8000"
    )
    assert done.returncode == 0, done.stderr
    assert "synthetic, 8000 Hz" in done.stdout
    prepared = records.open_prepared(tmp_path / "data")
    assert prepared.synthetic and prepared.sample_rate == 8_000
    assert prepared.counts["train"]["recordings"] == 30
    assert prepared.counts["train"]["labels"] == {"discomfort": 10, "hunger": 10, "pain": 10}


class Spoken(tfds.core.GeneratorBasedBuilder):
    """Like a dataset of the catalogue, but with audio that needs no TensorFlow."""

    VERSION = tfds.core.Version("2.0.0")

    def _info(self):
        features = {
            "audio": tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding="bytes"),
            "label": tfds.features.ClassLabel(names=["no", "yes"]),
            "speaker_id": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {"train": self._generate_examples(6, 0), "test": self._generate_examples(3, 100)}

    def _generate_examples(self, count, first):
        for i in range(count):
            level = np.full(8_000, first + i + 1, np.int16)  # tells them apart
            yield i, {"audio": level, "label": i % 2, "speaker_id": f"sp{first + i // 2}"}


def test_a_tfds_dataset_is_converted(tmp_path):
    builder = Spoken(file_format="array_record", data_dir=str(tmp_path / "tfds"))
    builder.download_and_prepare()
    source = f"--tfds={builder.data_dir}"
    out = tmp_path / "data"
    done = prepare(source, f"--out={out}")
    assert done.returncode == 2 and "--source_rate" in done.stderr.splitlines()[-1]
    done = prepare(source, f"--out={out}", "--source_rate=8000", "--sample_rate=8000")
    assert done.returncode == 0, done.stderr
    prepared = records.open_prepared(out)
    assert prepared.splits == {"test": 3, "train": 6} and not prepared.synthetic
    assert prepared.label_names == ("no", "yes")
    for split, first in (("train", 0), ("test", 100)):
        found = {int(example["audio"][0]): example for example in all_of(prepared, split)}
        for i in range(prepared.splits[split]):
            example = found[first + i + 1]
            np.testing.assert_array_equal(example["audio"], np.full(8_000, first + i + 1))
            assert example["label"] == ("no", "yes")[i % 2]
            assert example["subject"] == renamed(f"sp{first + i // 2}")
    inputs = json.loads((out / "prepared.json").read_text("utf-8"))["inputs"]
    assert inputs["tfds"] == "spoken/2.0.0" and inputs["source_rate"] == 8_000


def test_beam_where_it_is_missing(folder, tmp_path, monkeypatch):
    (tmp_path / "apache_beam.py").write_text("raise ImportError('it is not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    out = tmp_path / "data"
    # A process of its own: the module search path is fixed at its start.
    process = programs.start(
        "prepare", f"--manifest={folder / 'all.csv'}", f"--out={out}", "--beam_runner=DirectRunner"
    )
    done = programs.finish(process)
    assert done.returncode == 2 and not out.exists()
    assert 'pip install "cryjax[beam]"' in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--out=OUT"], "give one of --manifest, --corpus, --tfds or"),
        (["--out=OUT", "--synthetic=cries", "--manifest=x.csv"], "give one of"),
        (["--synthetic=cries"], "--out is missing"),
        (["--out=OUT", "--corpus=esc50", "--manifest=x.csv"], "give one of"),
        (["--out=OUT", "--corpus=esc50"], "--corpus_dir is missing"),
        (["--corpus=esc50", "--corpus_dir=x"], "--out is missing"),
        (["--out=OUT", "--corpus=esc51", "--corpus_dir=x"], "esc50"),
        (["--out=OUT", "--corpus=esc50", "--corpus_dir=none"], "no such folder"),
        (
            ["--out=OUT", "--corpus_dir=x", "--synthetic=cries"],
            "is for --corpus and not for --synthetic",
        ),
        (
            ["--out=OUT", "--write_manifest=OUT", "--manifest=x.csv"],
            "for --corpus and not for --manifest",
        ),
        (
            ["--write_manifest=OUT", "--corpus=esc50", "--corpus_dir=x", "--exclude=x.csv"],
            "prepare it with --manifest",
        ),
        (["--out=OUT", "--tfds=no_such_dataset"], "no_such_dataset"),
        (["--out=OUT", "--tfds=any", "--splits=train=1"], "--splits"),
        (["--out=OUT", "--manifest=none.csv"], "no such manifest"),
        (["--out=OUT", "--synthetic=cries", "--sample_rat=8000"], "sample_rat"),
        (["--out=OUT", "--synthetic=cries", "--exclude=x.csv"], "--exclude"),
        (["--out=OUT", "--manifest=x.csv", "--examples=7"], "--examples is for --synthetic and"),
        (["--out=OUT", "--synthetic=cries", "--label_column=x"], "--label_column is for"),
        (["--out=OUT", "--synthetic=cries", "--examples=10", "--splits=a=0.5,b=0.5"], "1 subject"),
        (["--out=OUT", "--synthetic=cries", "--split_seed=-1"], "split_seed"),
        (["--out=OUT", "--synthetic=cries", "--shards=0"], "shards"),
        (
            ["--out=OUT", "--synthetic=cries", "--segment_seconds=nan"],
            "=nan is not a length; 86400",
        ),
        (
            ["--out=OUT", "--synthetic=cries", "--segment_seconds=inf"],
            "=inf is not a length; 86400",
        ),
        (["--out=OUT", "--synthetic=cries", "--sample_rate=768001"], "768000"),
        (["--out=OUT", "--synthetic=cries", "--beam_options=a=b"], "--beam_runner"),
        (["--out=OUT", "--tfds=any", "--beam_runner=DirectRunner"], "--beam_runner"),
    ],
)
def test_mistakes_are_one_line_and_make_nothing(tmp_path, arguments, named):
    out = tmp_path / "data"
    line = refused(*(argument.replace("OUT", str(out)) for argument in arguments))
    assert named in line
    assert not list(tmp_path.iterdir())
