"""Who is in another manifest is left out, by any name or file that the two share."""

import pytest

from cryjax.command.errors import UserError
from cryjax.data.excluding import exclude
from cryjax.data.manifest import Columns, read_manifest


@pytest.fixture
def kept(tmp_path):
    """The files that are left of a manifest, less other manifests (by name: content)."""

    def without(ours, columns=None, **others):
        paths = [tmp_path / "m.csv", *(tmp_path / name / "m.csv" for name in others)]
        for path, content in zip(paths, (ours, *others.values()), strict=True):
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
        rows, said = exclude(
            read_manifest(paths[0]), "m.csv", [*map(str, paths[1:])], columns or Columns()
        )
        return [row.name for row in rows], said

    return without


OURS = "path,subject\na.wav,ann\nb.wav,ann\nc.wav,cid\nd.wav,\n"


def test_by_subject_whatever_the_file(kept):
    assert kept(OURS, x="path,subject\nz.wav,ann\n")[0] == ["c.wav", "d.wav"]
    assert kept(OURS, x="path,subject\nz,ann\n", y="path,subject\nz,cid\n")[0] == ["d.wav"]


def test_by_file_whatever_the_subject_and_the_spelling_of_the_path(kept):
    names = kept(OURS, x="path,subject\n../x/../b.wav,person 1\n")[0]
    assert names == ["c.wav", "d.wav"]  # with all files of whose it is
    names = kept("path,subject\nx/../a.wav,ann\nc.wav,cid\n", x="path\n../a.wav\n")[0]
    assert names == ["c.wav"]


def test_a_file_of_the_same_name_elsewhere_is_another(kept):
    with pytest.raises(UserError, match=r"none of its subjects or files is in m\.csv"):
        kept(OURS, x="path\nd.wav\n")
    # Nor is a subject that is called like a file.
    assert kept("path,subject\nd.wav,\ne.wav,d.wav\n", x="path\n../d.wav\n")[0] == ["e.wav"]
    for ours, theirs in (("e.wav,d.wav", "d.wav,"), ("d.wav,", "e.wav,d.wav")):
        with pytest.raises(UserError, match="none of its"):
            kept(f"path,subject\n{ours}\n", x=f"path,subject\n{theirs}\n")


def test_each_manifest_has_to_exclude_somebody_and_columns_are_those_of_all(kept):
    with pytest.raises(UserError, match=r"y/m\.csv: none of its"):
        kept(OURS, x="path,subject\nz,ann\n", y="path,subject\nz,nobody\n")
    columns = Columns(subject="Baby")
    assert kept(OURS, columns, x="path,Baby,subject\nz,ann,cid\n")[0] == ["c.wav", "d.wav"]
