"""A file is the old one or the new one, whatever happens while it is written."""

import pytest

from cryjax.command.files import whole


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
