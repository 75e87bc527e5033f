"""SimCLR pre-training; domain adaptation when it starts from a checkpoint.

    python -m cryjax.pretrain --config=configs/pretrain_small.py --workdir=RUN --config.data=DATA

Training resumes from a checkpoint in the work directory, else starts from the encoder of
`config.init`, else fresh; the log says which. SIGTERM or Ctrl-C saves and exits with status 75; the
same command resumes. `--views` draws pairs of views to figures/views.png and does not train.
"""

import dataclasses
import functools
import io
import pathlib
from typing import Any

import jax
import numpy as np
from absl import flags, logging

from cryjax.audio import augment, frontend
from cryjax.command import config as config_lib
from cryjax.command import program
from cryjax.command.errors import UserError
from cryjax.data import loader
from cryjax.data.records import Prepared, open_prepared
from cryjax.data.subjects import check_one_key
from cryjax.evaluation import leakage, pictures
from cryjax.evaluation.embeddings import Embedder
from cryjax.evaluation.figures.spectrograms import views_figure
from cryjax.evaluation.figures.style import Place
from cryjax.evaluation.figures.training import training_figure
from cryjax.evaluation.folds import entries, renamed_entries, subjects_of
from cryjax.evaluation.probes import nearest_neighbour_accuracy
from cryjax.training import loop, parallel, simclr, start, steps
from cryjax.training import recipe as recipe_lib
from cryjax.training.stopping import Stop
from cryjax.training.workdir import Workdir


def open_datasets(config: Any, sample_rate: int) -> list[tuple[Prepared, float]]:
    """The datasets of `config.data` with their weights, at the front end's sample rate."""
    datasets = []
    for path, factor in config_lib.datasets(config.data):
        try:
            weight = float(factor or 1.0)
        except ValueError:
            weight = 0.0
        if not 0 < weight < float("inf"):
            raise UserError(
                f"config.data: the weight {factor!r} of {path} must be a number above 0"
            )
        prepared = open_prepared(path)
        whose = f"config.front_end={config.front_end!r}"
        prepared.require_rate(sample_rate, whose, ", or use another front end")
        datasets.append((prepared, weight))
    folders = [prepared.directory.resolve() for prepared, _ in datasets]
    for place, folder in enumerate(folders):
        if folder in folders[:place]:
            raise UserError(
                f"config.data names {folder} twice: a batch may hold examples twice, as their own "
                "negatives; name it once, with a weight, as in DATA:2"
            )
    return datasets


@dataclasses.dataclass(frozen=True)
class Data:
    """What a run trains on.

    Attributes:
      datasets: with their weights.
      sources: from `sources_of`.
    """

    datasets: list[tuple[Prepared, float]]
    sources: list[tuple[Prepared, Any, float]]

    @property
    def examples(self) -> int:
        """Examples per epoch."""
        return sum(len(source) for _, source, _ in self.sources)

    @property
    def weighted(self) -> list[tuple[Any, float]]:
        """The sources with their shares of a batch, as `loader.Clips` takes them."""
        return [(source, weight * len(source)) for _, source, weight in self.sources]

    @property
    def labelled(self) -> Any:
        """The first source that has labels, or None."""
        return next((source for prepared, source, _ in self.sources if prepared.label_names), None)

    @property
    def synthetic(self) -> bool:
        """Whether any of the audio was synthesised, not recorded."""
        return any(prepared.synthetic for prepared, _ in self.datasets)

    @property
    def note(self) -> str:
        """The note in its figures."""
        return "synthetic data" if self.synthetic else ""


