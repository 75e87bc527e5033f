"""What one step of a compiled program does, counted from its text (HLO).

XLA's own cost analysis counts a loop's body once and on-chip memory as memory; this does not.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

from absl import logging

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# These only say where a value is.
_FREE = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
)
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$")
_CALLED = re.compile(r"\b(\w+)=%([\w.-]+)|\bbranch_computations=\{([^}]*)\}")
_GROUP = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\])")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_ORIGIN = re.compile(r'op_name="([^"]*)"')
# The transformations that JAX wraps a scope's name in.
_WRAPPER = re.compile(r"(jvp|transpose|vmap|checkpoint|remat)\((.*)\)$")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation.

    Attributes:
      kind: one of `COLLECTIVES`.
      arrays: how many it takes; XLA may combine several.
      bytes: of those arrays on one device.
      group: number of devices that take part together.
      times: how often a step runs it.
      origin: the source operation that it came from; '' if XLA does not say.
    """

    kind: str
    arrays: int
    bytes: int
    group: int
    times: int
    origin: str

    @property
    def sent(self) -> float:
        """The least number of bytes that a device has to send in a step (Chan et al., 2007).

        For n devices of b bytes each: 2 b (n - 1) / n for an all-reduce, b (n - 1) to gather (a
        device forwards as much as it receives), and b (n - 1) / n to reduce and scatter.
        """
        others = self.group - 1
        share = {
            "all-reduce": 2 * others / self.group,
            "all-gather": others,
            "reduce-scatter": others / self.group,
            "all-to-all": others / self.group,
            "ragged-all-to-all": others / self.group,
        }.get(self.kind, 1.0)
        return self.bytes * share * self.times


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One operation that moves memory, fused as XLA decided.

    Attributes:
      name: given by XLA.
      kind: the operation or, for a library call, its target.
      reads: shape of each operand, such as 'bf16[8,4]{1,0}'.
      writes: shape of the result; for several, '(f32[8], u8[0])'.
      bytes: of both, off-chip, each once; a slice counts as its whole array.
      times: how often a step runs it.
      origin: the source operation that it came from; '' if XLA does not say.
    """

    name: str
    kind: str
    reads: list[str]
    writes: str
    bytes: int
    times: int
    origin: str


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    operation: str
    rest: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.-]+)", self.rest.split("), ")[0])

    @property
    def called(self) -> Iterator[tuple[str, str]]:
        """(role, computation), such as ('body', 'region_2')."""
        for role, name, branches in _CALLED.findall(self.rest):
            if name:
                yield role, name
            for branch in re.findall(r"%([\w.-]+)", branches):
                yield "branch", branch


@dataclasses.dataclass
class _Computation:
    name: str
    entry: bool
    instructions: list[_Instruction] = dataclasses.field(default_factory=list)
    times: int = 0
    fused: bool = True


def _sizes(shape: str) -> list[tuple[int, bool]]:
    """Bytes of each array in a shape, and whether on-chip: 'f32[2,80]{1,0:T(2,128)S(1)}'."""
    found = []
    for dtype, bits, sizes, layout in _ARRAY.findall(shape):
        width = 8 if dtype == "pred" else int(bits)
        count = math.prod(int(n) for n in sizes.split(",") if n)
        found.append((count * width // 8, "S(" in layout))
    return found


def _dimensions(shape: str) -> list[int]:
    """Dimensions of the first array in a shape."""
    return [int(n) for n in _ARRAY.findall(shape)[0][2].split(",") if n]


def _touched(size: int, out: int, window: dict[str, str], place: int) -> int:
    """Number of (output, kernel) positions along a spatial axis that meet input, not padding."""

    def at(field: str, default: str) -> str:
        return window[field].split("x")[place] if field in window else default

    low = int(at("pad", "0_0").split("_")[0])
    stride, spread = int(at("stride", "1")), int(at("rhs_dilate", "1"))
    apart = int(at("lhs_dilate", "1"))
    kernel = int(at("size", "1"))
    count = 0
    for i in range(out):
        for j in range(kernel):
            position = i * stride + j * spread - low
            count += 0 <= position <= (size - 1) * apart and position % apart == 0
    return count


def _convolution(instruction: _Instruction, shapes: dict[str, str]) -> int:
    """Operations in a convolution; on a TPU a matrix product is one too."""
    ((left, right, result),) = re.findall(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    a, b = (_dimensions(shapes[name]) for name in instruction.operands)
    out = _dimensions(instruction.shape)
    fields = re.search(r"window=\{([^}]*)\}", instruction.rest)
    window = dict(field.split("=") for field in fields[1].split()) if fields else {}
    total = 2 * out[result.index("b")] * out[result.index("f")] * b[right.index("i")]
    for place in range(len(result) - 2):
        axis = str(place)
        total *= _touched(a[left.index(axis)], out[result.index(axis)], window, place)
    return total


def _origin(line: str) -> str:
    """'jit(f)/shard_map/transpose(jvp(Encoder))/norm0/psum' -> 'Encoder/norm0/psum, backward'."""
    found = _ORIGIN.search(line)
    if not found:
        return ""
    places = []
    for place in found[1].split("/"):
        while wrapped := _WRAPPER.match(place):
            place = wrapped[2]
        if place and place != "shard_map" and not place.startswith("jit("):
            places.append(place)
    return "/".join(places) + (", backward" if "transpose(" in found[1] else "")


def _group(line: str) -> int | None:
    """Size of the device groups, listed or given as [groups,size]; None if none are named."""
    found = _GROUP.search(line)
    if not found:
        return None
    return len(found[1].split(",")) if found[1] else int(found[2])


def _trips(loop: _Instruction, condition: _Computation) -> int:
    """How often a loop runs: XLA's count, or its condition's constant (JAX counts from 0)."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    limits = [
        int(i.rest.partition(")")[0])
        for i in condition.instructions
        if i.operation == "constant" and re.match(r"[su](32|64)\[\]", i.shape)
    ]
    if len(limits) == 1:
        return limits[0]
    logging.warning("the loop %s has no known length and is counted once", loop.name)
    return 1


