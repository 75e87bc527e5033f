"""A file is the old one or the new one, whatever happens while it is written."""

import json

import pytest

from cryjax.command.files import whole, write_json


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


def test_json_has_no_nan_and_what_is_none_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1, "b": [float("nan")]})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1, "b": [None]}
