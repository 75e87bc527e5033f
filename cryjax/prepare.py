"""Converts recordings to a prepared dataset for training and probing.

    python -m cryjax.prepare --manifest=M.csv --out=DATA
    python -m cryjax.prepare --corpus=esc50 --corpus_dir=ESC-50 --out=DATA  # as it is published
    python -m cryjax.prepare --tfds=NAME --out=DATA        # a TFDS catalogue dataset with audio
    python -m cryjax.prepare --synthetic=cries --out=DATA  # no recordings needed

Files are decoded, mixed down to mono, resampled to one rate and cut into segments. Files that
cannot be used are listed by number, with the reason, in DATA/skipped.csv. Repeating the command
does nothing. Neither file names nor subject names get into DATA: subjects are renamed with your key
(cryjax.data.subjects), and --mapping=FILE.csv records, for you, which is which.

    python -m cryjax.prepare --manifest=M.csv --out=DATA --beam_runner=FlinkRunner \\
        --beam_options=flink_master=HOST:8081,environment_type=EXTERNAL

makes the same dataset, record for record, on Apache Beam (pip install "cryjax[beam]"). All workers
must see the recordings and DATA under the same paths, as on a shared or mounted file system, and
have cryjax installed.
"""

import collections
import csv
import dataclasses
import math
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from absl import flags

from cryjax.command import program
from cryjax.command.errors import UserError
from cryjax.data import (
    catalogue,
    corpora,
    decode,
    excluding,
    preparing,
    remarks,
    splits,
    subjects,
    synthetic,
)
from cryjax.data.manifest import Columns, Row, check_inside, read_manifest
from cryjax.data.preparing import Item
from cryjax.data.recording import Recording
from cryjax.data.records import Index, open_prepared

_MANIFEST = flags.DEFINE_string(
    "manifest", None, "CSV file with a column path and, if known, label, subject, split."
)
_CORPUS = flags.DEFINE_enum(
    "corpus", None, sorted(corpora.CORPORA), "A public corpus, downloaded to --corpus_dir."
)
_CORPUS_DIR = flags.DEFINE_string("corpus_dir", None, "Folder of a --corpus, as published.")
_WRITE_MANIFEST = flags.DEFINE_string(
    "write_manifest", None, "CSV file: write the rows of a --corpus there, and prepare nothing."
)
_TFDS = flags.DEFINE_string("tfds", None, "Name of a TFDS dataset, or the folder of a built one.")
_SYNTHETIC = flags.DEFINE_enum(
    "synthetic", None, sorted(synthetic.CORPORA), "A corpus that is generated, not recorded."
)
_OUT = flags.DEFINE_string("out", None, "Folder to create for the prepared dataset.")
_SAMPLE_RATE = flags.DEFINE_integer("sample_rate", 16_000, "Hertz.", *decode.RATES_HZ)
_SEGMENT = flags.DEFINE_float("segment_seconds", 10.0, "Longest segment.", lower_bound=0.1)
_LABEL_COLUMN = flags.DEFINE_string("label_column", "label", "Manifest column with the labels.")
_SUBJECT_COLUMN = flags.DEFINE_string(
    "subject_column", "subject", "The column that says whose a recording is, in --exclude too."
)
_PATH_COLUMN = flags.DEFINE_string("path_column", "path", "The column of files, in --exclude too.")
_ALLOW_DIR = flags.DEFINE_list(
    "allow_dir", [], "Folders, besides the manifest's own, that its files may lie in."
)
_MAPPING = flags.DEFINE_string(
    "mapping", None, "CSV file: write the path and subject of each recording there. Keep it safe."
)
_SPLITS = flags.DEFINE_string(
    "splits",
    None,
    "Shares of splits made by subject, such as train=0.8,test=0.2; default: all train.",
)
_SPLIT_SEED = flags.DEFINE_integer(
    "split_seed", 0, "Seed for assigning subjects to splits.", lower_bound=0
)
_EXCLUDE = flags.DEFINE_list(
    "exclude", [], "Manifests whose subjects are left out, to keep test subjects out of training."
)
_EXAMPLES = flags.DEFINE_integer(
    "examples", 1000, "Number of clips in a synthetic corpus.", lower_bound=1
)
_SYNTHETIC_SEED = flags.DEFINE_integer(
    "synthetic_seed", 0, "Another seed gives other subjects.", lower_bound=0
)
_SOURCE_RATE = flags.DEFINE_integer("source_rate", 0, "Hertz, if a TFDS dataset does not state it.")
_TFDS_DIR = flags.DEFINE_string("tfds_data_dir", None, "Where TFDS keeps its own datasets.")
_WORKERS = flags.DEFINE_integer(
    "workers", os.cpu_count() or 1, "Number of processes, unless Beam is used.", lower_bound=1
)
_SHARDS = flags.DEFINE_integer(
    "shards", None, "Files per split; default: by size, 64 MiB or more each.", lower_bound=1
)
_BEAM_RUNNER = flags.DEFINE_string(
    "beam_runner", None, "Prepare on Apache Beam: DirectRunner, FlinkRunner, SparkRunner, ..."
)
_BEAM_OPTIONS = flags.DEFINE_list("beam_options", [], "Options of the runner: key=value, or key.")

