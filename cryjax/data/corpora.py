"""Public corpora: converts a download in its published layout to the rows of a manifest.

Nothing is downloaded here. Each reader knows one corpus's files and metadata and documents the
layout it expects. Rows keep official splits or folds, if any. The subject is what a split must not
divide. Freesound and YouTube identifiers are kept unchanged, so that `--exclude` can separate two
corpora that share a source.
"""

import collections
import csv
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from absl import logging

from cryjax.command.errors import UserError
from cryjax.data import decode
from cryjax.data.manifest import Row

_UNPACKED = "give the folder of the unpacked download, which holds it"
# 'YTID', 'YYTID' (the Y hides a leading '-' from command lines), 'YTID_START' or 'YTID_START_END'.
_YOUTUBE = re.compile(r"Y?([\w-]{11})(?:_.*)?", re.ASCII)
_SPLITS = {"val": "validation", "dev": "validation"}


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A public corpus.

    Attributes:
      name: for `--corpus`.
      url: where to get it.
      licence: of the recordings and labels.
      caveat: known problems, in one line.
      read: absolute folder -> all recordings in its metadata, present or not.
    """

    name: str
    url: str
    licence: str
    caveat: str
    read: Callable[[pathlib.Path], list[Row]]


def _read(path: pathlib.Path, parse: Callable[[Any], Any]) -> Any:
    """Returns `parse(file)` of a UTF-8 metadata file."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return parse(file)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {_UNPACKED}") from error
    except (ValueError, csv.Error) as error:  # ValueError: not UTF-8, or not JSON
        raise UserError(f"{path}: not as published ({error}); download it again") from error