class Module:
    """A compiled program, read from `compiled.as_text()`."""

    def __init__(self, text: str, devices: int):
        """`devices` is the group size of a collective that names no groups."""
        self._devices = devices
        self._computations: list[_Computation] = []
        for line in text.splitlines():
            if header := _COMPUTATION.match(line):
                self._computations.append(_Computation(header[2], bool(header[1])))
            elif self._computations and (found := _INSTRUCTION.match(line)):
                self._computations[-1].instructions.append(_Instruction(*found.groups()))
        self._shapes = {i.name: i.shape for c in self._computations for i in c.instructions}
        self._count_executions()

    def _count_executions(self) -> None:
        by_name = {c.name: c for c in self._computations}
        # Callees are written before their callers.
        for computation in reversed(self._computations):
            if computation.entry:
                computation.times, computation.fused = 1, False
            for instruction in computation.instructions:
                called = dict(instruction.called)
                for role, name in instruction.called:
                    callee = by_name[name]
                    loops = 1
                    if role == "body":
                        loops = _trips(instruction, by_name[called["condition"]])
                    callee.times += computation.times * loops
                    if role in ("body", "condition", "branch") or instruction.operation == "call":
                        callee.fused &= computation.fused

    @property
    def operations(self) -> int:
        """Multiplications and additions in a step's matrix products and convolutions."""
        return sum(
            computation.times * _convolution(instruction, self._shapes)
            for computation in self._computations
            for instruction in computation.instructions
            if instruction.operation == "convolution"
        )

    @property
    def kernels(self) -> list[Kernel]:
        """Operations that move memory in a step, in text order."""
        found = []
        for computation in self._computations:
            if computation.fused:
                continue
            for instruction in computation.instructions:
                if moved := self._moved(instruction):
                    target = _TARGET.search(instruction.rest)
                    found.append(
                        Kernel(
                            instruction.name,
                            target[1] if target else instruction.operation,
                            [self._shapes[name] for name in instruction.operands],
                            instruction.shape,
                            moved,
                            computation.times,
                            _origin(instruction.rest),
                        )
                    )
        return found

    @property
    def traffic(self) -> int:
        """Bytes that a step reads from and writes to off-chip memory."""
        return sum(kernel.times * kernel.bytes for kernel in self.kernels)

    def _moved(self, instruction: _Instruction) -> int:
        operation = instruction.operation
        if operation in _FREE or operation.endswith("-start") or "Concat" in instruction.rest:
            return 0
        results = _sizes(instruction.shape)
        if operation in ("copy-done", "slice-done"):
            # From memory to chip or back: only one side is memory.
            return sum(size for size, _ in results)
        operands = [x for name in instruction.operands for x in _sizes(self._shapes[name])]
        return sum(size for size, on_chip in results + operands if not on_chip)

    @property
    def collectives(self) -> list[Collective]:
        """The collectives of a step, in text order.

        One that XLA overlaps with computation appears again in each fusion that carries a piece of
        it; it is counted only where it starts.
        """
        found = []
        for computation in self._computations:
            starts = any("AsyncCollectiveStart" in i.rest for i in computation.instructions)
            for instruction in computation.instructions:
                kind = instruction.operation.removesuffix("-start")
                if kind not in COLLECTIVES or ("chain_id=" in instruction.rest and not starts):
                    continue
                operands = instruction.operands
                size = sum(n for name in operands for n, _ in _sizes(self._shapes[name]))
                group = _group(instruction.rest) or self._devices
                origin = _origin(instruction.rest)
                found.append(
                    Collective(kind, len(operands), size, group, computation.times, origin)
                )
        return found
