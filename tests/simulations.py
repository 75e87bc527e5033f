"""How far intervals and probes can be trusted: simulated data sets with a known truth.

    python tests/simulations.py accuracy    # coverage of accuracy intervals with few subjects
    python tests/simulations.py rare        # coverage for AUC and sensitivity with few positives
    python tests/simulations.py noise       # what probes find in features that are noise
    python tests/simulations.py fixed       # the same for noise scores, with nothing fitted
    python tests/simulations.py equal       # differences found between equally good encoders

Each prints a table of shares of `--count` data sets. The page of `cryjax/evaluation` and the
warnings of `cryjax.evaluation.bootstrap.cautions` take their numbers from here.
"""

import argparse
import functools
import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy import stats

from cryjax.evaluation import bootstrap, probes

RESAMPLES = 400  # per interval; the programs' 1000 or 2000 move its ends less than data do
Outcome = dict[str, float]


def grouped(rng: np.random.Generator, subjects: int, each: int, positive: int) -> Any:
    """Labels and subjects of recordings, `each` per subject; some subjects are positive."""
    ill = rng.permutation(subjects) < positive
    people = np.repeat(np.arange(subjects), each)
    return ill[people].astype(int), people


def of_two(scores: np.ndarray) -> np.ndarray:
    """[n] scores of the second class -> [n, 2]."""
    return np.stack([-scores, scores], axis=1)


def summary(true: np.ndarray, scores: np.ndarray, subjects: np.ndarray, seed: int) -> Any:
    labels = [str(number) for number in range(scores.shape[1])]
    return bootstrap.summarise(true, scores, labels, subjects, resamples=RESAMPLES, seed=seed)


def holds(interval: list[float], truth: float) -> bool:
    return interval[0] <= truth <= interval[1]


def accuracy(seed: int, subjects: int, each: int = 20) -> Outcome:
    """Subjects have accuracies that vary around 0.7; two encoders each vary them by 0.05 more.

    And around 0.97, with 5 recordings each: often all are right.
    """
    rng = np.random.default_rng(seed)
    share = rng.beta(7, 3, subjects)
    people = np.repeat(np.arange(subjects), each)
    true = np.ones(len(people), int)

    def scores(spread: float) -> np.ndarray:
        own = np.clip(share + spread * rng.normal(size=subjects), 0, 1)
        return of_two(np.where(rng.random(len(people)) < own[people], 1.0, -1.0))

    found = summary(true, scores(0.0), people, seed)
    one, other = scores(0.05), scores(0.05)
    gap = bootstrap.differences(true, one, other, people, resamples=RESAMPLES, seed=seed)
    few = np.repeat(np.arange(subjects), 5)
    right = rng.random(len(few)) < rng.beta(9.7, 0.3, subjects)[few]
    near = summary(np.ones(len(few), int), of_two(np.where(right, 1.0, -1.0)), few, seed)
    return {
        "holds the truth": holds(found["intervals"]["accuracy"], 0.7),
        "holds 0.97": holds(near["intervals"]["accuracy"], 0.97),
        "difference leaves out 0": not holds(gap["accuracy"]["interval"], 0.0),
    }


def rare(seed: int, positive: int, distance: float, subjects: int = 100) -> Outcome:
    """Normal scores per subject and per recording, shifted by `distance` for positives.

    Two more, equally good, share half of what a subject adds to them.
    """
    rng = np.random.default_rng(seed)
    true, people = grouped(rng, subjects, 5, positive)
    scores = rng.normal(size=subjects)[people] + 0.7 * rng.normal(size=len(true)) + distance * true
    spread = np.sqrt(1 + 0.7**2)
    auc = stats.norm.cdf(distance / spread / np.sqrt(2))
    sensitivity = stats.norm.sf(stats.norm.ppf(0.8) - distance / spread)
    intervals = summary(true, of_two(scores), people, seed)["intervals"]
    shared = rng.normal(size=subjects)

    def alike() -> np.ndarray:
        of_subject = 0.7 * (shared + rng.normal(size=subjects))
        return of_two(of_subject[people] + 0.7 * rng.normal(size=len(true)) + distance * true)

    gap = bootstrap.differences(true, alike(), alike(), people, resamples=RESAMPLES, seed=seed)
    return {
        "AUC holds": holds(intervals["macro_auc"], auc),
        "sensitivity holds": holds(intervals["sensitivity_at_80_specificity"], sensitivity),
        "difference leaves out 0": not holds(gap["macro_auc"]["interval"], 0.0),
    }


