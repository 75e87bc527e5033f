"""A run's folder: config.json, metrics.jsonl, TensorBoard events, figures and result.json."""

import contextlib
import json
import math
import os
import pathlib
import shutil
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Any

from absl import logging
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

from cryjax.command import config as config_lib
from cryjax.command.errors import Unavailable, UserError, passes
from cryjax.command.files import hold, whole, write_json

# Fields that may change on resume: they affect how a run is watched or scored, not what it trains.
MAY_CHANGE = (
    "checkpoint_every",
    "log_every",
    "pictures_every",
    "neighbours.",
    "loader.",
    "nonfinite",
    "parallel",
    "resamples",
)

PROJECTOR = "projector"  # embeddings for TensorBoard, one folder per step
_NAMED = 5  # fields in a message
LEFT_BY_A_RUN = ("checkpoints/[0-9]*", "metrics.jsonl", "result.json")


def read_metrics(file: pathlib.Path) -> list[dict[str, float]]:
    """Complete lines of a metrics.jsonl; warns about damaged ones before the end."""
    if not file.exists():
        return []
    found = []
    for number, line in enumerate(file.read_bytes().splitlines(keepends=True), 1):
        if line.endswith(b"\n"):
            try:
                found.append(json.loads(line))
            except ValueError:  # also of bytes that are no text
                logging.warning("%s: line %d is damaged and left out", file, number)
    return found


def _comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the folders of `data` in one spelling: 'DATA/:2' becomes 'DATA:2'."""
    if not isinstance(config.get("data"), str):
        return dict(config)
    spelt = [
        os.path.normpath(folder) + f":{weight}" * bool(weight)
        for folder, weight in config_lib.datasets(config["data"])
    ]
    return {**config, "data": ",".join(spelt)}


class Workdir:
    """The folder of one run. Only the first process, which `writes`, writes to it."""

    def __init__(
        self,
        path: str | pathlib.Path,
        config: Mapping[str, Any],
        *,
        inputs: Mapping[str, str] = {},
        writes: bool = True,
        may_change: tuple[str, ...] = MAY_CHANGE,
        left: tuple[str, ...] = LEFT_BY_A_RUN,
    ):
        """Opens or creates the folder.

        The config of a run with no output yet, presumably a mistake, is replaced.

        Args:
          path: of the folder.
          config: of the run, as JSON values.
          inputs: what its numbers depend on besides the config, for its checkpoints.
          writes: whether this process does.
          may_change: prefixes of fields that may differ on resume.
          left: glob patterns of files that show that a run has begun.

        Raises:
          UserError: if it holds a dataset, or a run with a different config, or cannot be written
            to.
          Unavailable: if another process works in it, or its file server is away.
        """
        self.path = pathlib.Path(path)
        if (self.path / "prepared.json").exists():  # whoever deletes one would lose both
            raise UserError(f"{self.path}: holds a prepared dataset; use another --workdir")
        self.config, self.inputs = dict(config), dict(inputs)
        self.writes = writes
        if writes:
            with self._writing():
                self._hold = hold(self.path)
        self._events: EventsWriter | None = None
        file = self.path / "config.json"
        if file.exists() and any(True for name in left for _ in self.path.glob(name)):
            try:
                old = json.loads(file.read_bytes())
            except ValueError as error:
                raise UserError(
                    f"{file}: damaged ({error}); if the command is the one that began this run, "
                    "delete that file and run it again"
                ) from error
            changed = [
                difference
                for difference in config_lib.differences(_comparable(old), _comparable(config))
                if not difference.startswith(may_change)
            ]
            if changed:
                more = f"; and {len(changed) - _NAMED} more" * (len(changed) > _NAMED)
                raise UserError(
                    f"{self.path}: holds a run with a different config "
                    f"({'; '.join(changed[:_NAMED])}{more}); "
                    "use another --workdir, or the old values to resume it"
                )
        if writes:
            with self._writing():
                write_json(file, config)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise (Unavailable if passes(error) else UserError)(
                f"{self.path}: cannot be written to ({error.strerror}); use another --workdir"
            ) from error

    @property
    def metrics_file(self) -> pathlib.Path:
        return self.path / "metrics.jsonl"

    def metrics(self) -> list[dict[str, float]]:
        """The metrics so far."""
        return read_metrics(self.metrics_file)

    def rewind(self, step: int) -> None:
        """Drops metrics and embeddings after `step`: a resumed run will write them again."""
        if not self.writes:
            return
        for folder in (self.path / PROJECTOR).glob("[0-9]*"):
            if int(folder.name) > step:
                shutil.rmtree(folder)
        if not self.metrics_file.exists():
            return
        kept = [json.dumps(line) + "\n" for line in self.metrics() if line["step"] <= step]
        with whole(self.metrics_file) as file:
            file.writelines(kept)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends a line to metrics.jsonl and scalars to TensorBoard's events.

        Non-finite metrics, such as one of a class with no examples, are left out: JSON has none.
        """
        if not self.writes:
            return
        metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        event = event_pb2.Event(wall_time=time.time(), step=step)
        for name, value in metrics.items():
            event.summary.value.add(tag=name, simple_value=value)
        self._write_event(event)

    def image(self, step: int, name: str, png: bytes) -> None:
        """Adds an image to TensorBoard's events."""
        if not self.writes:
            return
        width, height = struct.unpack(">II", png[16:24])  # from the header, which comes first
        event = event_pb2.Event(wall_time=time.time(), step=step)
        image = event.summary.value.add(tag=name).image
        image.width, image.height, image.colorspace = width, height, 4
        image.encoded_image_string = png
        self._write_event(event)

    def _write_event(self, event: event_pb2.Event) -> None:
        if self._events is None:
            # Not SummaryWriter: its thread dies on a full disk and leaves the run waiting.
            self._events = EventsWriter(str(self.path / "events"))
            # On resuming, events before this step are kept, later ones dropped.
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._events.write_event(event_pb2.Event(step=event.step, session_log=start))
        self._events.write_event(event)
        self._events.flush()

    def figure(self, name: str) -> pathlib.Path:
        """Path of a figure; creates its folder."""
        folder = self.path / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.png"

    def result(self, result: Mapping[str, Any]) -> None:
        """Writes result.json."""
        if self.writes:
            write_json(self.path / "result.json", result)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
