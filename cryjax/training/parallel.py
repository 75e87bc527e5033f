"""One step over many devices. Only this file names a mesh or creates a device axis.

The same pure step is wrapped in one of three ways:

- one device: `jit`;
- several, 'jit' (the default): `jit` of `shard_map` over a mesh of all devices of all processes;
- several, 'pmap': `pmap`, for those who want the classic form.

`shard_map` runs with `check_vma=False`. The step averages its own gradients with `pmean`, as under
`pmap`; with the check on, differentiation would already have summed them over devices, and the
result would silently be device-count times too large (jax-ml/jax, 'varying manual axes').
"""

import functools
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cryjax.command.errors import Unavailable, UserError, one_line
from cryjax.training.watch import SLOWEST, Watch

AXIS = "data"
CHOICES = ("auto", "jit", "pmap")
TRIES, PAUSE_SECONDS = 12, 10.0  # of `attempts`


def join_processes() -> None:
    """Joins this process to the others of its job, if the environment says that there are others.

    `CRYJAX_COORDINATOR=auto` lets JAX find them: on Cloud TPU, in Kubernetes too, and under Slurm
    and Open MPI, where JAX then gives each process one GPU, by its rank on its host. Elsewhere it
    is HOST:PORT of the first process, with `CRYJAX_PROCESSES` for how many there are and
    `CRYJAX_PROCESS` for which one this is; each takes the devices that it sees. Must be called
    before JAX is used.

    Raises:
      UserError: if these variables are inconsistent.
      Unavailable: if the others do not come within half an hour.
    """
    coordinator = os.environ.get("CRYJAX_COORDINATOR", "")
    if not coordinator:
        return
    where: dict[str, Any] = {}
    if coordinator != "auto":
        try:
            count = int(os.environ["CRYJAX_PROCESSES"])
            process = int(os.environ["CRYJAX_PROCESS"])
        except (KeyError, ValueError):
            count, process = 0, 0
        if not (0 <= process < count and re.fullmatch(r".+:\d+", coordinator)):
            raise UserError(
                f"CRYJAX_COORDINATOR={coordinator} must be HOST:PORT or 'auto'; HOST:PORT needs "
                "CRYJAX_PROCESSES, how many there are, and CRYJAX_PROCESS, counted from 0; "
                "launch/local.sh sets all three"
            )
        where |= {
            "coordinator_address": coordinator,
            "num_processes": count,
            "process_id": process,
            # Inside a Slurm job, JAX would otherwise restrict this process to one GPU.
            "cluster_detection_method": "deactivate",
        }
    try:
        # The hosts of a slice may start minutes apart: each has an image to pull.
        logging.info("waiting up to half an hour for the other processes of this job")
        jax.distributed.initialize(**where, initialization_timeout=1800)
    except (OSError, RuntimeError, ValueError) as error:
        raise (UserError if isinstance(error, ValueError) else Unavailable)(
            f"CRYJAX_COORDINATOR={coordinator}: the job's processes cannot find each other "
            f"({one_line(error)})"
        ) from error
    _meet()


def _ordered(devices: list[jax.Device]) -> list[jax.Device]:
    """Devices grouped by process, whose share of a batch is in one piece.

    On a TPU slice they are not grouped by id: on a v5e:4x4, process 0 has 0, 1, 4 and 5.
    """
    return sorted(devices, key=lambda device: (device.process_index, device.id))


def _meet() -> None:
    """Has all devices of all processes communicate once.

    On CPUs they connect when they first do, and fail if one comes 30 s after another, for example
    because it plots views, or compiles what another finds in the cache. Once connected, they wait.
    """
    if jax.process_count() == 1:
        return
    multihost_utils.sync_global_devices("met")  # process by process, as Orbax does
    everyone = jax.shard_map(
        lambda: jax.lax.psum(jax.lax.axis_index(AXIS), AXIS),
        mesh=Mesh(np.asarray(_ordered(jax.devices())), (AXIS,)),
        in_specs=(),
        out_specs=P(),
        check_vma=False,
    )
    jax.block_until_ready(jax.jit(everyone)())


def everyone(values: np.ndarray) -> np.ndarray:
    """[...] of this process -> [processes, ...]; all of them must call it."""
    if jax.process_count() == 1:
        return values[None]
    # One that hangs before training, or at the end, would leave the others waiting for ever.
    with Watch() as watch, watch.over("the other processes did not come", most_seconds=SLOWEST):
        return np.asarray(multihost_utils.process_allgather(values))


def wait_for_all() -> None:
    """Returns when all processes have called it, at their end.

    Each scores for itself, and the first draws: one may take longer. JAX itself waits for five
    minutes at exit, without a way to change that, and then aborts them all.
    """
    everyone(np.array(0))


def attempts() -> Iterator[None]:
    """Yields a few times, over two minutes: a file server may show some processes a file late."""
    for number in range(TRIES):
        if number:
            time.sleep(PAUSE_SECONDS)
        yield


def from_first(value: Any) -> Any:
    """A JSON value of the first process, NaN allowed; all of them must call it."""
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value, default=float).encode(), np.uint8)
    length = int(everyone(np.array(text.size, np.int32))[0])
    # Of one length in all processes.
    padded = np.pad(text[:length], (0, max(0, length - text.size)))
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())


