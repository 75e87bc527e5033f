"""Names of classes, and the front end where a file tells none; the rest is in test_predict.py."""

import pytest
from absl.testing import flagsaver

from cryjax import import_weights
from cryjax.command.errors import UserError


@pytest.fixture(autouse=True)
def parsed():
    if not import_weights._LABELS._flagvalues.is_parsed():
        import_weights._LABELS._flagvalues(["import_weights"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.txt", "Speech\n\nCrying, sobbing\n"),
        ("indices.csv", 'index,mid,display_name\n0,/m/09x0r,Speech\n1,/m/0463,"Crying, sobbing"\n'),
    ],
)
def test_names_of_classes(tmp_path, name, content):
    file = tmp_path / name
    file.write_text(content, encoding="utf-8-sig")
    with flagsaver.flagsaver(labels=str(file)):
        assert import_weights.read_labels(2) == ("Speech", "Crying, sobbing")
        with pytest.raises(UserError, match="2 different names, and the file 3 classes"):
            import_weights.read_labels(3)
    with flagsaver.flagsaver(labels=None):
        assert import_weights.read_labels(3) == ("0", "1", "2")
    with (
        flagsaver.flagsaver(labels=str(tmp_path / "none")),
        pytest.raises(UserError, match="cannot be read"),
    ):
        import_weights.read_labels(2)


def test_a_file_that_tells_no_front_end_needs_one():
    with flagsaver.flagsaver(weights="a.pth", front_end="panns_16k"):
        assert import_weights.choose_front_end({}) == "panns_16k"
    with (
        flagsaver.flagsaver(weights="a.pth", front_end=None),
        pytest.raises(UserError, match=r"a\.pth tells no front end; give --front_end"),
    ):
        import_weights.choose_front_end({})
