"""The launchers: dry runs, and several processes that are one run."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import yaml

import programs
from cryjax.command import files
from cryjax.training import parallel, stopping

LAUNCH = programs.ROOT / "launch"
STEPS = 40
# Saves a checkpoint only where it stops, so that there is one step to agree on.
RUN = (*programs.TINY, f"--config.total={STEPS} steps", "--config.checkpoint_every=1000 steps")


def environment(**more: str) -> dict[str, str]:
    """An environment in which scripts use the python that runs the tests."""
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return programs.environment(**{"PATH": path, "CRYJAX_VENV": "none", **more})


def script(name: str, *arguments: object, **more: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", LAUNCH / name, *map(str, arguments)],
        env=environment(**more), capture_output=True, text=True, timeout=60,
    )  # fmt: skip


class Local:
    """A running launch/local.sh."""

    def __init__(self, log: pathlib.Path, *arguments: object):
        self._log = log
        with log.open("w") as file:
            self._script = subprocess.Popen(
                ["bash", LAUNCH / "local.sh", *map(str, arguments)],
                cwd=programs.ROOT, env=environment(), stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.signal = self._script.send_signal

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def pids(self) -> list[int]:
        return [
            int(pid) for pid in re.findall(r"local.sh: process \d of \d has pid (\d+)", self.said)
        ]

    def wait_for(self, condition, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self._script.poll() is None, self.said[-3000:]
            assert time.monotonic() < deadline, self.said[-3000:]
            time.sleep(0.02)

    def end(self, seconds: float = 240) -> int:
        """Waits for the script and returns its status; no process is left."""
        try:
            return self._script.wait(seconds)
        except subprocess.TimeoutExpired:
            self._script.kill()
            for pid in self.pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"local.sh hangs: {self.said[-3000:]}") from None


def losses(run: pathlib.Path) -> np.ndarray:
    """The losses of metrics.jsonl, which has every step from 1 on once."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return np.array([line["loss"] for line in lines])


