"""Manifests are read as they are written; each mistake is named in a line, with its remedy."""

import os
import pathlib
import subprocess
import sys
import tracemalloc

import pytest

from cryjax.command.errors import UserError
from cryjax.data import manifest
from cryjax.data.manifest import Columns, Row, read_manifest


@pytest.fixture
def read(tmp_path):
    """Writes a manifest and reads it."""

    def write_and_read(content, **options):
        content = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "m.csv").write_bytes(content)
        return read_manifest(tmp_path / "m.csv", **options)

    return write_and_read


@pytest.fixture
def refused(tmp_path, read):
    """The message about a manifest."""

    def message(content, **options):
        with pytest.raises(UserError) as caught:
            read(content, **options)
        text = str(caught.value)
        assert str(tmp_path / "m.csv") in text and "\n" not in text
        return text

    return message


def test_all_columns(tmp_path, read):
    rows = read("split,path,subject,label\ntest,a.wav,s1,pain; hunger ;\ntrain,b/c.wav,s2,\n")
    assert rows == [
        Row(tmp_path, "a.wav", "pain;hunger", "s1", "test"),
        Row(tmp_path, "b/c.wav", "", "s2", "train"),
    ]


@pytest.mark.parametrize(
    ("written", "read_as"),
    [("hungry;;hungry ; ", "hungry"), ("b;a; b;c;a", "b;a;c"), ("a;A", "a;A"), (" ; ;", "")],
)
def test_a_label_that_is_repeated_in_a_cell_counts_once(read, written, read_as):
    (row,) = read(f"path,label\na.wav,{written}\n")
    assert row.label == read_as


def test_a_path_alone_is_unlabelled_and_its_own_subject(read):
    for row in read("path\na.wav\nb.wav\n"):
        assert (row.label, row.subject, row.split) == ("", row.name, "")


def test_an_empty_subject_is_the_recording_itself(read):
    assert [row.subject for row in read("path,subject\na.wav,s\nb.wav,\n")] == ["s", "b.wav"]


def test_who_is_not_said_to_be_anybody_is_no_one_of_another_folder(tmp_path, read):
    one, other = read("path,subject\na.wav,\nb.wav,a.wav\n")
    assert one.subject_id == str(tmp_path / "a.wav") and other.subject_id == "a.wav"
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "m.csv").write_text("path\na.wav\n../a.wav\n")
    elsewhere, same = read_manifest(tmp_path / "there" / "m.csv")
    assert elsewhere.subject_id != one.subject_id == same.subject_id


def test_case_and_blanks_divide_no_subject(read, refused):
    rows = read("Path,Subject , LABEL\na.wav,bob,cry\nb.wav,bob ,cry \n")
    assert [(row.subject, row.label) for row in rows] == [("bob", "cry")] * 2
    assert "repeats './a.wav'" in refused("path\na.wav\n./a.wav\n")
    assert "repeats 'a.wav'" in refused("path\n./a.wav\na.wav\n")
    # But capitals do: they are two people until somebody says otherwise.
    assert [row.subject for row in read("path,subject\na,Bob\nb,bob\n")] == ["Bob", "bob"]