def five_classes(rng: np.random.Generator) -> Any:
    """The shape of a public set: 457 recordings of 221 subjects, 84 % of one of five classes."""
    people = np.sort(np.concatenate([np.arange(221), rng.integers(221, size=457 - 221)]))
    return rng.choice(5, size=457, p=[0.836, 0.059, 0.052, 0.035, 0.018]), people


def shape_of(name: str, rng: np.random.Generator) -> Any:
    """Labels and subjects: of five classes, or 'POSITIVE/SUBJECTS'."""
    if name == "five classes":
        return five_classes(rng)
    positive, subjects = map(int, name.split("/"))
    return grouped(rng, subjects, 5, positive)


def _against_chance(found: Any) -> Outcome:
    low, high = found["intervals"]["macro_auc"]
    return {
        "AUC": found["macro_auc"],
        "interval below 0.5": high < 0.5,
        "above": low > 0.5,
    }


def noise(seed: int, shape: str) -> Outcome:
    """Probes in five folds; features depend on subject and recording, not on the label."""
    rng = np.random.default_rng(seed)
    true, people = shape_of(shape, rng)
    features = rng.normal(size=(people.max() + 1, 16))[people]
    features = features + rng.normal(size=(len(true), 16))
    told = probes.probe(features, true, people)
    return _against_chance(summary(told.true, told.scores, told.subjects, seed))


def fixed(seed: int, shape: str) -> Outcome:
    rng = np.random.default_rng(seed)
    true, people = shape_of(shape, rng)
    width = true.max() + 1
    scores = rng.normal(size=(people.max() + 1, width))[people]
    return _against_chance(
        summary(true, scores + rng.normal(size=(len(true), width)), people, seed)
    )


def equal(seed: int, split: bool) -> Outcome:
    """Two encoders with equal signal and independent noise; in folds, or fitted on half."""
    rng = np.random.default_rng(seed)
    true, people = grouped(rng, 80, 4, 40)
    side = (2 * true - 1)[:, None] * np.full(16, 0.35 / 2)
    splits = np.where(people < 40, "train", "test") if split else None

    def told() -> probes.ProbeResult:
        features = 0.7 * rng.normal(size=(80, 16))[people] + rng.normal(size=(len(true), 16))
        return probes.probe(side + features, true, people, splits=splits)

    one, other = told(), told()
    gap = bootstrap.differences(
        one.true, one.scores, other.scores, one.subjects, resamples=RESAMPLES, seed=seed
    )
    winners = [result.scores.argmax(axis=1) for result in (one, other)]
    return {
        "accuracy": float(np.mean([np.mean(won == one.true) for won in winners])),
        "one class of all": float(np.mean([len(set(won)) == 1 for won in winners])),
        "accuracy leaves out 0": not holds(gap["accuracy"]["interval"], 0.0),
        "AUC leaves out 0": not holds(gap["macro_auc"]["interval"], 0.0),
    }


def cases(part: str) -> Iterator[tuple[str, Callable[[int], Outcome]]]:
    """Name of each row of a table, and its function from a seed to an outcome."""
    if part == "accuracy":
        for subjects in (2, 3, 4, 5, 6, 8, 10, 15, 20, 40, 89):
            yield f"{subjects} subjects", functools.partial(accuracy, subjects=subjects)
    elif part == "rare":
        for distance in (0.0, 1.5, 3.0):
            for positive in (2, 3, 5, 10, 20, 50):
                made = functools.partial(rare, positive=positive, distance=distance)
                yield f"{positive} of 100, apart {distance:g}", made
    elif part in ("noise", "fixed"):
        for shape in ("five classes", "10/100", "50/100", "6/40", "4/12"):
            yield shape, functools.partial({"noise": noise, "fixed": fixed}[part], shape=shape)
    else:
        yield "folds", functools.partial(equal, split=False)
        yield "train and test", functools.partial(equal, split=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("accuracy", "rare", "noise", "fixed", "equal"))
    parser.add_argument("--count", type=int, default=400, help="data sets of each row")
    options = parser.parse_args()
    with multiprocessing.Pool() as pool:
        for number, (name, made) in enumerate(cases(options.part)):
            outcomes = pool.map(made, range(options.count), chunksize=4)
            if not number:
                print(" " * 20 + "".join(f"{column:>24}" for column in outcomes[0]))
            columns = np.array([[*outcome.values()] for outcome in outcomes], float).T
            cells = (
                f"{np.mean(column):.3f} +- {np.std(column) / np.sqrt(len(column)):.3f}"
                for column in columns
            )
            print(f"{name:<20}" + "".join(f"{cell:>24}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