def assert_same_course(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Equal up to rounding, which grows; other samples differ by 1e-2 or more."""
    np.testing.assert_allclose(ours[:4], theirs[: len(ours)][:4], rtol=2e-5)
    np.testing.assert_allclose(ours, theirs[: len(ours)], rtol=2e-3)


def checkpoints(run: pathlib.Path) -> list[int]:
    return sorted(int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdigit())


@pytest.fixture(scope="module")
def undisturbed(prepared, tmp_path_factory):
    """The losses of one process with 8 devices."""
    run = tmp_path_factory.mktemp("run") / "undisturbed"
    command = ("pretrain", *RUN, f"--workdir={run}", f"--config.data={prepared}")
    programs.succeed(*command, devices=8)
    return losses(run)


@pytest.fixture(scope="module")
def stopped(prepared, tmp_path_factory):
    """A run of two processes with 4 devices after SIGTERM to local.sh, its log and status."""
    run = tmp_path_factory.mktemp("run") / "stopped"
    command = ("pretrain", *RUN, f"--workdir={run}", f"--config.data={prepared}")
    local = Local(run.with_suffix(".log"), 2, 4, *command)
    metrics = run / "metrics.jsonl"
    local.wait_for(lambda: metrics.exists() and metrics.stat().st_size)
    local.signal(signal.SIGTERM)
    status = local.end()
    return run, local.said, status


def test_processes_stop_together(stopped):
    run, said, status = stopped
    assert status == stopping.STOPPED, said[-3000:]
    assert said.count("8 cpu device(s) of 2 processes") == 1  # only the first's table
    assert said.count("starting fresh") == 2
    done = len(losses(run))
    assert 1 < done < STEPS
    assert checkpoints(run) == [done]
    assert not (run / "result.json").exists()


def test_two_processes_are_one_run(stopped, undisturbed):
    assert_same_course(losses(stopped[0]), undisturbed)


@pytest.mark.slow
def test_run_goes_on_with_other_processes(stopped, undisturbed, prepared, tmp_path):
    processes, devices = 1, 8
    run = shutil.copytree(stopped[0], tmp_path / "run")
    done = checkpoints(run)[0]
    command = ("pretrain", *RUN, f"--workdir={run}", f"--config.data={prepared}")
    local = Local(tmp_path / "log", processes, devices, *command)
    assert local.end() == 0, local.said[-3000:]
    assert f"resuming from step {done} of this" in local.said
    assert "devices: '8 cpu of 2 process(es)' -> '8 cpu of 1 process(es)'" in local.said
    course = losses(run)
    assert len(course) == STEPS and checkpoints(run) == [done, STEPS]
    assert_same_course(course, undisturbed)


@pytest.mark.slow
def test_fine_tuning_by_two_processes_is_that_by_one(prepared, tmp_path):
    command = (
        "finetune", *programs.TINY_FINETUNE, "--config.total=6 steps",
        "--config.evaluate_every=3 steps", "--config.checkpoint_every=3 steps",
        "--config.average_decay=0.5", "--config.resamples=20", f"--config.data={prepared}",
    )  # fmt: skip
    runs = [tmp_path / "one", tmp_path / "two"]
    programs.succeed(*command, f"--workdir={runs[0]}")
    local = Local(tmp_path / "log", 2, 1, *command, f"--workdir={runs[1]}")
    assert local.end() == 0, local.said[-3000:]
    one, two = (json.loads((run / "result.json").read_text()) for run in runs)
    assert one["best_step"] == two["best_step"] and one["labels"] == two["labels"]
    assert one["macro_auc"] == pytest.approx(two["macro_auc"], abs=0.02)
    for run in runs:
        assert [path.name for path in (run / "best").iterdir() if path.name.isdigit()]


def test_one_killed_stops_all(prepared, tmp_path):
    command = ("pretrain", *RUN, f"--workdir={tmp_path / 'run'}", f"--config.data={prepared}")
    local = Local(tmp_path / "log", 2, 4, *command)
    local.wait_for(lambda: local.said.count("starting fresh") == 2)
    begin = time.monotonic()
    os.kill(local.pids[1], signal.SIGKILL)
    assert local.end() == 128 + signal.SIGKILL, local.said[-3000:]
    assert time.monotonic() - begin < 60
    assert "local.sh: error: process 1 of 2 ended with status 137" in local.said
    with pytest.raises(ProcessLookupError):
        os.kill(local.pids[0], 0)


def job(program: str, processes: int = 2) -> list[subprocess.Popen]:
    """The processes of one job, which run Python source."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    where = {"CRYJAX_COORDINATOR": f"127.0.0.1:{port}", "CRYJAX_PROCESSES": str(processes)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=programs.ROOT, env=programs.environment(CRYJAX_PROCESS=str(process), **where),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for process in range(processes)
    ]  # fmt: skip


def test_processes_that_were_given_different_things_refuse_together():
    program = """
import os
from cryjax.command import program
from cryjax.training import parallel

def main(argv):
    parallel.join_processes()
    parallel.agree(config="the same", data="the same", code="the same")
    parallel.agree(config="the same", data=os.environ["CRYJAX_PROCESS"], code="the same")

program.run(main)
"""
    both = job(program)
    try:
        for process in both:
            said = process.communicate(timeout=100)[1]
            assert process.returncode == 2 and "differ from the first in data (process 1)" in said
    finally:
        for process in both:
            process.kill()