def test_relative_to_the_manifest_not_to_where_it_is_read(tmp_path, read, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    read("path\na.wav\n")
    monkeypatch.chdir(elsewhere)
    (row,) = read_manifest("../m.csv")
    assert row.path.is_absolute() and row.path.resolve() == (tmp_path / "a.wav").resolve()


def test_absolute_paths_stay(tmp_path, read):
    there = tmp_path / "else where" / "ä.wav"
    (row,) = read(f"path\n{there}\n")
    assert row.path == there and row.name == str(there)
    # Wherever it is read.
    assert row == Row(pathlib.Path("/"), str(there), "", str(there), "", alone=True)


def test_no_file_outside_the_folders_allowed_is_read_links_included(tmp_path):
    for name in ("here", "here-too", "allowed"):
        (tmp_path / name).mkdir()
    (tmp_path / "here" / "link.wav").symlink_to(tmp_path / "here-too" / "a.wav")
    path, allowed = tmp_path / "here" / "m.csv", [str(tmp_path / "allowed")]

    def check(name):
        path.write_text(f"path\n{name}\n")
        manifest.check_inside(read_manifest(path), path, allowed)

    for name in ("a.wav", "deeper/a.wav", "../here/a.wav", "../allowed/a.wav"):
        check(name)
    for name in ("../here-too/a.wav", "link.wav", "/etc/passwd"):
        with pytest.raises(UserError, match=r"outside the manifest's folder; .* --allow_dir="):
            check(name)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_what_spreadsheets_write(tmp_path, read, ending):
    lines = ["path,label", '"a, b.wav","say ""hi"""', '"two\r\nlines.wav",x', ""]
    rows = read(b"\xef\xbb\xbf" + ending.join(lines).encode())
    assert [row.name for row in rows] == ["a, b.wav", "two\r\nlines.wav"]
    assert [row.label for row in rows] == ['say "hi"', "x"]
    assert rows[0].path == tmp_path / "a, b.wav"


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffPath;label\na, b.wav;x\n",
        'sep=;\n"path";label\n"a, b.wav";x\n',
        "label\tpath\nx\ta, b.wav\n",
    ],
)
def test_separators_other_than_the_comma(read, content):
    (row,) = read(content)
    assert (row.name, row.label) == ("a, b.wav", "x")


def test_other_columns_blank_lines_and_ragged_rows(read):
    rows = read("path,age,label,label2\n a.wav ,3,x,y,, \n\nb.wav\n,, ,\n")
    assert [(row.name, row.label) for row in rows] == [("a.wav", "x"), ("b.wav", "")]


def test_label_column(read, refused):
    content = "path,label,injury\na.wav,x,yes\nb.wav,y,\n"
    assert [row.label for row in read(content, columns=Columns(label="injury"))] == ["yes", ""]
    text = refused(content, columns=Columns(label="injuries"))
    assert "'injuries'" in text and "--label_column" in text and "path, label, injury" in text


def test_columns_of_other_names(read, refused):
    content = "File name;Subject ID;subject;label\na.wav;007;7;x\n"
    columns = Columns(path="File name", subject="Subject ID")
    (row,) = read(content, columns=columns)
    assert (row.name, row.subject, row.label) == ("a.wav", "007", "x")
    assert "no column 'Baby' for --subject_column" in refused(
        "path,subject\na.wav,s\n", columns=Columns(subject="Baby")
    )


def test_splits_that_programs_look_for_are_found_in_any_case(read):
    rows = read("path,split\na,Train\nb,TEST \nc,Fold1\n")
    assert [row.split for row in rows] == ["train", "test", "Fold1"]


@pytest.mark.parametrize(
    ("content", "fault", "remedy"),
    [
        ("", "no column 'path'", "add one"),
        ("file,label\na.wav,x\n", "(found: file, label)", "add one"),
        ("file;label\na.wav;x\n", "(found: file;label)", "add one"),
        ("path,label\n", "no rows", "add one per recording"),
        ("path,label\na.wav,x\n,y\n", "line 3 has an empty path", "fill it in"),
        ("path\na.wav\nb.wav\na.wav\n", "line 4 repeats 'a.wav'", "keep one"),
        ("path,subject,split\na,s,train\nb,s,test\n", "subject 's'", "belongs to one split"),
        ("path,subject,split\na,s,train\nb,s,\n", "line 3 has no split", "fill in all or none"),
        ("path,split\na,\nb,train\n", "line 3 has a split", "fill in all or none"),
        ("path,Subject,subject\na,s,t\n", "2 columns 'subject'", "rename all but one"),
        ("path,label\na.wav,x\nb.wav,so, so\n", "line 3 has 3 cells and the header 2", "quotes"),
        ("path,split\na,all\n", "line 2 has the split 'all'", "use letters"),
        ("path,split\na,x\nb,my set\n", "line 3 has the split 'my set'", "use letters"),
        ("path,split\na,../x\n", "'../x'", "use letters"),
        (b"path\n\xff\xfe.wav\n", "not a CSV file in UTF-8", "export it as CSV"),
        ("path\na.wav\n".encode("utf-16"), "not a CSV file in UTF-8", "export it as CSV"),
        ("path\n" + "a" * 200_000 + "\n", "the row on line 2: field larger", "export it as CSV"),
        ("path\n" + "a" * 5_000 + "\n", "line 2 has a path of 5000 characters", "at most 4096"),
        ("path,label\na," + "a;" * 3_000, "line 2 has a label of 6000 characters", "shorten"),
        ("path\na\0b.wav\n", "line 2 has a control character in its path", "delete it"),
        ('path,label\na,x\nb,"so\nso"\n', "line 4 has a control character in its label", "delete"),
        ("path,subject\na,\x1b[2Jx\n", "line 2 has a control character in its subject", "delete"),
        ("path,split\na,tr\x85ain\n", "line 2 has a control character in its split", "delete"),
        # One row, of as many short fields and lines as there is file.
        ('path,x\n"' + '\n","' * 300_000, "a row of more than 1000000", "export it as CSV"),
        ("x," * 300_000 + "\n", "no column 'path' (found: x, x,", "add one"),
    ],
)
def test_mistakes_are_named_with_their_remedy(refused, content, fault, remedy):
    text = refused(content)
    assert fault in text and remedy in text


