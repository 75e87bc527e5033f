"""A work directory keeps its metrics straight over a resumption, and its config."""

import errno
import io
import json

import pytest
from PIL import Image

import programs
from cryjax.command import config as config_lib
from cryjax.command.errors import Unavailable, UserError
from cryjax.training import workdir as workdir_lib
from cryjax.training.workdir import PROJECTOR, Workdir


def test_metrics_are_appended_and_rewound(tmp_path):
    workdir = Workdir(tmp_path, {"a": 1})
    for step in range(1, 6):
        workdir.log(step, {"loss": 1.0 / step})
    workdir.close()
    again = Workdir(tmp_path, {"a": 1})
    again.rewind(3)
    assert [line["step"] for line in again.metrics()] == [1, 2, 3]
    again.log(4, {"loss": 9.0})
    assert again.metrics()[-1] == {"step": 4, "loss": 9.0}


def test_embeddings_of_steps_that_will_be_made_again_are_dropped(tmp_path):
    workdir = Workdir(tmp_path, {})
    for step in (0, 4, 8):
        (tmp_path / PROJECTOR / f"{step:08d}").mkdir(parents=True)
    workdir.rewind(4)
    assert sorted(path.name for path in (tmp_path / PROJECTOR).iterdir()) == [
        "00000000",
        "00000004",
    ]


def test_a_run_of_another_recipe_is_refused_in_a_short_line(tmp_path):
    old = {f"field{n}": n for n in range(60)}
    Workdir(tmp_path, old).log(1, {"loss": 1.0})
    with pytest.raises(UserError, match=r"field0: 0 -> .*; field12: .*; and 55 more"):
        Workdir(tmp_path, {})


def test_a_metric_that_is_no_number_is_left_out(tmp_path):
    workdir = Workdir(tmp_path, {})
    workdir.log(1, {"loss": 0.5, "validation_macro_auc": float("nan")})

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    lines = workdir.metrics_file.read_text().splitlines()
    assert json.loads(lines[0], parse_constant=refuse) == {"step": 1, "loss": 0.5}


def test_a_torn_last_line_is_dropped(tmp_path):
    workdir = Workdir(tmp_path, {})
    workdir.log(1, {"loss": 1.0})
    with workdir.metrics_file.open("a") as file:
        file.write('{"step": 2, "lo')
    assert [line["step"] for line in workdir.metrics()] == [1]
    workdir.rewind(1)
    assert workdir.metrics_file.read_text().endswith("\n")


@pytest.mark.parametrize("damaged", [b"\x00" * 20, b'{"step": 2, "lo\xff": 1.0}', b"\xfe"])
def test_a_damaged_line_is_left_out(tmp_path, damaged, caplog):
    workdir = Workdir(tmp_path, {})
    workdir.log(1, {"loss": 1.0})
    with workdir.metrics_file.open("ab") as file:
        file.write(damaged + b"\n")
    workdir.log(3, {"loss": 3.0})
    assert [line["step"] for line in workdir.metrics()] == [1, 3]
    assert "line 2 is damaged" in caplog.text


@pytest.mark.parametrize("content", [b"", b"\x00" * 20, b"\xff"])
def test_a_damaged_config_is_named(tmp_path, content):
    Workdir(tmp_path, {"a": 1}).log(1, {"loss": 1.0})
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json: damaged .* delete that file"):
        Workdir(tmp_path, {"a": 1})
    (tmp_path / "config.json").unlink()
    assert len(Workdir(tmp_path, {"a": 1}).metrics()) == 1


def test_tensorboard_gets_the_same_scalars(tmp_path):
    workdir = Workdir(tmp_path, {})
    workdir.log(7, {"loss": 0.5})
    workdir.close()
    found = {
        value.tag: (event.step, value.simple_value)
        for event in programs.events(tmp_path)
        for value in event.summary.value
    }
    assert found == {"loss": (7, 0.5)}


def test_tensorboard_gets_images(tmp_path):
    drawn = io.BytesIO()
    Image.new("RGB", (30, 20), "red").save(drawn, "png")
    workdir = Workdir(tmp_path, {})
    workdir.image(7, "views", drawn.getvalue())
    workdir.close()
    (value,) = [value for event in programs.events(tmp_path) for value in event.summary.value]
    assert (value.tag, value.image.width, value.image.height) == ("views", 30, 20)
    with Image.open(io.BytesIO(value.image.encoded_image_string)) as image:
        assert image.size == (30, 20)