_MAPPED = ("recording", "path", "subject", "pseudonym", "skipped")  # columns of a --mapping
_SOURCES = _MANIFEST, _CORPUS, _TFDS, _SYNTHETIC
# A TFDS dataset has its own splits.
_ONLY_FOR = {
    ("manifest",): ("label_column", "allow_dir"),
    ("corpus",): ("corpus_dir", "write_manifest"),
    ("manifest", "corpus"): ("exclude", "mapping", "subject_column", "path_column"),
    ("synthetic",): ("examples", "synthetic_seed"),
    ("tfds",): ("source_rate", "tfds_data_dir"),
    ("manifest", "corpus", "synthetic"): ("splits", "split_seed", "beam_runner", "beam_options"),
}


def deal(subjects: list[str], labels: list[str]) -> list[str]:
    """The split of each recording, by --splits, or 'train' for all."""
    if not _SPLITS.value:
        return ["train"] * len(subjects)
    fractions = splits.parse_fractions(_SPLITS.value)
    return splits.assign_splits(subjects, labels, fractions, _SPLIT_SEED.value)


def by_split(sources: Iterable[Any], chosen: Iterable[str]) -> dict[str, list[Item]]:
    parts = collections.defaultdict(list)
    for number, (source, split) in enumerate(zip(sources, chosen, strict=True)):
        parts[split].append((number, source))
    return parts


def read_corpus() -> list[Row]:
    """Reads the rows of --corpus; prints its source, licence and caveat."""
    folder = program.required(_CORPUS_DIR)
    corpus = corpora.CORPORA[program.required(_CORPUS)]
    print(f"{corpus.name}, {corpus.url}\nlicence: {corpus.licence}\ncaveat: {corpus.caveat}")
    return corpora.read_corpus(corpus.name, folder)


def from_rows() -> tuple[dict[str, Any], list[Row], list[str], int]:
    """Returns the dataset's inputs, its rows, and the split of each.

    Also the number of subjects whose names differ from another's in spelling only.
    """
    alike = 0
    columns = Columns(path=_PATH_COLUMN.value, subject=_SUBJECT_COLUMN.value)
    if _CORPUS.value:
        rows, source = read_corpus(), program.required(_CORPUS_DIR)
    else:
        source = program.required(_MANIFEST)
        rows = read_manifest(source, dataclasses.replace(columns, label=_LABEL_COLUMN.value))
        check_inside(rows, source, _ALLOW_DIR.value)
        groups = remarks.alike(row.subject for row in rows if not row.alone)
        alike = sum(map(len, groups))
        for remark in remarks.of_rows(rows, groups, _LABEL_COLUMN.value):
            print(remark)
    kept, lines = excluding.exclude(rows, source, _EXCLUDE.value, columns)
    for line in lines:
        print(line)
    if not kept:
        raise UserError(f"{source}: --exclude leaves no recording")
    if kept[0].split and _SPLITS.value:
        raise UserError(f"{source} has its own splits; leave out --splits")
    chosen = (
        [row.split for row in kept]
        if kept[0].split
        else deal([row.subject_id for row in kept], [row.label for row in kept])
    )
    inputs = {"manifest": preparing.fingerprint(kept)}
    if _CORPUS.value:
        inputs["corpus"] = _CORPUS.value
    return inputs, kept, chosen, alike


def read_key() -> bytes:
    """The key that subjects are renamed with; prints where it is if it was just made."""
    key, made = subjects.read_or_make_key()
    if made:
        print(
            f"made {subjects.key_file()}, the key that subjects are renamed with: keep it, and "
            "keep it secret. Datasets made with different keys cannot be checked for shared "
            "subjects"
        )
    return key