class Viewed:
    """Draws views of the run's first clips: what the encoder sees."""

    def __init__(self, clips: loader.Clips, config: Any, key: jax.Array):
        self.clips, self._key = clips, key
        recipe = recipe_lib.view_recipe(config)
        self._hop_seconds = recipe["settings"].hop_seconds
        self._views = jax.jit(functools.partial(augment.two_views, **recipe))

    @functools.cached_property
    def _first(self) -> dict[str, np.ndarray]:
        return self.clips.batch(0, augment.MIX_GROUP)

    def draw(self, place: Place, step: int, note: str) -> Place:
        """Draws the pairs that a step would make of them."""
        key = jax.random.fold_in(self._key, step)
        pair = self._views(key, self._first["audio"], self._first["length"])
        views = np.stack(pair, axis=1)
        return views_figure(place, views, hop_seconds=self._hop_seconds, note=note)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What a run shows of a state: pairs of views and, if there are labels, embeddings.

    Attributes:
      workdir: the run's.
      viewed: the clips to draw views of.
      embedder: for the encoder.
      labelled: random access to examples with labels, or None.
      note: about the data, for figures.
    """

    workdir: Workdir
    viewed: Viewed
    embedder: Embedder
    labelled: Any
    note: str

    def __call__(self, state: steps.TrainState, step: int) -> None:
        drawn = io.BytesIO()
        self.viewed.draw(drawn, step, self.note)
        self.workdir.image(step, "views", drawn.getvalue())
        if not step:  # same as `--views` draws
            path = self.workdir.figure("views")
            path.write_bytes(drawn.getvalue())
            logging.info("views: %s", path)
        if self.labelled is not None:
            pictures.of_state(
                state,
                step,
                workdir=self.workdir,
                embedder=self.embedder,
                source=self.labelled,
                note=self.note,
            )


def neighbours(
    state: steps.TrainState,
    _step: int,
    *,
    embedder: Embedder,
    prepared: Prepared,
    split: str,
    most: int,
) -> dict[str, float]:
    """Nearest-neighbour accuracy of a state's encoder, empty if undefined."""
    found = embedder(state.encoder, prepared.source(split), most=most)
    accuracy = nearest_neighbour_accuracy(found.features, found.labels, found.subjects)
    return {} if accuracy is None else {"neighbour_accuracy": accuracy}


def without(prepared: Prepared, split: str, excluded: set[str]) -> tuple[Any, int]:
    """A split without excluded subjects, and how many examples that drops."""
    source = prepared.source(split)
    if not excluded:
        return source, 0
    index = prepared.index(split)
    kept = ~np.isin(index.subjects, sorted(excluded))
    return prepared.at(index[kept]), int(np.sum(~kept))


def excluded_subjects(config: Any, datasets: list[tuple[Prepared, float]]) -> set[str]:
    """The subjects of `config.exclude_subjects` that are in the datasets."""
    named = {entry: subjects_of(entry) for entry in entries(config.exclude_subjects)}
    excluded = set().union(*named.values())
    held: set[str] = set()
    if excluded:
        folders = [entry.rpartition(":")[0] or entry for entry in named]
        others = [open_prepared(folder) for folder in folders if pathlib.Path(folder).is_dir()]
        check_one_key(
            {str(p.directory): p.subject_key for p in [*others, *(p for p, _ in datasets)]}
        )
        # Of all splits: excluded subjects may be in another one already.
        held = set().union(*(set(p.index().subjects) for p, _ in datasets))
    for entry, subjects in named.items():
        if not subjects & held:
            raise UserError(
                f"config.exclude_subjects: no subject of {entry!r} is in config.data; leave it "
                "out, or use the same subject names in both"
            )
    return excluded & held


def sources_of(
    config: Any, datasets: list[tuple[Prepared, float]], excluded: set[str] | None = None
) -> list[tuple[Prepared, Any, float]]:
    """The datasets to train on, their examples without excluded subjects, and their weights.

    `excluded` is from `excluded_subjects`, which is called if it is None.
    """
    excluded = excluded_subjects(config, datasets) if excluded is None else excluded
    found, gone = [], 0
    for prepared, weight in datasets:
        source, left_out = without(prepared, config.split, excluded)
        gone += left_out
        if len(source):
            found.append((prepared, source, weight))
    if excluded:
        logging.info("%d examples of %d excluded subjects are left out", gone, len(excluded))
    if not found:
        raise UserError("config.exclude_subjects leaves no example to train on")
    return found


def check_shares(batch_size: int, data: Data) -> None:
    """Rejects batches that would hold examples twice, as their own negatives; warns if some may."""
    total = sum(weight for _, weight in data.weighted)
    for (prepared, source, _), (_, weight) in zip(data.sources, data.weighted, strict=True):
        share = batch_size * weight / total
        if share > len(source):
            raise UserError(
                f"config.data: of a batch of {batch_size}, {share:.0f} would come from "
                f"{prepared.directory}, which has {len(source):,} examples: some would be in it "
                "twice, as their own negatives; give it less weight, or use a smaller batch"
            )
        if share > len(source) / 4 and jax.process_index() == 0:
            logging.warning(
                "%s is used up in %.1f batches: a batch that spans two epochs of it may hold "
                "examples twice, as their own negatives; a smaller batch holds fewer",
                prepared.directory, len(source) / share,
            )  # fmt: skip


def described(split: str, prepared: Prepared, source: Any, weight: float) -> str:
    """What a dataset adds to the run, in one line."""
    every = prepared.splits[split]
    of = f"of {prepared.counts[split]['subjects']:,} subjects"
    if len(source) < every:
        of = f"of {every:,}, excluded subjects left out"
    often = "" if weight == 1 else f", drawn {weight:g} times as often"
    made = " (synthetic)" if prepared.synthetic else ""
    return f"{len(source):,} examples {of}{often}; {prepared.directory}, {split!r}{made}"