def agree(**what: str) -> None:
    """Checks that all processes were given the same inputs.

    Args:
      **what: name -> full content as text; the same names in every process.

    Raises:
      UserError: in every process, with the names and processes that differ from the first.
    """
    mine = [
        np.frombuffer(hashlib.sha256(text.encode()).digest(), np.int32) for text in what.values()
    ]
    digests = everyone(np.stack(mine))
    differing = [
        f"{name} (process {', '.join(map(str, np.flatnonzero(other)))})"
        for name, other in zip(what, (digests != digests[:1]).any(axis=2).T, strict=True)
        if other.any()
    ]
    if differing:
        raise UserError(
            f"the processes of this job differ from the first in {' and '.join(differing)}; start "
            "all of them from one installation, with the same command and data"
        )


def together(make: Callable[[], Any]) -> Any:
    """What `make` returns, once it has returned in every process.

    If it fails in one, all end with the same status: a launcher would restart one that ended with
    another, which would then wait for the rest.

    Raises:
      UserError: in every process, if in any.
      Unavailable: likewise.
    """
    made, failed = None, None
    try:
        made = make()
    except (UserError, Unavailable) as error:
        failed = error
    kinds = UserError, Unavailable
    everywhere = everyone(np.array([isinstance(failed, kind) for kind in kinds]))
    for kind, where in zip(kinds, everywhere.T, strict=True):
        if isinstance(failed, kind):
            raise failed
        if where.any():
            raise kind(f"process {where.argmax()} of this job cannot go on; its log says why")
    return made


def _copied(tree: Any) -> Any:
    """Copies each array; one function, or JAX would compile it at each call."""
    return jax.tree.map(jnp.copy, tree)


class Parallel:
    """How a run uses its devices.

    Attributes:
      kind: 'jit' or 'pmap'.
      devices: number of devices, over all processes.
    """

    def __init__(self, kind: str = "auto", devices: list[jax.Device] | None = None):
        """Uses `devices`, or all there are."""
        if kind not in CHOICES:
            raise ValueError(f"parallel={kind!r}: use one of {', '.join(CHOICES)}")
        self.kind = "jit" if kind == "auto" else kind
        self._devices = _ordered(devices or jax.devices())
        self.devices = len(self._devices)
        self._mesh = Mesh(np.asarray(self._devices), (AXIS,))
        self.processes = len({device.process_index for device in self._devices})
        if self.kind == "pmap" and self.processes > 1:
            raise UserError(
                f"parallel='pmap' is for one process, but there are {self.processes}; use 'jit'"
            )

    def __str__(self) -> str:
        what = "jit" if self.devices == 1 and self.kind == "jit" else self.kind
        what = "jit of shard_map" if what == "jit" and self.devices > 1 else what
        hosts = f" of {self.processes} processes" if self.processes > 1 else ""
        return f"{what} over {self.devices} {self._devices[0].platform} device(s){hosts}"

    @property
    def described(self) -> str:
        """What a run's rounding depends on: count and kind of devices, and their processes."""
        kinds = sorted({device.device_kind for device in self._devices})
        return f"{self.devices} {', '.join(kinds)} of {self.processes} process(es)"

    @property
    def replicated(self) -> jax.sharding.Sharding:
        """Sharding of the state: whole on every device."""
        return NamedSharding(self._mesh, P())

    def wrap(self, step: Callable) -> jax.stages.Wrapped:
        """The compiled step over all devices: `(state, batch, key) -> (state, metrics)`.

        Args:
          step: pure, with a keyword `axis_name`. Its state is donated: do not use it again.
        """
        if self.devices == 1 and self.kind == "jit":
            return jax.jit(step, donate_argnums=0)
        step = functools.partial(step, axis_name=AXIS)
        if self.kind == "pmap":
            return jax.pmap(
                step,
                axis_name=AXIS,
                in_axes=(None, 0, None),
                out_axes=(None, None),
                devices=self._devices,
                donate_argnums=0,
            )
        sharded = jax.shard_map(
            step,
            mesh=self._mesh,
            in_specs=(P(), P(AXIS), P()),
            out_specs=(P(), P()),
            check_vma=False,
        )
        return jax.jit(sharded, donate_argnums=0)

    def map(self, function: Callable) -> jax.stages.Wrapped:
        """`(variables, batch) -> result` compiled so that each device computes its share.

        Left to XLA, every device would transform all waveforms.
        """
        if self.devices == 1:
            return jax.jit(function)
        sharded = jax.shard_map(
            function,
            mesh=self._mesh,
            in_specs=(P(), P(AXIS)),
            out_specs=P(AXIS),
            check_vma=False,
        )
        return jax.jit(sharded)

    def abstract(self, state: Any, batch: Any, key: Any) -> tuple[Any, Any, Any]:
        """A step's arguments as shapes with shardings, as `wrap(step).lower` takes them."""

        def lay(tree: Any, sharding: jax.sharding.Sharding) -> Any:
            return jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
            )

        split = NamedSharding(self._mesh, P(AXIS))
        return lay(state, self.replicated), lay(batch, split), lay(key, self.replicated)

    def replicate(self, tree: Any) -> Any:
        """Copies the same values, from the host or replicated, to every device."""
        there = {*self._devices}
        if self.devices == 1 and all(
            x.devices() == there for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)
        ):  # directly; from several devices, values go by way of the host
            return jax.jit(_copied, out_shardings=self.replicated)(tree)
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(self.replicated, np.asarray(x)), tree
        )

    def shard(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Puts this process's part of a batch on its devices, each its share, in order.

        Under pmap the step does that: the result is still on the host.
        """
        if self.kind == "pmap":
            local = self.devices // self.processes
            return {
                name: x.reshape(local, x.shape[0] // local, *x.shape[1:])
                for name, x in batch.items()
            }
        sharding = NamedSharding(self._mesh, P(AXIS))
        return {
            name: jax.make_array_from_process_local_data(sharding, x) for name, x in batch.items()
        }
