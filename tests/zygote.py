"""Runs programs in forks of a process that has imported what they import, saving seconds each.

Reads a line of JSON for each run from standard input, and answers with one; `programs.run` is the
client. Nothing here starts JAX: each fork does, with the devices that its environment names.
"""

import contextlib
import json
import os
import runpy
import sys
import tempfile
import traceback

# Not used here, but imported for the forks.
import cryjax.data.corpora
import cryjax.evaluation.experiment
import cryjax.evaluation.probes
import cryjax.evaluation.report
import cryjax.interop.onnx
import cryjax.interop.stablehlo
import cryjax.training.loop
import cryjax.training.simclr
import cryjax.training.start
import cryjax.training.supervised
import cryjax.training.topology

cryjax.interop.onnx._packages()  # imports onnxruntime, its telemetry off


def be(program: str, arguments: list[str], environment: dict[str, str], out: int, err: int) -> None:
    """Becomes the program, in a fork."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [program, *arguments]
    status = 1
    try:
        runpy.run_module(f"cryjax.{program}", run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as stopped:
        status = stopped.code if isinstance(stopped.code, int) else 0 if not stopped.code else 1
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def main() -> None:
    for line in sys.stdin:
        wanted = json.loads(line)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if child == 0:
                be(**wanted, out=out.fileno(), err=err.fileno())
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            said = []
            for file in (out, err):
                file.seek(0)
                said.append(file.read().decode(errors="replace"))
        print(json.dumps([status, *said]), flush=True)


if __name__ == "__main__":
    main()