def run(
    config: Any,
    workdir_path: str,
    *,
    views: bool = False,
    devices: list[jax.Device] | None = None,
    stop: Stop | None = None,
) -> None:
    """Trains, or resumes training, in a work directory.

    Args:
      config: validated.
      workdir_path: the run's.
      views: only draw pairs of views.
      devices: to train on; None for all of all processes.
      stop: that of a program with several runs; None makes one.
    """
    datasets = open_datasets(config, frontend.resolve(config.front_end).sample_rate)
    excluded = excluded_subjects(config, datasets)
    data = Data(datasets, sources_of(config, datasets, excluded))
    # What is stored from here on names nobody.
    config = config.copy_and_resolve_references()
    config.exclude_subjects = renamed_entries(config.exclude_subjects)
    spread = parallel.Parallel(config.parallel, devices)
    simclr.check_batch(config, data.examples, spread.devices)
    check_shares(config.batch_size, data)
    if not config_lib.never(config.neighbours.every):
        simclr.check_neighbours(config, datasets[0][0])  # now, not in the middle of the run
    parts = simclr.build(config, data.examples)
    # With who is left out: a manifest or dataset that config.exclude_subjects names may change.
    written = leakage.content([prepared for prepared, _ in datasets], excluded)
    workdir = start.open_workdir(workdir_path, config, written, spread)
    clips = loader.Clips(data.weighted, samples=parts.plan.clip_samples, seed=config.seed)
    viewed = Viewed(clips, config, jax.random.key(config.seed))
    if views:
        if workdir.writes:
            logging.info("views: %s", viewed.draw(workdir.figure("views"), 0, data.note))
        return
    train(config, data, parts, spread, workdir, viewed, devices, stop)
    if workdir.writes:
        report(workdir, data, parts.plan.total)
    workdir.close()
    logging.info("done: %s", workdir.path)


def train(
    config: Any,
    data: Data,
    parts: simclr.SimCLR,
    spread: parallel.Parallel,
    workdir: Workdir,
    viewed: Viewed,
    devices: list[jax.Device] | None,
    stop: Stop | None,
) -> None:
    """Trains from the work directory's state to the end, as in `run`."""
    plan = parts.plan
    lines = [described(config.split, *source) for source in data.sources]
    meta = start.describe(
        "pretrain",
        workdir,
        plan.settings,
        segment_seconds=max(prepared.segment_seconds for prepared, _ in data.datasets),
        synthetic=data.synthetic,
    )
    state, begun = start.begin(
        config,
        parts,
        spread,
        workdir,
        lines,
        meta=meta,
        examples=data.examples,
        evaluate_every=config.neighbours.every,
    )
    window = round(config.crop.seconds * plan.settings.sample_rate)
    embedder = Embedder.of(parts.encoder, plan.settings, window, devices=devices)
    step = spread.wrap(parts.step)
    names = [str(prepared.directory) for prepared, _, _ in data.sources]
    loop.train(
        begun,
        lambda _: step,
        state,
        loader.Batches(viewed.clips, config.batch_size, names, **config.loader),
        evaluate=functools.partial(
            neighbours,
            embedder=embedder,
            prepared=data.datasets[0][0],
            split=config.neighbours.split,
            most=config.neighbours.most,
        ),
        pictures=Pictures(workdir, viewed, embedder, data.labelled, data.note),
        stop=stop,
    )
    begun.checkpoints.close()


def report(workdir: Workdir, data: Data, total: int) -> None:
    """Writes result.json and the figure of a run of `total` steps."""
    history = workdir.metrics()
    last = [line for line in history if "loss" in line][-1:]
    counts = {"steps": total, "examples": data.examples, "synthetic": data.synthetic}
    skipped = sum(line.get("skipped", 0) for line in history)
    workdir.result(counts | (last[0] if last else {}) | {"skipped": skipped})
    training_figure(workdir.figure("training"), history, note=data.note)


def main(config: Any, workdir: str, *, views: bool) -> None:
    parallel.join_processes()
    run(config, workdir, views=views)
    parallel.wait_for_all()


if __name__ == "__main__":
    # Here, or programs that import this one would accept the flag and ignore it.
    _VIEWS = flags.DEFINE_bool("views", False, "Draw pairs of views to figures/views.png and exit.")
    program.run_recipe(
        lambda config, workdir: main(config, workdir, views=_VIEWS.value),
        simclr.RULES,
        recipe="Recipe, such as configs/pretrain_small.py.",
        workdir="Folder of the run; an existing run is resumed.",
    )
