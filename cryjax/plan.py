"""Compiles a config's training step for an absent TPU slice: does it fit, what does it need?

    python -m cryjax.plan --config=configs/pretrain.py --topology=v5e:16x16
    python -m cryjax.plan --config=configs/pretrain.py --compare=v5e:16x16,v4:4x4x8,v6e:8x8

Needs libtpu (pip install "cryjax[tpu]") and no TPU. The step is the one that `cryjax.pretrain`
runs, so the counts are those of a real run. Times are bounds from published peak rates: no step is
faster, and only a TPU can tell how much slower it is.

Exits with status 0 if the step fits (on every slice compared), 3 if it does not, and 2 if the
request makes no sense.
"""

import dataclasses
import sys
from typing import Any

import jax
from absl import flags, logging
from ml_collections import config_flags

from cryjax import pretrain
from cryjax.audio import augment, frontend
from cryjax.command import config as config_lib
from cryjax.command import program
from cryjax.command.errors import UserError
from cryjax.training import simclr, topology
from cryjax.training.topology import GIB, Plan, Slice

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe, such as configs/pretrain.py.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "A slice to plan for, such as v5e:16x16.")
_COMPARE = flags.DEFINE_list("compare", [], "Slices to tabulate instead, separated by commas.")
_EXAMPLES = flags.DEFINE_integer(
    "examples", 2_000_000, "Examples per epoch without --config.data; AudioSet has about 2e6.", 1
)
_PER_CHIP = flags.DEFINE_integer(
    "per_chip", None, "Examples per chip on every slice, instead of config.batch_size in total.", 1
)
_DOES_NOT_FIT = 3  # 1 is Python's status for an exception


@dataclasses.dataclass(frozen=True)
class Job:
    """A run on a slice: its config, with the batch size there, and its parts."""

    where: Slice
    config: Any
    parts: simclr.SimCLR

    @property
    def each(self) -> int:
        """Examples per chip."""
        return self.config.batch_size // len(self.where.devices)

    def input_rate(self, seconds: float) -> tuple[float, float]:
        """What a host reads at `seconds` per step: clips, and MB of int16, per second."""
        clips = self.config.batch_size / self.where.hosts / seconds
        return clips, clips * self.parts.plan.clip_samples * 2 / 1e6


def count_examples(config: Any) -> int:
    """Examples per epoch: those of the datasets if given, else the flag's."""
    if not config.data:
        return _EXAMPLES.value
    rate = frontend.resolve(config.front_end).sample_rate
    sources = pretrain.sources_of(config, pretrain.open_datasets(config, rate))
    return sum(len(source) for _, source, _ in sources)


def make_job(config: Any, examples: int, where: Slice) -> Job:
    """Raises UserError if the config does not suit the slice."""
    config = config.copy_and_resolve_references()
    if _PER_CHIP.value:
        config.batch_size = _PER_CHIP.value * len(where.devices)
    simclr.check_batch(config, examples, len(where.devices))
    return Job(where, config, simclr.build(config, examples))