@pytest.mark.parametrize(
    ("folder", "status", "said"),
    [
        (
            "'{}/' + os.environ['CRYJAX_PROCESS']",
            2,
            ["does not see what the first writes there"] * 2,
        ),
        ("'{}/one'", 0, ["", ""]),
        # Only the first process writes, and fails.
        ("'{}/file'", 2, ["cannot be written to", "process 0 of this job cannot go on"]),
        ("'{}/held'", 1, ["is using it", "process 0 of this job cannot go on"]),
    ],
)
def test_processes_share_one_work_directory_or_end_alike(tmp_path, folder, status, said):
    program = f"""
import functools, os
import ml_collections
from cryjax.command import files, program
from cryjax.training import parallel, start, workdir

parallel.PAUSE_SECONDS = 0.1
workdir.hold = functools.partial(files.hold, patience=0.0)

def main(argv):
    parallel.join_processes()
    config, spread = ml_collections.ConfigDict(dict(a=1)), parallel.Parallel()
    start.open_workdir({folder.format(tmp_path)}, config, "data", spread)

program.run(main)
"""
    (tmp_path / "file").touch()
    held = files.hold(tmp_path / "held")
    assert held
    both = job(program)
    try:
        for process, words in zip(both, said, strict=True):
            assert words in process.communicate(timeout=100)[1]
            assert process.returncode == status
    finally:
        for process in both:
            process.kill()
    assert not [*tmp_path.rglob(".shared-*")]


def test_a_job_of_one_process_does_not_forget_a_signal_before_its_first_step():
    """JAX takes it."""
    program = """
import os, signal, time
from cryjax.command import program
from cryjax.training import parallel, stopping

def main(argv):
    parallel.join_processes()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)
    with stopping.Stop() as stop, stop.finishing_steps():
        for step in range(100):
            if stop.after(step):
                raise stopping.Stopped
            time.sleep(0.1)

program.run(main)
"""
    (process,) = job(program, 1)
    try:
        process.communicate(timeout=100)
        assert process.returncode == stopping.STOPPED
    finally:
        process.kill()


def test_processes_choose_the_best_step_by_the_first_ones_scores(tmp_path):
    program = f"""
import os, types
from cryjax.command import program
from cryjax.training import best, parallel

def main(argv):
    parallel.join_processes()
    mine = float(os.environ["CRYJAX_PROCESS"])
    history = [dict(step=1, validation_auc=0.5 + mine), *[dict(step=2, auc=0)] * int(40 * mine)]
    workdir = types.SimpleNamespace(path={str(tmp_path)!r}, metrics=lambda: history)
    saves = []

    class Saved:
        latest = 1
        rewind = staticmethod(lambda step: None)
        save_model = staticmethod(lambda state, step, meta: saves.append(step))
        wait = staticmethod(lambda: None)

    best.Checkpoints = lambda *_, **__: Saved
    config = types.SimpleNamespace(select="auc", patience=0)
    kept = best.Best(types.SimpleNamespace(workdir=workdir, meta={{}}), config, 3)
    kept.take(None, 4, dict(validation_auc=0.6 - mine, validation_f1=float("nan")))
    kept.take(None, 5, dict(validation_auc=0.55 + mine))
    print("saved", saves)

program.run(main)
"""
    both = job(program)
    try:
        for process in both:
            assert "saved [4]" in process.communicate(timeout=100)[0]
            assert process.returncode == 0
    finally:
        for process in both:
            process.kill()


def test_one_that_fails_ends_at_once():
    """JAX would make it wait for the others, which wait for it."""
    program = """
import os, time
from cryjax.command import program
from cryjax.training import parallel

def main(argv):
    parallel.join_processes()
    if os.environ["CRYJAX_PROCESS"] == "1":
        raise program.UserError("no such thing")
    time.sleep(100)

program.run(main)
"""
    both = job(program)
    try:
        assert "error: no such thing" in both[1].communicate(timeout=60)[1]
        assert both[1].returncode == 2 and both[0].poll() is None
    finally:
        for process in both:
            process.kill()
            process.communicate()


def test_devices_of_a_process_are_together():
    """Numbered as on a v5e:4x4, where those of two processes alternate."""
    owners = [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]
    devices = [types.SimpleNamespace(id=i, process_index=p) for i, p in enumerate(owners)]
    ordered = parallel._ordered(devices)
    assert [device.process_index for device in ordered] == sorted(owners)
    assert [device.id for device in ordered[:4]] == [0, 1, 4, 5]


SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(path):
    found = shutil.which("shellcheck", path=environment()["PATH"])
    assert found, "pip install -e '.[test]' brings it"
    done = subprocess.run([found, path], cwd=programs.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert all(len(line) <= 100 for line in path.read_text().splitlines())


POD = {"TPU": "pod", "ZONE": "us-west4-a", "TYPE": "v5litepod-16", "VERSION": "v2-alpha-tpuv5-lite"}
PROGRAM = ("pretrain", "--config=configs/pretrain_small.py", "--config.total=30 steps")
ARGUMENTS = r"--config=configs/pretrain_small.py --config.total=30\ steps"


@pytest.mark.parametrize(
    ("name", "arguments", "more", "said"),
    [
        (
            "local.sh", (2, 4, *PROGRAM), {"PORT": "1234", "XLA_FLAGS": "--flag"},
            [
                f"env CRYJAX_COORDINATOR=127.0.0.1:1234 CRYJAX_PROCESSES=2 CRYJAX_PROCESS={i} "
                "JAX_PLATFORMS=cpu XLA_FLAGS=--flag\\ --xla_force_host_platform_device_count=4 "
                f"python -m cryjax.pretrain {ARGUMENTS}"
                for i in range(2)
            ],
        ),
        (
            "local.sh", (2, 0, *PROGRAM), {"CUDA_VISIBLE_DEVICES": "4,5,6,7"},
            [rf"CUDA_VISIBLE_DEVICES=4\,5 python -m cryjax.pretrain {ARGUMENTS}", r"=6\,7 python"],
        ),
        (
            "slurm.sbatch", PROGRAM, {},
            ["srun ", "CRYJAX_COORDINATOR=FIRST_NODE:PORT",
             f"python -m cryjax.pretrain {ARGUMENTS}",
             "scontrol requeue JOB  # after 75 and, up to five times, a failure"],
        ),
        (
            "tpu_pod.sh", ("create",), {**POD, "SPOT": "1"},
            ["gcloud compute tpus tpu-vm create pod --accelerator-type=v5litepod-16 "
             "--version=v2-alpha-tpuv5-lite --spot --zone=us-west4-a"],
        ),
        (
            "tpu_pod.sh", ("copy",), POD,
            ["tar -czf", "tpu-vm scp", "pod:cryjax.tgz --worker=all", "CRYJAX_EXTRAS=tpu"],
        ),
        ("tpu_pod.sh", ("mount", "10.0.0.2:/share"), POD, ["10.0.0.2:/share /mnt/share"]),
        (
            "tpu_pod.sh", ("run", *PROGRAM), POD,
            ["tpu-vm ssh pod --worker=all", r"tpu_pod.sh\ host\ pretrain\ --config=configs"],
        ),
        ("tpu_pod.sh", ("logs",), POD, ["ssh pod --worker=0", r"-F\ cryjax/run.log"]),
        ("tpu_pod.sh", ("logs", "all"), POD, ["ssh pod --worker=all", r"tail\ -n\ 5"]),
        ("tpu_pod.sh", ("stop",), POD, [r"--worker=all", r"run.stop\;\ pkill\ -TERM"]),
        ("tpu_pod.sh", ("delete",), POD, ["tpu-vm delete pod --quiet --zone=us-west4-a"]),
    ],
)  # fmt: skip
def test_dry_run_says_what_would_be_done(name, arguments, more, said, tmp_path):
    # A PATH without python, Slurm and gcloud: only shell tools are needed, and nothing is run.
    for tool in ("bash", "dirname", "sed", "mktemp", "rm", "paste", "cat"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    clean = {"PATH": str(tmp_path), "SLURM_JOB_ID": "", "SLURM_SUBMIT_DIR": "", "DRY_RUN": "1"}
    done = script(name, *arguments, **clean, **more)
    assert done.returncode == 0 and not done.stderr, done.stderr
    for part in said:
        assert part in done.stdout


@pytest.mark.parametrize(
    ("statuses", "starts", "long"),
    [
        ([75, 1, 0], 3, 21600), ([75, 2, 0], 2, 21600), ([1] * 9, 6, 21600),
        (["stop", 0], 1, 21600), ([75, "asleep", 0], 1, 21600), ([*[1] * 9, 0], 10, 0),
    ],
)  # fmt: skip
def test_a_host_of_a_slice_starts_its_program_again(statuses, starts, long, tmp_path):
    """But not after a mistake, a sixth failure, or when it was told to stop, even meanwhile.

    Failures before a start that lasted `long` seconds do not count.
    """
    launch, tools = tmp_path / "launch", tmp_path / "tools"
    launch.mkdir(), tools.mkdir()
    text = (LAUNCH / "tpu_pod.sh").read_text().replace("21600", str(long))
    (launch / "tpu_pod.sh").write_text(text)
    (launch / "setup.sh").touch()
    (tmp_path / "statuses").write_text("".join(f"{status}\n" for status in statuses))
    stub = """#!/bin/bash
        status=$(head -n 1 statuses); sed -i 1d statuses
        if [ "$status" = stop ]; then touch run.stop; status=75; fi
        exit "$status"
        """
    asleep = """#!/bin/bash
        if [ "$(head -n 1 statuses)" = asleep ]; then touch run.stop; sed -i 1d statuses; fi
        """
    for name, text in (("python", stub), ("sleep", asleep)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    done = subprocess.run(
        ["bash", launch / "tpu_pod.sh", "host", "pretrain"],
        env={"PATH": f"{tools}:{os.environ['PATH']}"},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.count("pretrain ended with status") == starts, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("statuses", "starts", "away", "long"),
    [
        ([75, 137, 0], 3, 0, 21600), ([75, 2, 0], 2, 0, 21600), ([75, *[1] * 9], 7, 0, 21600),
        (["cancelled", 0], 1, 0, 21600), ([75, 137, 0], 3, 2, 21600), ([1, 0], 2, 7, 21600),
        ([2, 0], 1, 99, 21600), ([75, 0], 1, 99, 21600), ([*[1] * 7, 0], 8, 0, 0),
        ([*[1] * 5, "long", *[1] * 5, 0], 12, 0, 2),
    ],
)  # fmt: skip
def test_a_slurm_job_is_queued_again(statuses, starts, away, long, tmp_path):
    """But not after a mistake, a sixth failure, or when it was cancelled.

    At each start Slurm's controller, asked after the job has ended, does not answer `away` times.
    Failures before a start that lasted `long` seconds, however it ended, do not count.
    """
    tools = tmp_path / "tools"
    tools.mkdir()
    stubs = {
        "srun": """status=$(head -n 1 statuses); sed -i 1d statuses
            if [ "$status" = cancelled ]; then echo COMPLETING >state; status=75; fi
            if [ "$status" = long ]; then /bin/sleep 2; status=75; fi
            echo AWAY >away
            exit "$status" """.replace("AWAY", str(away)),
        "sleep": "",
        "answers": """n=$(cat away); [ "$n" -eq 0 ] && exit
            echo $((n - 1)) >away; exit 1""",
        "squeue": 'answers && echo "$(cat state) $(cat comment)"',
        "scontrol": """[ "$1" = show ] || answers || exit
            case $1 in
            show) echo host ;;
            update) echo "${3#Comment=}" >comment ;;
            requeue) touch queued ;;
            esac""",
    }
    for name, text in stubs.items():
        (tools / name).write_text(f"#!/bin/bash\ncd {tmp_path}\n{text}\n")
        (tools / name).chmod(0o755)
    for name, lines in {"statuses": statuses, "state": ["RUNNING"], "comment": ["(null)"]}.items():
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    copy = tmp_path / "slurm.sbatch"
    copy.write_text((LAUNCH / "slurm.sbatch").read_text().replace("21600", str(long)))
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "host"}
    job["SLURM_SUBMIT_DIR"] = str(programs.ROOT)
    path = f"{tools}{os.pathsep}{environment()['PATH']}"
    for start in range(1, 20):
        status = statuses[start - 1]
        done = script(copy, *PROGRAM, **job, PATH=path)
        assert done.returncode == (status if isinstance(status, int) else 75), done.stderr
        if not (tmp_path / "queued").exists():
            break
        (tmp_path / "queued").unlink()
    assert start == starts


@pytest.mark.parametrize(
    ("name", "arguments", "more", "said"),
    [
        ("local.sh", (), {}, "usage: bash launch/local.sh PROCESSES DEVICES PROGRAM"),
        ("local.sh", (0, 4, "pretrain"), {}, "PROCESSES=0"),
        ("local.sh", ("two", 4, "pretrain"), {}, "PROCESSES=two"),
        ("local.sh", (2, -1, "pretrain"), {}, "DEVICES=-1"),
        ("local.sh", (2, 4, "pretrian"), {}, "no cryjax/pretrian.py"),
        ("local.sh", (2, 4, "pretrain"), {"PORT": "any"}, "PORT=any"),
        ("local.sh", (3, 0, "pretrain"), {"CUDA_VISIBLE_DEVICES": "0,1"}, "2 among 3 processes"),
        ("slurm.sbatch", (), {}, "usage: sbatch"),
        ("slurm.sbatch", ("pretrian",), {}, "no cryjax/pretrian.py"),
        ("slurm.sbatch", PROGRAM, {}, "submit it with sbatch"),
        ("slurm.sbatch", PROGRAM, {"SLURM_SUBMIT_DIR": "/"}, "submit the job from there"),
        ("tpu_pod.sh", (), {}, "usage: bash launch/tpu_pod.sh"),
        ("tpu_pod.sh", ("logs",), {}, "set TPU"),
        ("tpu_pod.sh", ("create",), {"TPU": "pod", "ZONE": "us-west4-a"}, "set TYPE"),
        ("tpu_pod.sh", ("run", "pretrian"), POD, "no cryjax/pretrian.py"),
    ],
)
def test_mistakes_get_one_line(name, arguments, more, said):
    done = script(name, *arguments, **{"SLURM_JOB_ID": "", "SLURM_SUBMIT_DIR": "", **more})
    assert done.returncode == 2 and not done.stdout
    assert re.fullmatch(rf"{name}: error: .*\n", done.stderr) and said in done.stderr, done.stderr


def test_jobset():
    """It was validated by the schema of JobSet 0.12.0; this tests what it means."""
    jobset = yaml.safe_load((LAUNCH / "gke.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert job["parallelism"] == job["completions"] and job["completionMode"] == "Indexed"
    # A pod failure policy requires this restart policy.
    assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0
    by_status, by_host = job["podFailurePolicy"]["rules"]
    assert by_status["action"] == by_host["action"] == "FailJob"
    assert by_status["onExitCodes"] == {
        "containerName": container["name"], "operator": "In", "values": [2, stopping.STOPPED]
    }  # fmt: skip
    assert by_host["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    # The first matching rule decides. Kubernetes reports a failure like this:
    message = "Container cryjax for pod default/p failed with exit code {} matching FailJob rule"
    rules = jobset["spec"]["failurePolicy"]["rules"]
    action = {
        status: next(
            rule["action"]
            for rule in rules
            if any(
                re.search(pattern, message.format(status))
                for pattern in rule.get("onJobFailureMessagePatterns", [""])
            )
        )
        for status in (2, stopping.STOPPED)
    }
    assert action == {2: "FailJobSet", stopping.STOPPED: "RestartJobSetAndIgnoreMaxRestarts"}
    assert all(rule["onJobFailureReasons"] == ["PodFailurePolicy"] for rule in rules)
    # SIGTERM goes to the program itself, and its flags are flags of pretrain.
    assert container["command"] == ["python", "-m", "cryjax.pretrain"]
    assert {flag.split("=")[0] for flag in container["args"]} == {
        "--config", "--workdir", "--config.data"
    }  # fmt: skip
    assert {"name": "CRYJAX_COORDINATOR", "value": "auto"} in container["env"]
    (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
    assert mount["name"] == volume["name"]
    assert container["args"][1].startswith(f"--workdir={mount['mountPath']}/")