def check_mapping() -> None:
    """Raises UserError, before hours of decoding, if --mapping cannot or must not be written."""
    path = pathlib.Path(os.path.realpath(program.required(_MAPPING)))
    if path.is_relative_to(os.path.realpath(program.required(_OUT))):
        raise UserError(f"--mapping={path} would be shared with --out; name a file elsewhere")
    new = not path.exists()
    try:
        for other in filter(None, [_MANIFEST.value, *_EXCLUDE.value]):
            if not new and os.path.exists(other) and path.samefile(other):  # noqa: PTH110
                raise UserError(f"--mapping={path} would overwrite what is read; name another file")
        if path.is_file() and path.stat().st_size:
            with path.open("rb") as file:
                own = ",".join(_MAPPED).encode()
                if file.read(len(own) + 2) != own + b"\r\n":
                    raise UserError(f"--mapping={path} is not a mapping; name another file")
        path.open("ab").close()
        if new:
            path.unlink()  # if preparation fails, no empty file is left
    except OSError as error:
        raise UserError(f"--mapping={path} cannot be written ({error.strerror})") from error


def write_mapping(rows: list[Row], index: Index, out: pathlib.Path) -> None:
    """Writes which recording is which file, and which subject is who."""
    pseudonyms = dict(zip(index.recordings, index.subjects, strict=True))
    with (out / "skipped.csv").open(encoding="utf-8", newline="") as file:
        reasons = {int(line["recording"]): line["reason"] for line in csv.DictReader(file)}
    with pathlib.Path(program.required(_MAPPING)).open(
        "w", encoding="utf-8", errors="surrogateescape", newline=""
    ) as file:
        os.chmod(file.fileno(), 0o600)  # noqa: PTH101
        table = csv.writer(file)
        table.writerow(_MAPPED)
        for number, row in enumerate(rows):
            named = row.name, row.subject, pseudonyms.get(number, "")
            table.writerow([number, *named, reasons.get(number, "")])
    print(f"{_MAPPING.value}: identifies each recording and subject; do not share it")


def from_synthetic() -> tuple[dict[str, Any], dict[str, list[Item]]]:
    if _SAMPLE_RATE.value < synthetic.LOWEST_RATE_HZ:
        raise UserError(
            f"--sample_rate={_SAMPLE_RATE.value}: synthetic corpora need "
            f"{synthetic.LOWEST_RATE_HZ} Hz or more"
        )
    clips = synthetic.CORPORA[program.required(_SYNTHETIC)](_EXAMPLES.value, _SYNTHETIC_SEED.value)
    chosen = deal([clip.subject for clip in clips], [clip.label for clip in clips])
    inputs = {
        "synthetic": _SYNTHETIC.value,
        "examples": _EXAMPLES.value,
        "seed": _SYNTHETIC_SEED.value,
    }
    return inputs, by_split(clips, chosen)


def from_tfds() -> tuple[dict[str, Any], int, dict[str, Iterable[Recording]]]:
    """Returns the inputs, the number of recordings, and those of each split, made lazily."""
    builder = catalogue.open_built(program.required(_TFDS), _TFDS_DIR.value)
    key = read_key()

    def renamed(recordings: Iterable[Recording]) -> Iterable[Recording]:
        for recording in recordings:
            yield dataclasses.replace(recording, subject=subjects.pseudonym(recording.subject, key))

    streams, total = {}, 0
    for split, info in builder.info.splits.items():
        rates = _SAMPLE_RATE.value, _SOURCE_RATE.value
        streams[split] = renamed(catalogue.recordings(builder, split, *rates, first=total))
        total += info.num_examples
    inputs = {
        "tfds": builder.info.full_name,
        "source_rate": _SOURCE_RATE.value,
        "subject_key": subjects.fingerprint(key),
    }
    return inputs, total, streams


def open_beam() -> tuple[Any, dict[str, Any]]:
    """Returns the module that prepares on Beam, and the runner."""
    try:
        from cryjax.data import beam
    except ImportError as error:
        raise UserError(
            f'--beam_runner needs Apache Beam ({error}): pip install "cryjax[beam]"'
        ) from error
    return beam, beam.open_runner(program.required(_BEAM_RUNNER), _BEAM_OPTIONS.value)


