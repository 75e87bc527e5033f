"""Absent TPU slices: the rates of their chips, and how XLA compiles a step for them.

libtpu compiles for any slice it knows on a machine without a TPU. Its results (memory, operations,
collectives) are exact; how fast a step would run is not among them.
"""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import topologies

from cryjax.command.errors import UserError, one_line
from cryjax.training import parallel
from cryjax.training.hlo import Collective, Module

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published data of a chip: cloud.google.com/tpu/docs/v4, v5e, v5p and v6e, read in 2026.

    Attributes:
      flops: peak bfloat16 operations per second.
      memory: bytes that a program may use (libtpu 0.0.42 rejects one that needs more), of the
        published 32 GiB for v4, 16 GB for v5e, 95 GiB for v5p and 32 GB for v6e.
      memory_rate: bytes per second of the high-bandwidth memory.
      link_rate: bytes per second that a chip's links can send in total: half of what the pages
        give for both directions; for v4, 6 links of 50 GB/s (Jouppi et al., 2023, table 4).
      options: of the topology; a v4 chip's two cores are one device only on request.
    """

    flops: float
    memory: int
    memory_rate: float
    link_rate: float
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


CHIPS = {
    "v4": Chip(275e12, int(30.75 * GIB), 1200e9, 300e9, {"chip_config_name": "megacore"}),
    "v5e": Chip(197e12, int(15.75 * GIB), 819e9, 200e9),
    "v5p": Chip(459e12, int(95.74 * GIB), 2765e9, 600e9),
    "v6e": Chip(918e12, int(31.25 * GIB), 1638e9, 400e9),
}
_KNOWN = "v5e:4x4 or v6e:16x16 (rows and columns), v4:2x2x4 or v5p:4x4x8 (three sides)"


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice of a TPU pod.

    Attributes:
      name: such as 'v5e:16x16'.
      chip: of each device; a chip is one device.
      devices: all of them, none attached here.
      hosts: number of machines.
    """

    name: str
    chip: Chip
    devices: list[jax.Device]
    hosts: int


def use_cpu() -> None:
    """Keeps JAX off any accelerator of this machine, and libtpu from looking for its own.

    Must be called before JAX is used.
    """
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        # Or it queries Google Cloud's metadata server about this machine for minutes.
        "TPU_SKIP_MDS_QUERY": "1",
        # It otherwise complains that it cannot determine these.
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        # Another process may be compiling for another slice.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    jax.config.update("jax_platforms", "cpu")


def find_slice(name: str) -> Slice:
    """A slice by its name, such as 'v5e:16x16'. Raises UserError if unknown, or without libtpu."""
    generation, _, sides = name.partition(":")
    if generation not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", sides):
        raise UserError(f"--topology={name!r} is not a known slice; use one like {_KNOWN}")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError('compiling for a TPU needs its compiler: pip install "cryjax[tpu]"')
    chip = CHIPS[generation]
    options = dict(chip.options)
    if set(sides.split("x")) == {"1"}:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        description = topologies.get_topology_desc(name, "tpu", **options)
        devices: list[jax.Device] = list(description.devices)
    except (RuntimeError, ValueError) as error:
        reason = one_line(error).removeprefix("INVALID_ARGUMENT: ")
        raise UserError(
            f"--topology={name!r}: libtpu does not know this shape ({reason}); use one like "
            f"{_KNOWN}"
        ) from error
    return Slice(name, chip, devices, len({device.process_index for device in devices}))


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device while a step runs.

    Attributes:
      needed: in total.
      arguments: state, batch and key.
      results: new state and metrics.
      in_place: the results that take the place of donated arguments.
      temporaries: everything in between.
      program: the step's own code.
    """

    needed: int
    arguments: int = 0
    results: int = 0
    in_place: int = 0
    temporaries: int = 0
    program: int = 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """How XLA compiles a step for a slice. Counts are per device and step.

    Attributes:
      slice: the one it is compiled for.
      memory: on a device.
      compiled: whether XLA accepts the step; if not, only `memory.needed` is known.
      operations: in its matrix products and convolutions.
      traffic: bytes that it moves to and from memory.
      collectives: in program order.
    """

    slice: Slice
    memory: Memory
    compiled: bool = True
    operations: int = 0
    traffic: int = 0
    collectives: tuple[Collective, ...] = ()

    @property
    def fits(self) -> bool:
        return self.compiled and self.memory.needed <= self.slice.chip.memory

    @property
    def fitting_share(self) -> float:
        """Factor for a batch that fits, if all but state and code grows with it."""
        fixed = self.memory.in_place + self.memory.program
        return max(self.slice.chip.memory - fixed, 0) / max(self.memory.needed - fixed, 1)

    @property
    def messages(self) -> int:
        """Number of collectives run in a step."""
        return sum(c.times for c in self.collectives)

    @property
    def sent(self) -> float:
        """The least number of bytes that a device sends in a step."""
        return sum(c.sent for c in self.collectives)

    @property
    def bound(self) -> tuple[float, str]:
        """The fewest seconds a step can take, and the resource that sets them."""
        cause, seconds = max(self.seconds.items(), key=lambda item: item[1])
        return seconds, cause

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds that each resource alone needs per step, at its published rate."""
        chip = self.slice.chip
        return {
            "compute": self.operations / chip.flops,
            "memory": self.traffic / chip.memory_rate,
            "links": self.sent / chip.link_rate,
        }


def needed_memory(message: str) -> int | None:
    """Bytes that a step needs, from XLA's error; None if that is about something else.

    It says 'Used 24.35G of 15.75G hbm' or '... HLO temporaries (260.00G) exceeds available HBM'.
    """
    found = re.search(r"Used ([\d.]+)([KMGT]?) of|\(([\d.]+)([KMGT]?)\) exceeds", message)
    if "RESOURCE_EXHAUSTED" not in message or not found:
        return None
    number, unit = (part for part in found.groups() if part is not None)
    return int(float(number) * 1024 ** " KMGT".index(unit or " "))


def compile_step(step: Callable, where: Slice, shapes: tuple[Any, Any, Any]) -> Plan:
    """Compiles a step as it would run on a slice, with its state donated.

    Args:
      step: pure, with a keyword `axis_name`.
      where: the slice.
      shapes: of its state, batch (global) and key.
    """
    spread = parallel.Parallel("jit", where.devices)
    lowered = spread.wrap(step).lower(*spread.abstract(*shapes))
    try:
        compiled: Any = lowered.compile()  # for a TPU it always has memory and text
    except jax.errors.JaxRuntimeError as error:
        needed = needed_memory(str(error))
        if needed is None:
            raise
        return Plan(where, Memory(needed), compiled=False)
    sizes = compiled.memory_analysis()
    arguments, results = sizes.argument_size_in_bytes, sizes.output_size_in_bytes
    in_place, program = sizes.alias_size_in_bytes, sizes.generated_code_size_in_bytes
    temporaries = sizes.temp_size_in_bytes
    needed = arguments + results - in_place + temporaries + program
    module = Module(compiled.as_text(), spread.devices)
    return Plan(
        where,
        Memory(needed, arguments, results, in_place, temporaries, program),
        operations=module.operations,
        traffic=module.traffic,
        collectives=tuple(module.collectives),
    )
