"""What may be wrong in a manifest or a dataset is said; of one as it should be, nothing."""

import dataclasses
import pathlib

import pytest

from cryjax.data import remarks
from cryjax.data.manifest import Row

INFO = {
    "skipped": 0,
    "sample_rate": 16_000,
    "synthetic": False,
    "splits": {"train": {"recordings": 9, "labels": {"hungry": 7, "pain": 2}}},
}


def row(subject="s1", label="x"):
    return Row(pathlib.Path("/"), "a.wav", label, subject, "")


def with_labels(**labels):
    return INFO | {"splits": {"train": {"recordings": 9, "labels": labels}}}


def test_what_is_as_it_should_be_is_not_remarked_on():
    assert not remarks.alike(["s1", "s1", "s10", "s2", "s1", "100", "10", "1.05", "1.5"])
    assert not remarks.of_rows([row("s1"), row("s2")], [], "label")
    assert not remarks.of_dataset(INFO)


def test_names_that_a_spreadsheet_or_a_hand_spelt_in_two_ways():
    subjects = ["007", "7", "B02", "b2", "Ann Lee", "ann_lee", "ann-lee ", "s1", "7"]
    groups = remarks.alike(subjects)
    assert groups == [["007", "7"], ["B02", "b2"], ["Ann Lee", "ann-lee ", "ann_lee"]]
    (said,) = remarks.of_rows([*map(row, subjects)], groups, "label")
    assert "'007', '7'; 'B02', 'b2'" in said and "spell them alike" in said


@pytest.mark.parametrize("invisible", ["\u200b", "\ufeff", "\u00ad", "\u200e"])
def test_invisible_characters_make_no_other_name(invisible):
    assert remarks.alike(["s1", f"s{invisible}1", "s2"]) == [["s1", f"s{invisible}1"]]
    said = "\n".join(remarks.of_dataset(with_labels(pain=4, **{f"{invisible}pain": 3})))
    assert "differ only in capitals, blanks, invisible characters" in said


def test_numbers_that_a_program_wrote_as_decimals():
    groups = remarks.alike(
        ["7", "7.0", "007.00", "8,0", "8", "9.5", "9.50", "10", "100", "0", "0.0"]
    )
    assert groups == [["007.00", "7", "7.0"], ["8", "8,0"], ["0", "0.0"]]
    assert not remarks.alike(["v1.0", "v1", "1.0.0", "1", "1,05", "1,5", "10.01", "10.1"])
    said = "\n".join(remarks.of_dataset(with_labels(**{"1": 4, "1.0": 3, "2": 3})))
    assert "a trailing '.0': '1' 4, '1.0' 3" in said


def test_kept_subjects_that_are_spelt_like_excluded_ones():
    kept, excluded = {"7", "8", "10", "nr_4", "B2", "b02"}, {"007", "8a", "Nr 4", "9", "c 1", "C1"}
    (said,) = remarks.of_excluded(kept, excluded)
    assert "'007', '7'" in said and "'Nr 4', 'nr_4'" in said and "spell them alike" in said
    assert "'B2'" not in said and "'c 1'" not in said
    assert not remarks.of_excluded({"1", "01"}, {"2", "02"})
    assert not remarks.of_excluded({"1", "01"}, set())


@pytest.mark.parametrize("nothing", ["NA", "n/a", "#N/A", "#REF!", "#VALUE!", "#NAME?", "Unknown"])
def test_placeholders_are_no_subjects_and_no_labels(nothing):
    rows = [row("s1"), *[row(nothing)] * 3]
    (said,) = remarks.of_rows(rows, [], "label")
    assert f"3 recordings of the subject {nothing!r} count as one person: leave the cell" in said
    assert f"say nothing: {nothing!r}" in "\n".join(remarks.of_dataset(with_labels(**{nothing: 2})))
    # Where there was no subject, the name is the file's.
    alone = dataclasses.replace(row(nothing), alone=True)
    assert not remarks.of_rows([alone], [], "label")


@pytest.mark.parametrize("name", ["4.91757E+12", "4,9E+12", "5E+11", "1.2e11"])
def test_subjects_that_a_spreadsheet_shortened(name):
    (said,) = remarks.of_rows([row("s1"), row(name)], [], "label")
    assert f"shortened: {name!r}" in said and "format the column as text" in said
    honest = ["E12", "3E7", "4917570000000", "A1.5E+3", "1.5"]
    assert not remarks.of_rows([*map(row, honest)], [], "label")


def test_recordings_without_a_label_are_counted():
    assert remarks.of_rows([row(), row(label="")], [], "label") == [
        "1 of 2 recordings have no label"
    ]
    (said,) = remarks.of_rows([row(label=""), row(label="")], [], "reason")
    assert "--label_column" in said and "'reason'" in said


def test_labels_that_are_alike_or_say_nothing():
    said = "\n".join(remarks.of_dataset(with_labels(hungry=7, Hungry=2, **{"n/a": 3})))
    assert "'.0': 'Hungry' 2, 'hungry' 7" in said and "say nothing: 'n/a'" in said


def test_recordings_of_a_lower_rate_and_reasons_are_counted():
    info = INFO | {
        "skipped": 3,
        "reasons": {"silent": 2, "no such file": 1},
        "low_rates": {"8000": 4, "11025": 1},
    }
    skipped, low = remarks.of_dataset(info)
    assert skipped == "skipped 3 recordings (2 x silent; 1 x no such file)"
    assert "5 of 9 recordings were made at less than 16000 Hz (4 at 8000 Hz, 1 at 11025" in low
    assert "--sample_rate=8000" in low and remarks.cautions(info) == [low]


def test_who_nobody_knows_is_a_caution_of_every_number():
    alone, alike = remarks.cautions(INFO | {"alone": 3, "alike": 2})
    assert alone.startswith("recordings without a 'subject': 3;") and "--subject_column" in alone
    assert "a trailing '.0': 2; a person under two names" in alike
    assert not remarks.cautions(INFO | {"alone": 0, "alike": 0})


@pytest.mark.parametrize("name", ["val", "Valid", "DEV", "testing", "Training", "eval"])
def test_splits_that_no_program_looks_for(name):
    assert remarks.of_splits(["train", name]) == [
        f"split {name!r}: programs look for 'train', 'validation' and 'test'"
    ]
    assert not remarks.of_splits(["train", "validation", "test", "fold1", "clinic_b"])


@pytest.mark.parametrize(
    ("there", "wanted", "said"),
    [
        ("A.WAV", "a.wav", "; there is 'A.WAV'"),
        ("a\u0308.wav", "\u00e4.wav", "; there is 'a\u0308.wav', in another Unicode form"),
        ("\u00c4.wav", "a\u0308.wav", "; there is '\u00c4.wav'"),
        ("b.wav", "a.wav", ""),
        ("b.wav", "nowhere/b.wav", ""),
        ("b.wav", "nul\0.wav", ""),
    ],
)
def test_the_first_missing_file_and_what_is_there_instead(tmp_path, there, wanted, said):
    (tmp_path / there).touch()
    (tmp_path / "a.wav.d").mkdir()
    rows = [Row(tmp_path, name, "", "s", "") for name in (there, wanted, "none.wav")]
    assert remarks.of_missing(rows) == f"; the first missing file is {str(rows[1].path)!r}{said}"
    assert remarks.of_missing(rows[:1]) == remarks.of_missing([]) == ""