def check_flags() -> None:
    """Raises UserError if flags contradict each other."""
    if sum(bool(flag.value) for flag in _SOURCES) != 1:
        raise UserError("give one of --manifest, --corpus, --tfds or --synthetic")
    used = next(flag.name for flag in _SOURCES if flag.value)
    for sources, names in _ONLY_FOR.items():
        for name in names:
            if flags.FLAGS[name].present and used not in sources:
                meant = " or --".join(sources)
                raise UserError(f"--{name} is for --{meant} and not for --{used}; leave it out")
    if _WRITE_MANIFEST.value and (_SPLITS.value or _EXCLUDE.value):
        raise UserError(
            "--write_manifest writes all rows as published; give --splits and --exclude when you "
            "prepare it with --manifest"
        )
    if _BEAM_OPTIONS.value and not _BEAM_RUNNER.value:
        raise UserError("--beam_options needs a --beam_runner; name one")
    if not math.isfinite(_SEGMENT.value):
        raise UserError(
            f"--segment_seconds={_SEGMENT.value} is not a length; 86400 never cuts: no recording "
            f"is longer than {decode.MAXIMUM_HOURS:g} hours"
        )


def report(out: pathlib.Path, info: dict[str, Any], rows: list[Row]) -> None:
    """Prints what the dataset holds, and what a reader of its numbers should know.

    Args:
      out: the dataset.
      info: of the dataset.
      rows: those it was made from, if any.
    """
    what = "synthetic, " if info["synthetic"] else ""
    print(f"{out}: {what}{info['sample_rate']} Hz\n{preparing.summary_table(info)}")
    for remark in remarks.of_dataset(info):
        print(remark)
    if info["skipped"]:
        which = "" if _MAPPING.value or not rows else "; --mapping=FILE.csv tells which files"
        print(f"what was skipped and why: {out / 'skipped.csv'}{which}")


def main(_: list[str]) -> None:
    check_flags()
    if _WRITE_MANIFEST.value:
        rows = read_corpus()
        corpora.write_manifest(_WRITE_MANIFEST.value, rows)
        print(f"{_WRITE_MANIFEST.value}: {len(rows)} recordings; prepare it with --manifest")
        return
    out = pathlib.Path(program.required(_OUT))
    if _MAPPING.value:
        check_mapping()
    rows, alike = [], 0
    if _TFDS.value:
        inputs, total, streams = from_tfds()
    else:
        if _SYNTHETIC.value:
            inputs, items = from_synthetic()
        else:
            inputs, rows, chosen, alike = from_rows()
            key = read_key()
            renamed = [
                dataclasses.replace(row, subject=subjects.pseudonym(row.subject_id, key))
                for row in rows
            ]
            inputs["subject_key"] = subjects.fingerprint(key)
            items = by_split(renamed, chosen)
        total = sum(map(len, items.values()))
        streams = {
            split: preparing.recordings(part, _SAMPLE_RATE.value, _WORKERS.value)
            for split, part in items.items()
        }
    for remark in remarks.of_splits(streams):
        print(remark)
    inputs |= {
        "sample_rate": _SAMPLE_RATE.value,
        "segment_seconds": _SEGMENT.value,
        "splits": _SPLITS.value or "",
        "split_seed": _SPLIT_SEED.value,
    }
    if _SHARDS.value:
        inputs["shards"] = _SHARDS.value
    info = preparing.already_done(out, inputs)
    if info is not None:
        again = "; to retry what was skipped, delete it" if info["skipped"] else ""
        print(f"{out} is already prepared from these inputs; nothing to do{again}")
    else:
        preparation = preparing.Preparation(
            _SAMPLE_RATE.value,
            _SEGMENT.value,
            inputs=inputs,
            synthetic=bool(_SYNTHETIC.value),
            subject_key=inputs.get("subject_key", ""),
            alike=alike,
            shards=_SHARDS.value,
        )
        try:
            if _BEAM_RUNNER.value:
                beam, runner = open_beam()
                info = beam.run(preparation, out, items, runner)
            else:
                info = preparation.run(out, streams, total=total)
        except preparing.NoneUsable as error:
            raise UserError(f"{error}{remarks.of_missing(rows)}") from error
    index = open_prepared(out).index()  # once, or each training host would read it all
    report(out, info, rows)
    if _MAPPING.value:
        write_mapping(rows, index, out)


if __name__ == "__main__":
    program.run(main)