def _table(path: pathlib.Path, *columns: str, header: bool = True) -> list[dict[str, str]]:
    """Reads the given columns of a CSV file, by header name or, without a header, in order."""

    def parse(file: Iterable[str]) -> list[dict[str, str]]:
        lines = (line for line in file if header or not line.startswith("#"))
        reader = csv.DictReader(lines, None if header else columns, skipinitialspace=True)
        missing = [name for name in columns if name not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(f"no column {', '.join(missing)}")
        return [{name: (line[name] or "").strip() for name in columns} for line in reader]

    return _read(path, parse)


def _row(path: pathlib.Path, labels: list[str], subject: str, split: str = "") -> Row:
    # ';' separates labels in a manifest, so it is replaced in names; commas, common there, stay.
    label = ";".join(name.strip().replace(";", ",") for name in labels)
    return Row(pathlib.Path(path.anchor), str(path), label, subject, _SPLITS.get(split, split))


def _find(folder: pathlib.Path, key: Callable[[str], str] = str) -> dict[str, pathlib.Path]:
    """Maps `key(stem)` to the path of each audio file anywhere under a folder."""
    found: dict[str, tuple[int, pathlib.Path]] = {}
    for parent, _, names in os.walk(folder, followlinks=True):
        for path in filter(decode.is_audio, (pathlib.Path(parent, name) for name in names)):
            candidate = decode.SUFFIXES.index(path.suffix.lower()), path
            name = key(path.stem)
            found[name] = min(found.get(name, candidate), candidate)
    return {name: path for name, (_, path) in found.items()}


def _by_class(
    folder: pathlib.Path, classes: Iterable[str], form: str, pattern: str
) -> Iterator[tuple[pathlib.Path, str, str]]:
    """Yields path, class and first `pattern` group of each audio file in the class folders."""
    for name in classes:
        if not (folder / name).is_dir():
            raise UserError(f"{folder / name}: no such folder; {_UNPACKED}")
        for path in filter(decode.is_audio, sorted((folder / name).iterdir())):
            match = re.fullmatch(pattern, path.stem)
            if match is None:
                raise UserError(f"{path}: not named like {form}; rename or remove it")
            yield path, name, match[1]


def _youtube_id(stem: str) -> str:
    match = _YOUTUBE.fullmatch(stem)
    return match[1] if match else stem


def _vggsound(folder: pathlib.Path) -> list[Row]:
    """VGGSound (Chen et al., 2020), one 10 s clip per video.

    `vggsound.csv`, without a header: YouTube id, start in seconds, label, 'train' or 'test'. Clips
    `YTID_000030.*`, START in six digits, in any folders: the tar files nest them deeply.
    """
    rows, found = [], _find(folder)
    columns = ("id", "start", "label", "split")
    for clip in _table(folder / "vggsound.csv", *columns, header=False):
        stem = f"{clip['id']}_{clip['start'].zfill(6)}"
        path = found.get(stem, folder / f"{stem}.wav")
        rows.append(_row(path, [clip["label"]], clip["id"], clip["split"]))
    return rows


def _audioset(folder: pathlib.Path) -> list[Row]:
    """AudioSet (Gemmeke et al., 2017), one 10 s segment per video.

    `class_labels_indices.csv` (index, mid, display_name), and one or more of
    `balanced_train_segments.csv`, `unbalanced_train_segments.csv` and `eval_segments.csv`: '#'
    comments, then YTID, start_seconds, end_seconds, positive_labels (mids). Only the lists are
    published. Downloaders name the segments `YTID.*`, `YYTID.*`, `YTID_START.*` or
    `YTID_START_END.*` and disagree about folders; any will do, as a video is in one list only.
    """
    classes = _table(folder / "class_labels_indices.csv", "mid", "display_name")
    names = {one["mid"]: one["display_name"] for one in classes}
    splits = {"balanced_train": "train", "unbalanced_train": "train", "eval": "test"}
    lists = {folder / f"{name}_segments.csv": split for name, split in splits.items()}
    if not any(path.is_file() for path in lists):
        raise UserError(f"{' or '.join(map(str, lists))}: none exists; download one or more")
    rows, found = [], _find(folder, _youtube_id)
    for segments in filter(pathlib.Path.is_file, lists):
        for segment in _table(segments, "id", "start", "end", "mids", header=False):
            path = found.get(segment["id"], folder / f"{segment['id']}.wav")
            labels = [names.get(mid, mid) for mid in segment["mids"].split(",")]
            rows.append(_row(path, labels, segment["id"], lists[segments]))
    return rows


def _fsd50k(folder: pathlib.Path) -> list[Row]:
    """FSD50K (Fonseca et al., 2022).

    `FSD50K.ground_truth/dev.csv` (fname, labels, mids, split: 'train' or 'val') and `eval.csv` (no
    split), `FSD50K.metadata/dev_clips_info_FSD50K.json` and `eval_clips_info_FSD50K.json` (with the
    uploader of each clip), and the clips `FSD50K.dev_audio/FNAME.wav` and `FSD50K.eval_audio/`.
    Labels are separated by commas; label names use underscores instead.
    """
    rows = []
    for part in ("dev", "eval"):
        info = folder / "FSD50K.metadata" / f"{part}_clips_info_FSD50K.json"
        uploaders = _read(info, json.load)
        columns = ("fname", "labels", "split") if part == "dev" else ("fname", "labels")
        for clip in _table(folder / "FSD50K.ground_truth" / f"{part}.csv", *columns):
            name = clip["fname"]
            if "uploader" not in uploaders.get(name, ()):
                raise UserError(f"{info}: no uploader for clip {name}; download it again")
            path = folder / f"FSD50K.{part}_audio" / f"{name}.wav"
            subject = uploaders[name]["uploader"].strip()
            rows.append(_row(path, clip["labels"].split(","), subject, clip.get("split", "test")))
    return rows


def _esc50(folder: pathlib.Path) -> list[Row]:
    """ESC-50 (Piczak, 2015).

    `meta/esc50.csv` (filename, fold, target, category, esc10, src_file, take) and the clips
    `audio/FOLD-CLIP-TAKE-TARGET.wav`. `src_file` is the Freesound recording.
    """
    rows = []
    for clip in _table(folder / "meta/esc50.csv", "filename", "fold", "category", "src_file"):
        path = folder / "audio" / clip["filename"]
        rows.append(_row(path, [clip["category"]], clip["src_file"], f"fold{clip['fold']}"))
    return rows


def _urbansound8k(folder: pathlib.Path) -> list[Row]:
    """UrbanSound8K (Salamon et al., 2014).

    `metadata/UrbanSound8K.csv` (slice_file_name, fsID, start, end, salience, fold, classID, class)
    and the slices `audio/foldN/FSID-CLASS-OCCURRENCE-SLICE.wav`. `fsID` is the Freesound
    recording.
    """
    rows = []
    columns = ("slice_file_name", "fsID", "fold", "class")
    for piece in _table(folder / "metadata/UrbanSound8K.csv", *columns):
        fold = f"fold{piece['fold']}"
        path = folder / "audio" / fold / piece["slice_file_name"]
        rows.append(_row(path, [piece["class"]], piece["fsID"], fold))
    return rows


def _donateacry(folder: pathlib.Path) -> list[Row]:
    """donateacry-corpus, the part cleaned at KTH.

    `donateacry_corpus_cleaned_and_updated_data/REASON/UUID-TIME-VERSION-SEX-AGE-TAG.wav`, or just
    the reason folders. The UUID identifies an app installation, in upper case on iOS, lower on
    Android. The reason is the folder's: the tag 'ch' (cold or hot) was merged into discomfort.
    """
    cleaned = folder / "donateacry_corpus_cleaned_and_updated_data"
    files = _by_class(
        cleaned if cleaned.is_dir() else folder,
        ("belly_pain", "burping", "discomfort", "hungry", "tired"),
        "UUID-TIME-VERSION-SEX-AGE-TAG",
        r"([0-9A-Fa-f-]{36})-\d+-[\d.]+-[a-z]+-\d\d-[a-z]{2}",
    )
    return [_row(path, [reason], uuid.lower()) for path, reason, uuid in files]


def _cryceleb(folder: pathlib.Path) -> list[Row]:
    """CryCeleb2023 (Budaghyan et al., 2024), one expiration per file, unlabelled.

    `metadata.csv` (baby_id, period, duration, split: 'train', 'dev' or 'test', chronological_index,
    file_name, file_id) and the files in `file_name`, as `audio/train/spk1/B/spk1_B_001.wav`. Where
    `baby_id` is empty, the infant's folder is the subject.
    """
    rows = []
    for cry in _table(folder / "metadata.csv", "baby_id", "split", "file_name"):
        path = folder / cry["file_name"]
        rows.append(_row(path, [], cry["baby_id"] or path.parent.parent.name, cry["split"]))
    return rows


def _chillanto(folder: pathlib.Path) -> list[Row]:
    """Baby Chillanto (Reyes-Galaviz et al., 2004).

    `CLASS/IIIISSSCCC.wav`: four digits for the infant, three for the segment, three for the class.
    """
    classes = ("asphyxia", "deaf", "hunger", "normal", "pain")
    files = _by_class(folder, classes, "IIIISSSCCC", r"(\d{4})\d{6}")
    return [_row(path, [name], infant) for path, name, infant in files]


CORPORA = {
    corpus.name: corpus
    for corpus in (
        Corpus(
            "audioset",
            "https://research.google.com/audioset/",
            "labels CC BY 4.0; the audio belongs to its uploaders",
            "labels are weak and noisy; videos vanish, so no two downloads are the same",
            _audioset,
        ),
        Corpus(
            "chillanto",
            "http://ingenieria.uatx.mx/orionfrg/cry/",
            "not open: on request from INAOE-CONACYT, Mexico, for research",
            "6 infants are deaf, 6 had asphyxia, 5 are normal and none is in two classes, so "
            "telling infants apart looks like diagnosis; segments of 1 s",
            _chillanto,
        ),
        Corpus(
            "cryceleb",
            "https://huggingface.co/datasets/Ubenwa/CryCeleb2023",
            "CC BY-NC-ND 4.0, after agreeing to its conditions",
            "tells who cries, not why; test identities are hidden, so two may be one infant",
            _cryceleb,
        ),
        Corpus(
            "donateacry",
            "https://github.com/gveres/donateacry-corpus",
            "ODbL 1.0, contents DbCL 1.0",
            "reasons are the uploaders' guesses, 84 % of them 'hungry'; a subject is an app "
            "installation, not proven to be one infant",
            _donateacry,
        ),
        Corpus(
            "esc50",
            "https://github.com/karolpiczak/ESC-50",
            "CC BY-NC 3.0; the ESC-10 part CC BY",
            "40 clips per class, many padded with silence; clips of one recording belong together, "
            "which the 5 folds respect",
            _esc50,
        ),
        Corpus(
            "fsd50k",
            "https://zenodo.org/records/4060432",
            "CC BY 4.0; each clip CC0, CC BY, CC BY-NC or CC Sampling+",
            "labels of the training part may be incomplete; labels are weak; a subject is an "
            "uploader: dev and eval share none, but train and validation may",
            _fsd50k,
        ),
        Corpus(
            "urbansound8k",
            "https://urbansounddataset.weebly.com/urbansound8k.html",
            "CC BY-NC 3.0",
            "slices of one recording belong together, so never shuffle the 10 folds; even they "
            "divide 5 of the 1297 recordings",
            _urbansound8k,
        ),
        Corpus(
            "vggsound",
            "https://www.robots.ox.ac.uk/~vgg/data/vggsound/",
            "CC BY 4.0; the audio belongs to its uploaders",
            "one label per clip even where several apply; classes overlap; some videos are gone; "
            "labels were found from the images",
            _vggsound,
        ),
    )
}


def _undivided(name: str, rows: list[Row]) -> list[Row]:
    """Renames subjects that official splits divide, with one name per split, and warns.

    Such subjects leak, but results are compared on the official splits, which thus stay unchanged.
    """
    splits = collections.defaultdict(set)
    for row in rows:
        splits[row.subject].add(row.split)
    divided = {subject for subject, its in splits.items() if len(its) > 1}
    if divided:
        logging.warning(
            "%s: the official splits divide %d of %d subjects; these are named SUBJECT/SPLIT",
            name,
            len(divided),
            len(splits),
        )
    return [
        dataclasses.replace(row, subject=f"{row.subject}/{row.split}")
        if row.subject in divided
        else row
        for row in rows
    ]


def read_corpus(name: str, folder: str | pathlib.Path) -> list[Row]:
    """Reads a download of a public corpus.

    Recordings in the metadata that the folder lacks are left out, and their number is logged.

    Args:
      name: one of `CORPORA`.
      folder: of the unpacked download.

    Returns:
      Rows, whose names are absolute paths.

    Raises:
      UserError: for an unknown name, a layout other than the published one, or no recordings.
    """
    if name not in CORPORA:
        raise UserError(f"{name!r} is not a known corpus; give one of {', '.join(CORPORA)}")
    folder = pathlib.Path(folder).absolute()
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the one that {name} was unpacked to")
    listed = _undivided(name, CORPORA[name].read(folder))
    rows = [row for row in listed if row.path.is_file()]
    if not rows:
        where = f", for example {listed[0].path}" if listed else ""
        raise UserError(f"{folder}: none of {len(listed)} recordings is there{where}; unpack them")
    if len(rows) < len(listed):
        missing = len(listed) - len(rows)
        logging.warning("%s: %d of %d recordings are missing", name, missing, len(listed))
    return rows


def write_manifest(path: str | pathlib.Path, rows: Iterable[Row]) -> None:
    """Writes a manifest that `read_manifest` reads back as the same rows.

    Raises:
      UserError: if it exists already, as it may have been edited, or cannot be written.
    """
    path = pathlib.Path(path)
    try:
        with path.open("x", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(["path", "label", "subject", "split"])
            table.writerows([row.name, row.label, row.subject, row.split] for row in rows)
    except FileExistsError as error:
        raise UserError(f"{path} exists; give a new name, or delete it") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