def compile_job(job: Job) -> Plan:
    where = job.where
    logging.info(
        "compiling for %s: %d chips, %d hosts", where.name, len(where.devices), where.hosts
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(job.parts.init, key)
    batch = job.parts.plan.batch(job.config.batch_size)
    return topology.compile_step(job.parts.step, where, (state, batch, key))


def remedies(job: Job, plan: Plan) -> str:
    """What to change if the step does not fit; the batch is an estimate by proportion."""
    config, chips = job.config, len(job.where.devices)
    unit = augment.MIX_GROUP if "mix" in config.transforms else 1
    fitting = int(job.each * plan.fitting_share) // unit * unit
    advice = []
    if config.encoder.dtype == "float32":
        advice.append("--config.encoder.dtype=bfloat16")
    if not config.memory.remat:
        advice.append("--config.memory.remat=True")
    more = range(2 * config.memory.chunks, job.each + 1)
    if chunks := next((count for count in more if job.each % count == 0), None):
        advice.append(f"--config.memory.chunks={chunks} or more")
    if fitting:
        enough = -(-config.batch_size // fitting)
        advice.append(f"about {enough} chips, or --config.batch_size={fitting * chips} on these")
    advice.append("chips with more memory")
    return ", or ".join(advice)


def report(job: Job, plan: Plan) -> None:
    """Prints all results for one slice."""
    where, config, memory, chip = job.where, job.config, plan.memory, job.where.chip
    chips = len(where.devices)
    print(
        f"{where.name}: {chips} chips, {where.hosts} host(s); {config.encoder.name} of width "
        f"{config.encoder.width:g}, {config.encoder.dtype}; {config.batch_size} examples per step, "
        f"{job.each} per chip"
    )
    needed, has = memory.needed / GIB, chip.memory / GIB
    verdict = f"fits, {has - needed:.2f} to spare" if plan.fits else f"{needed - has:.2f} too much"
    print(f"memory       {needed:.2f} of {has:.2f} GiB per chip: {verdict}")
    if not plan.fits:
        print(f"  to change  {remedies(job, plan)}")
    if not plan.compiled:
        return
    print(
        f"  of it      arguments {memory.arguments / GIB:.3f} ({memory.in_place / GIB:.3f} of "
        f"them reused for results), temporaries {memory.temporaries / GIB:.3f}, program "
        f"{memory.program / GIB:.3f}"
    )
    print(
        f"operations   {plan.operations / 1e12:.3f} TFLOP per chip and step, matrix products and "
        f"convolutions; {plan.operations * chips / 1e12:.1f} on all chips"
    )
    print(f"traffic      {plan.traffic / 1e9:.2f} GB per chip and step, to and from its memory")
    print(f"collectives  {plan.messages}, for which a chip sends {plan.sent / 1e6:.3f} MB per step")
    for c in plan.collectives:
        times = f", {c.times} times" if c.times > 1 else ""
        arrays = f" in {c.arrays} arrays" if c.arrays > 1 else ""
        print(
            f"  {c.kind:<18} {c.bytes / 1e6:11.6f} MB{arrays}{times}  {c.origin or '(made by XLA)'}"
        )
    seconds, cause = plan.bound
    each = ", ".join(f"{name} {1e3 * value:.3g}" for name, value in plan.seconds.items())
    total = seconds * job.parts.plan.total
    print(f"bound        no step under {1e3 * seconds:.3g} ms, limited by {cause} (ms: {each})")
    print(
        f"  in all     {config.total}, {job.parts.plan.total} steps: at least "
        f"{total / 86400:.4f} days ({total / 60:.1f} minutes)"
    )
    clips, megabytes = job.input_rate(seconds)
    print(
        f"input        at that pace {clips:.0f} clips/s and {megabytes:.0f} MB/s of int16 per host"
    )


_COLUMNS = (
    "slice", "chips", "hosts", "batch", "GiB of", "fits", "temporaries", "TFLOP", "GB moved",
    "collectives", "MB sent", "ms", "days", "clips/s", "MB/s",
)  # fmt: skip


def row(job: Job, plan: Plan) -> str:
    """A row of the table of slices, in Markdown."""
    needed, has = plan.memory.needed / GIB, job.where.chip.memory / GIB
    cells = [job.where.name, len(job.where.devices), job.where.hosts, job.config.batch_size]
    cells += [f"{needed:.2f} of {has:.2f}", "yes" if plan.fits else "no"]
    if plan.compiled:
        seconds, cause = plan.bound
        clips, megabytes = job.input_rate(seconds)
        cells += [f"{plan.memory.temporaries / GIB:.3f}", f"{plan.operations / 1e12:.4f}"]
        cells += [f"{plan.traffic / 1e9:.3f}", plan.messages, f"{plan.sent / 1e6:.2f}"]
        days = seconds * job.parts.plan.total / 86400
        cells += [
            f"{1e3 * seconds:.2f} ({cause})",
            f"{days:.4f}",
            f"{clips:.0f}",
            f"{megabytes:.0f}",
        ]
    cells += ["-"] * (len(_COLUMNS) - len(cells))
    return "| " + " | ".join(map(str, cells)) + " |"


def main(_: list[str]) -> None:
    topology.use_cpu()
    # Data may be left out: they only give the length of an epoch.
    config = config_lib.checked(_CONFIG.value, simclr.RULES | {"data": config_lib.text()})
    if config.parallel == "pmap":
        raise UserError("config.parallel='pmap' is for one host: plan with 'auto'")
    names = _COMPARE.value or [program.required(_TOPOLOGY)]
    slices = [topology.find_slice(name) for name in names]
    examples = count_examples(config)
    # All of them first: an error in one is reported before another compiles for minutes.
    jobs = [make_job(config, examples, where) for where in slices]
    if _COMPARE.value:
        print(f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}", flush=True)
    fits = True
    for job in jobs:
        plan = compile_job(job)
        fits &= plan.fits
        if _COMPARE.value:
            print(row(job, plan), flush=True)
        else:
            report(job, plan)
    if _COMPARE.value:
        print("\nPer chip and step, but clips/s and MB/s per host; ms and days are lower bounds.")
    if not fits:
        sys.exit(_DOES_NOT_FIT)


if __name__ == "__main__":
    program.run(main)