def test_another_config_is_refused_once_a_run_began(tmp_path):
    Workdir(tmp_path, {"a": {"b": 1}, "log_every": "1 step"})
    workdir = Workdir(tmp_path, {"a": {"b": 2}, "log_every": "1 step"})  # nothing was run yet
    workdir.log(1, {"loss": 1.0})
    Workdir(tmp_path, {"a": {"b": 2}, "log_every": "9 steps"})  # how it is watched may change
    with pytest.raises(UserError, match=r"a\.b: 2 -> 3"):
        Workdir(tmp_path, {"a": {"b": 3}, "log_every": "9 steps"})
    assert json.loads((tmp_path / "config.json").read_text())["a"]["b"] == 2


@pytest.mark.parametrize("spelling", ["D/", "./D", "a/../D", "D"])
def test_another_spelling_of_a_folder_is_no_other_config(tmp_path, spelling):
    Workdir(tmp_path, {"data": "D,E:2"}).log(1, {"loss": 1.0})
    Workdir(tmp_path, {"data": f"{spelling},E/:2"})
    for other in ("D,E:3", "D", "F,E:2"):
        with pytest.raises(UserError, match="data: 'D,E:2' -> "):
            Workdir(tmp_path, {"data": other})


def test_a_dataset_is_no_work_directory(tmp_path):
    (tmp_path / "prepared.json").touch()
    with pytest.raises(UserError, match="holds a prepared dataset"):
        Workdir(tmp_path, {})
    assert not (tmp_path / "config.json").exists()


def test_other_processes_write_nothing(tmp_path):
    workdir = Workdir(tmp_path / "run", {}, writes=False)
    workdir.log(1, {"loss": 1.0})
    workdir.result({"a": 1})
    workdir.rewind(0)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("left", ["checkpoints/7", "metrics.jsonl", "result.json"])
def test_anything_that_a_run_leaves_keeps_its_config(tmp_path, left):
    Workdir(tmp_path, {"a": 1})
    (tmp_path / left).mkdir(parents=True)
    with pytest.raises(UserError, match="a: 1 -> 2"):
        Workdir(tmp_path, {"a": 2})


def test_what_computes_the_numbers_may_not_change(tmp_path):
    for program in ("pretrain_small", "finetune"):
        config = config_lib.to_dict(config_lib.load(programs.ROOT / "configs" / f"{program}.py"))
        Workdir(tmp_path / program, config).log(1, {"loss": 1.0})
        watched = {"checkpoint_every": "9 steps", "log_every": "9 steps", "nonfinite": "skip"}
        watched["loader"] = {**config["loader"], "threads": 9}
        Workdir(tmp_path / program, config | watched)
        for changed in (
            {"optimizer": {**config["optimizer"], "learning_rate": 9.0}},
            {"seed": 9}, {"batch_size": 9}, {"total": "9 steps"}, {"data": "other"},
            {"evaluate_every": "9 steps"}, {"label_fraction": 0.25}, {"clip_seconds": 9.0},
        ):  # fmt: skip
            if changed.keys() <= config.keys():
                with pytest.raises(UserError, match="a different config"):
                    Workdir(tmp_path / program, config | changed)


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ESTALE, Unavailable), (errno.EIO, Unavailable), (errno.EACCES, UserError)],
)
def test_a_file_server_that_is_away_is_tried_again_and_a_mistake_is_not(
    tmp_path, monkeypatch, number, kind
):
    def fail(folder):
        raise OSError(number, "no")

    monkeypatch.setattr(workdir_lib, "hold", fail)
    with pytest.raises(kind, match="cannot be written to"):
        Workdir(tmp_path, {})


def test_events_are_there_at_once_and_say_where_they_go_on(tmp_path):
    """A killed run closes no file; TensorBoard drops what an earlier one logged after that step."""
    workdir = Workdir(tmp_path, {})
    for step in (7, 8):
        workdir.log(step, {"loss": 0.5})
        told = [*programs.events(tmp_path)]
        assert (told[-1].step, len(told[-1].summary.value)) == (step, 1)
    assert [event.step for event in told if event.HasField("session_log")] == [7]
