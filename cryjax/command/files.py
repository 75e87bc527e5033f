"""Files that are whole at any time: written beside their place, then renamed into it."""

import contextlib
import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import IO, Any


@contextlib.contextmanager
def whole(path: pathlib.Path, mode: str = "w", **how: Any) -> Iterator[IO[Any]]:
    """Opens a file to write, which takes the place of `path` when all of it is there.

    After an error what was there before stays, and nothing else.

    Args:
      path: of the file; its folder is made.
      mode: 'w' for text, in UTF-8, or 'wb'.
      **how: other arguments of `open`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open(mode, encoding=None if "b" in mode else "utf-8", **how) as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: a number that there is not becomes null."""
    if isinstance(value, Mapping):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON, with null for NaN."""
    text = json.dumps(_without_nan(value), indent=2, sort_keys=True, allow_nan=False)
    with whole(path) as file:
        file.write(text + "\n")