@pytest.mark.parametrize("mark", [",", ";"])
@pytest.mark.parametrize("stray", [2, 40])
def test_a_stray_quotation_mark_swallows_no_rows(read, refused, mark, stray):
    lines = [f"path{mark}label{mark}note"]
    lines += [f'{i}.wav{mark}"x{mark} y"{mark}"y\nz"' for i in range(50)]
    assert [row.label for row in read("\n".join(lines))] == [f"x{mark} y".replace("; ", ";")] * 50
    # Before a value, with or without another further down; after one; and doubled.
    for faults in ({stray: '"pain'}, {stray: '"pain', 45: '"pain'}, {stray: '"pain"x'}):
        broken = [f"{i}.wav{mark}{faults.get(i, 'pain')}" for i in range(2, 50)]
        text = refused("\n".join([lines[0], *broken]))
        assert f"the row on line {stray}:" in text and "check the quotation marks" in text
    # Inside a value that is not quoted, one is read as it is.
    assert [row.label for row in read(f'path{mark}label\na{mark}5" mic\nb{mark}x\n')] == [
        '5" mic',
        "x",
    ]


def test_the_line_named_is_the_line_of_the_file(refused):
    # As an editor counts: blank lines and line ends in quotes too.
    assert "line 6" in refused('path,note\n\n"a.wav","x\ny"\n\n,z\n')
    assert "line 4" in refused("sep=;\npath;label\na.wav;x\n;z\n")


def test_there_is_no_such_manifest(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(UserError, match="no such manifest; give the path of a CSV") as caught:
            read_manifest(path)
        assert str(path) in str(caught.value)


def test_a_gigabyte_in_one_line_is_refused_before_it_is_read(tmp_path):
    # All zeros, and no block of the disk.
    (tmp_path / "m.csv").write_text("path\n")
    os.truncate(tmp_path / "m.csv", 1 << 30)
    tracemalloc.start()
    with pytest.raises(UserError, match="a row of more than 1000000 characters") as caught:
        read_manifest(tmp_path / "m.csv")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(caught.value) and most < 50e6


MEASURED = """
import sys, tracemalloc
from cryjax.data.manifest import read_manifest
tracemalloc.start()
rows = read_manifest(sys.argv[1])
print(len(rows), rows[-1].subject, tracemalloc.get_traced_memory()[1])
"""


def test_a_row_takes_little_memory_and_their_number_has_a_limit(tmp_path, refused, monkeypatch):
    count = 20_000
    lines = (
        f"clinic-{i % 7}/recording-{i:08d}.wav,pain,infant-{i // 9:08d}," for i in range(count)
    )
    content = "\n".join(["path,label,subject,split", *lines])
    (tmp_path / "m.csv").write_text(content)
    # In a process of its own: Python's table of interned strings, of which other tests left many,
    # may grow at any time, by more than all of these rows take.
    command = [sys.executable, "-c", MEASURED, tmp_path / "m.csv"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    rows, subject, most = done.stdout.split()
    assert int(rows) == count and subject == f"infant-{(count - 1) // 9:08d}"
    assert int(most) < 2e9 / 5e6 * count  # 5 million in less than 2 GB
    monkeypatch.setattr(manifest, "MAXIMUM_ROWS", count - 1)
    assert "more than 19999 rows; split it into several manifests" in refused(content)
