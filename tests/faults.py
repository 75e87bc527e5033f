"""Injects faults into runs and datasets. Longer than a test: each part prints a line of results.

    python tests/faults.py kills --count=50                # SIGKILL at random moments, one process
    python tests/faults.py kills --count=50 --processes=2  # one of two; the other has to end too
    python tests/faults.py stops --count=20 [--processes=2]    # SIGTERM
    python tests/faults.py files --count=10000             # mutated recordings through prepare
    python tests/faults.py files --count=1000 --predict    # and through predict
    python tests/faults.py configs --count=1000            # generated configs
    python tests/faults.py disk                            # a full disk; needs root, for tmpfs

Exit status 1 if anything went wrong.
"""

import argparse
import collections
import csv
import hashlib
import io
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

import programs

STEPS = int(os.environ.get("STEPS", "1200"))


def digest(run: pathlib.Path) -> str:
    """Digest of all arrays and metrics at the end of a run, except times."""
    import jax
    import orbax.checkpoint as ocp

    folder = run / "checkpoints" / str(STEPS)
    total = hashlib.sha256()
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        for item in ("encoder", "head", "optimizer"):
            path = folder.absolute() / item
            target = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
                ocp.StandardCheckpointHandler().metadata(path).tree,
            )
            for leaf in jax.tree.leaves(checkpointer.restore(path, target)):
                total.update(np.asarray(leaf).tobytes())
    for line in (run / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        for name in ("clips_per_second", "waiting_for_data"):
            values.pop(name, None)
        total.update(json.dumps(values, sort_keys=True).encode())
    return total.hexdigest()


class Run:
    """A training run of one or several processes, started by its launcher."""

    def __init__(self, workdir: pathlib.Path, data: pathlib.Path, processes: int):
        arguments = (
            *programs.TINY, f"--config.total={STEPS} steps", "--config.checkpoint_every=40 steps",
            "--config.log_every=10 steps", "--config.batch_size=16", f"--workdir={workdir}",
            f"--config.data={data}",
        )  # fmt: skip
        self._processes = processes
        self._metrics = workdir / "metrics.jsonl"
        self._before = self._logged()
        self._log = workdir.with_suffix(".log").open("ab")
        self._from = self._log.tell()
        path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.process = subprocess.Popen(
            ["bash", "launch/local.sh", str(processes), "1", "pretrain", *arguments],
            cwd=programs.ROOT, stdout=self._log, stderr=subprocess.STDOUT,
            env=programs.environment(PATH=path, CRYJAX_VENV="none"),
        )  # fmt: skip

    def said(self) -> str:
        with open(self._log.name, "rb") as file:  # noqa: PTH123
            file.seek(self._from)
            return file.read().decode(errors="replace")

    def pids(self) -> list[int]:
        return [int(pid) for pid in re.findall(r"process \d of \d has pid (\d+)", self.said())]

    def _logged(self) -> bytes:
        return self._metrics.read_bytes() if self._metrics.exists() else b""

    def wait_for_training(self) -> bool:
        """Waits until it logs steps, or returns to its checkpoint's; False if it ended before."""
        while self.process.poll() is None:
            if len(self.pids()) == self._processes and self._logged() != self._before:
                return True
            time.sleep(0.02)
        return False


def interrupted(
    home: pathlib.Path, data: pathlib.Path, processes: int, count: int, number: int
) -> str:
    """Interrupts runs until `count` signals are sent, resuming each run until it completes."""
    undisturbed = home / "undisturbed"
    assert Run(undisturbed, data, processes).process.wait() == 0
    wanted, rng = digest(undisturbed), random.Random(0)
    sent, runs, slowest = 0, 0, 0.0
    while sent < count:
        workdir, runs = home / f"run{runs}", runs + 1
        if runs > 3 * (sent + 3):
            return f"FAILED: of {runs} runs most end before a signal is sent: take more STEPS"
        while True:
            run = Run(workdir, data, processes)
            told = False
            if sent < count and run.wait_for_training():
                time.sleep(rng.uniform(0, 2.5))
                if run.process.poll() is None:
                    pids = run.pids()
                    try:
                        if number == signal.SIGKILL:
                            os.kill(rng.choice(pids), number)
                        else:
                            run.process.send_signal(number)
                    except ProcessLookupError:
                        pass
                    else:
                        sent, told = sent + 1, True
            start = time.monotonic()
            status = run.process.wait()
            if told:
                slowest = max(slowest, time.monotonic() - start)
            print(f"{sent} sent, status {status}", file=sys.stderr)
            if status == 0:
                break
            if number == signal.SIGTERM and status != 75:
                return f"FAILED: status {status} after SIGTERM: {run.said()[-1500:]}"
            if not told:
                return f"FAILED: status {status} undisturbed: {run.said()[-1500:]}"
        if digest(workdir) != wanted:
            return f"FAILED: {workdir} is not the undisturbed run"
    return (
        f"{sent} x {signal.Signals(number).name}, {processes} process(es), {runs} runs of {STEPS} "
        "steps: all ended byte for byte as the undisturbed one; the slowest end took "
        f"{slowest:.1f} s"
    )


def seeds(seed: int) -> dict[str, bytes]:
    """An intact recording in 20 formats that libsndfile writes."""
    import soundfile

    rng = np.random.default_rng(seed)
    audio = rng.normal(size=16_000) * 0.1
    found = {}
    for kind, subtype in (
        ("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "MS_ADPCM"),
        ("WAV", "ULAW"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"),
        ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_16"), ("AU", "PCM_16"), ("CAF", "PCM_16"),
        ("CAF", "ALAC_16"), ("W64", "PCM_16"), ("RF64", "PCM_16"), ("NIST", "PCM_16"),
        ("VOC", "PCM_16"), ("IRCAM", "PCM_16"), ("SVX", "PCM_16"), ("PAF", "PCM_16"),
    ):  # fmt: skip
        buffer = io.BytesIO()
        soundfile.write(buffer, audio, 16_000, format=kind, subtype=subtype)
        found[f"{kind.lower()}-{subtype.lower()}"] = buffer.getvalue()
    return found


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Flips bits, inflates header numbers; drops, repeats, overwrites or appends bytes."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        how = rng.randrange(7)
        # Headers are what readers trust.
        end = min(len(data), 200) if rng.random() < 0.6 else len(data)
        place = rng.randrange(max(end, 1))
        if how == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif how == 1:
            blown_up = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4))
            data[place : place + 4] = rng.choice(blown_up)
        elif how == 2:
            del data[place:]
        elif how == 3:
            del data[place : place + rng.randrange(1, 100)]
        elif how == 4:
            data[place:place] = data[place : place + rng.randrange(1, 200)]
        elif how == 5:
            data[place : place + 8] = rng.randbytes(8)
        else:
            data += rng.randbytes(rng.randrange(1, 300))
        data = data or bytearray(b"\0")
    return bytes(data)


def files(home: pathlib.Path, count: int, predicts: bool) -> str:
    """Mutated recordings, with intact ones among them, which must all be kept."""
    rng, originals = random.Random(0), seeds(count)
    folder = home / "files"
    folder.mkdir()
    names = []
    for number in range(count):
        name, content = rng.choice(sorted(originals.items()))
        good = number % 100 == 0
        names.append(f"{number:05d}-{'good' if good else 'bad'}.{name.partition('-')[0]}")
        # Each intact one is different: `prepare` uses only one of several copies.
        content = seeds(number)[name] if good else mutated(content, rng)
        (folder / names[-1]).write_bytes(content)
    start = time.monotonic()
    if predicts:
        sys.path.append(str(programs.ROOT / "tests" / "interop"))
        import lively
        from cryjax.interop import run

        source = lively.source("cnn6", labels=("a", "b"))
        run.write(home / "run", "cnn6", 1 / 16, "small_8k", 0.5, source.variables, ("a", "b"))
        done = subprocess.run(
            [sys.executable, "-m", "cryjax.predict", f"--model={home / 'run'}", "--upsample",
             f"--out={home / 'out.csv'}", *(str(folder / name) for name in names)],
            cwd=programs.ROOT, env=programs.environment(), capture_output=True, text=True,
        )  # fmt: skip
        with (home / "out.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        errors = {pathlib.Path(row["recording"]).name: row["error"] for row in rows}
        expected = (0, 1)
    else:
        manifest = folder / "m.csv"
        manifest.write_text("\n".join(["path", *names]) + "\n")
        done = subprocess.run(
            [sys.executable, "-m", "cryjax.prepare", f"--manifest={manifest}",
             f"--out={home / 'data'}", "--sample_rate=8000", f"--mapping={home / 'mapping.csv'}"],
            cwd=programs.ROOT, env=programs.environment(), capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode == 0:
            with (home / "mapping.csv").open(newline="") as file:
                errors = {row["path"]: row["skipped"] for row in csv.DictReader(file)}
        expected = (0,)
    seconds = time.monotonic() - start
    if done.returncode not in expected or "Traceback" in done.stderr:
        return f"FAILED: status {done.returncode}: {done.stderr[-2000:]}"
    lost = [f"{name} ({errors[name]})" for name in names if "good" in name and errors[name]]
    if len(errors) != count or lost:
        return f"FAILED: {len(errors)} of {count} are accounted for, sound ones lost: {lost[:5]}"
    reasons = collections.Counter(re.sub(r"\d+", "N", reason) for reason in errors.values())
    used = reasons.pop("", 0)
    listed = "; ".join(f"{n} x {reason}" for reason, n in reasons.most_common(8))
    return f"{count} mutated files in {seconds:.0f} s: {used} used, the others listed: {listed}"


def configs(count: int) -> str:
    """Recipes with fields changed at random, up to the shapes of a state: nothing is trained."""
    import jax

    from cryjax.command import config as config_lib
    from cryjax.command.errors import UserError
    from cryjax.training import simclr, supervised

    values = (
        0, 1, -1, 2, 7, 64, 10**9, 0.0, 0.5, 1.0, -0.1, 1e-9, 1e300, float("nan"), float("inf"),
        "", "0", "auto", "cnn6", "cnn14", "100 steps", "3 epochs", "1e99 steps", "abc", "ü\n",
        None, True, False, (1, 2), (2, 1), (0.0, float("nan")), [], ("mix",), ("nothing",), {},
    )  # fmt: skip
    rng, said = random.Random(0), collections.Counter()
    for _ in range(count):
        name, module = rng.choice((("pretrain_small", simclr), ("finetune", supervised)))
        config = config_lib.load(programs.ROOT / "configs" / f"{name}.py")
        config.data, config.encoder.width = "DATA", 1 / 16
        fields = sorted(config_lib._flatten(config))
        changed = {}
        for field in rng.sample(fields, rng.choice((1, 1, 2, 4))):
            value = rng.choice(values)
            changed[field] = value
            *above, last = field.split(".")
            part = config
            for step in above:
                part = part[step]
            with part.ignore_type():
                if isinstance(part, dict) or hasattr(part, last):
                    setattr(part, last, value)
        try:
            checked = config_lib.checked(config, module.RULES)
            if module is simclr:
                simclr.check_batch(checked, 1000, 1)
                parts = simclr.build(checked, 1000)
            else:
                targets = np.eye(3, dtype=np.float32)[np.arange(1000) % 3]
                parts = supervised.build(checked, targets, multi_label=False)
            jax.eval_shape(parts.init, jax.random.key(0))
        except UserError as error:
            line = str(error)
            field = next(iter(changed)) if len(changed) == 1 else ""
            if "\n" in line or not line or field not in line:
                return f"FAILED: {changed}: not a useful line: {line!r}"
            said["refused"] += 1
        except Exception as error:
            return f"FAILED: {changed}: {type(error).__name__}: {error}"
        else:
            said["accepted"] += 1
    return f"{count} configs: {said['accepted']} accepted, {said['refused']} refused with a line"


def disk(home: pathlib.Path) -> str:
    """Disks of a few megabytes, filling up at different moments."""
    data = home / "data"
    programs.succeed("prepare", "--synthetic=cries", "--examples=60", "--sample_rate=8000",
                     f"--out={data}")  # fmt: skip
    said, mount = [], home / "small"
    mount.mkdir()
    arguments = (*programs.TINY, f"--config.data={data}", "--config.total=200 steps",
                 f"--workdir={mount / 'run'}")  # fmt: skip
    for kilobytes in (200, 600, 1000, 1500, 2500, 4000):
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", mount], check=True
        )
        try:
            (mount / "ballast").write_bytes(bytes(100_000))
            done = programs.run("pretrain", *arguments)
            full = done.returncode == 2 and "No space left" in done.stderr
            if not (full or done.returncode == 0):
                return f"FAILED: {kilobytes} KB: {done.returncode}: {done.stderr[-2000:]}"
            saved = [p.name for p in (mount / "run" / "checkpoints").glob("*") if p.name.isdigit()]
            said.append(f"{kilobytes} KB: {'full' if full else 'done'}, checkpoints {saved}")
            if full and saved:
                subprocess.run(["mount", "-o", "remount,size=200m", mount], check=True)
                done = programs.run("pretrain", *arguments)
                if done.returncode or "resuming from step" not in done.stderr:
                    return f"FAILED: {kilobytes} KB does not go on: {done.stderr[-2000:]}"
                said[-1] += ", went on"
        finally:
            subprocess.run(["umount", mount], check=True)
    for kilobytes in (100, 1000):
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", mount], check=True
        )
        try:
            line = programs.refuse(
                "prepare", "--synthetic=cries", "--examples=200", f"--out={mount / 'data'}"
            )
            left = [p.name for p in mount.iterdir()]
            said.append(f"prepare into {kilobytes} KB: {line[:90]}...; left {left}")
            if left or "No space left" not in line:
                return f"FAILED: {said[-1]}"
        finally:
            subprocess.run(["umount", mount], check=True)
    return "\n".join(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("kills", "stops", "files", "configs", "disk"))
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--predict", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = pathlib.Path(folder)
        if options.what in ("kills", "stops"):
            data = home / "data"
            programs.succeed("prepare", "--synthetic=cries", "--examples=60",
                             "--sample_rate=8000", f"--out={data}")  # fmt: skip
            number = signal.SIGKILL if options.what == "kills" else signal.SIGTERM
            said = interrupted(home, data, options.processes, options.count, number)
        elif options.what == "files":
            said = files(home, options.count, options.predict)
        elif options.what == "configs":
            said = configs(options.count)
        else:
            said = disk(home)
    print(said)
    sys.exit("FAILED" in said)


if __name__ == "__main__":
    main()
