"""Metrics with percentile intervals from a cluster bootstrap over subjects.

Recordings of one subject resemble each other, so whole subjects are resampled: intervals over
recordings would be too narrow. A resample is a weight for each recording: how often its subject was
drawn.

The intervals are expanded for few subjects: resamples vary too little, by sqrt((n - 1) / n), and
their percentiles are those of a normal distribution where a t distribution is due. The level of
each tail is therefore Phi(-sqrt(n / (n - 1)) t), with t of n - 1 degrees of freedom (Hesterberg,
What Teachers Should Know About the Bootstrap, The American Statistician 69, 2015). A subject counts
once in n however many recordings it has. A metric per class varies with each class's subjects, as a
difference of means does with those of two samples: n and degrees of freedom are Welch's (`reach`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special
from sklearn.metrics import confusion_matrix

from cryjax.data.subjects import numbered
from cryjax.evaluation.metrics import (
    OVER_CLASSES,
    SENSITIVITY,
    THRESHOLD,
    by_subject,
    headlines,
    memberships,
    winners,
)

LEVEL = 0.95
# Weights processed at a time: few enough that arrays made from them stay under 100 MB.
BLOCK = 2**20
# Minimum share of resamples with every class; below it, each averages over the classes it has.
_ENOUGH = 0.1
# With fewer subjects, or subjects of a class, intervals are too narrow (tests/simulations.py).
FEW_SUBJECTS, FEW_OF_A_CLASS = 10, 10


def subject_weights(subjects: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Draws as many subjects as there are, with replacement, `resamples` times.

    Args:
      subjects: [recordings].
      resamples: number of draws.
      seed: of the draw.

    Returns:
      [resamples, recordings]: how often each recording's subject was drawn.
    """
    group, people = numbered(subjects)
    drawn = np.random.default_rng(seed).integers(people, size=(resamples, people))
    counts = np.zeros((resamples, people))
    np.add.at(counts, (np.arange(resamples)[:, None], drawn), 1.0)
    return counts[:, group]


def _bootstrap(
    true: np.ndarray,
    scores: np.ndarray,
    subjects: np.ndarray,
    resamples: int,
    seed: int,
    probabilities: bool,
) -> dict[str, np.ndarray]:
    """metric -> [seeds, 1 + resamples]: for the recordings as they are, then for each resample."""
    seeds = scores if scores.ndim == 3 else scores[None]
    once = np.ones((1, len(true)))
    weights = np.concatenate([once, subject_weights(subjects, resamples, seed)])
    rows = max(1, BLOCK // len(true))
    blocks = [weights[start : start + rows] for start in range(0, len(weights), rows)]
    told = headlines(true, scores.shape[-1], probabilities=probabilities)
    found = {
        name: np.concatenate([[metric(true, one, w) for one in seeds] for w in blocks], axis=1)
        for name, metric in told.items()
    }
    # A mean over fewer classes measures something else: with a class of one subject, a third of
    # the resamples would be of an easier task.
    drawn = weights @ memberships(true, scores.shape[-1])
    lacking = np.any((drawn == 0) & (drawn[0] > 0), axis=1)
    if np.mean(~lacking[1:]) >= _ENOUGH:
        for name in found.keys() & set(OVER_CLASSES):
            found[name][:, lacking] = np.nan
    return found


def reach(true: np.ndarray, subjects: np.ndarray, classes: int) -> tuple[float, float]:
    """The number of subjects that metrics per class rest on, and their degrees of freedom.

    A class of n subjects adds 1/n to the variance, of which resamples show 1 - 1/n (Welch, 1947):
    with few of one class, it matters little how many the others have. Of two classes, one with a
    single subject leaves nothing to resample, and the number is below 2.

    Args:
      true: int [recordings], or bool [recordings, classes].
      subjects: [recordings].
      classes: number of classes.
    """
    members, people = memberships(true, classes), len(np.unique(subjects))
    counts = np.array([len(np.unique(subjects[member])) for member in members.T])
    if true.ndim == 2:  # of classes that most have, those without one are few
        without = [len(np.unique(subjects[~member])) for member in members.T]
        counts = np.minimum(counts, without)
    shares = 1 / counts[counts > 0]
    if not len(shares):
        return people, people - 1
    number = shares.sum() / np.sum(shares**2)
    with np.errstate(divide="ignore"):
        freedom = shares.sum() ** 2 / np.sum(shares**2 / (1 / shares - 1))
    # Two classes are one comparison; a mean over more, or over labels, also rests on the others.
    several = len(shares) > (1 if true.ndim == 2 else 2)
    return max(number, 2.0) if several else number, min(max(freedom, 0.01), people - 1)


def interval(values: np.ndarray, people: float, freedom: float | None = None) -> np.ndarray:
    """The intervals at `LEVEL` from resamples of `people` subjects, NaN resamples left out.

    Expanded for few subjects (Hesterberg, 2015).

    Args:
      values: [resamples, ...].
      people: number of subjects.
      freedom: degrees of freedom; one less than `people` if None.

    Returns:
      [2, ...], lower and upper ends; NaN for one subject, or if `values` are all NaN.
    """
    if people < 2 or np.isnan(values).all():
        return np.full((2, *values.shape[1:]), np.nan)
    t = special.stdtrit(people - 1 if freedom is None else freedom, (1 + LEVEL) / 2)
    tail = float(special.ndtr(-np.sqrt(people / (people - 1)) * t))
    return np.nanquantile(values, [tail, 1 - tail], axis=0)


def _intervals(
    drawn: dict[str, np.ndarray], true: np.ndarray, subjects: np.ndarray, classes: int
) -> dict[str, list[float]]:
    """metric -> its `interval` from [resamples]."""
    people, of_classes = len(np.unique(subjects)), reach(true, subjects, classes)
    return {
        name: interval(
            values, *(of_classes if name in (*OVER_CLASSES, SENSITIVITY) else (people,))
        ).tolist()
        for name, values in drawn.items()
    }


def cautions(true: np.ndarray, subjects: np.ndarray, labels: Sequence[str]) -> list[str]:
    """Warnings for a reader of intervals over these subjects.

    Args:
      true: int [recordings], indices into `labels`; or bool [recordings, classes].
      subjects: [recordings], those scored.
      labels: names of the classes.
    """
    warnings, people = [], len(np.unique(subjects))
    if people < FEW_SUBJECTS:
        warnings.append(
            f"only {people} scored subject(s): the 95 % intervals are too narrow (in simulations, "
            "62 % cover the true value with 2 subjects, 88 % with 4, 93 % with 6)"
        )
    held = subjects_per_class(true, subjects, labels)
    rare = sorted((count, label) for label, count in held.items() if count < FEW_OF_A_CLASS)
    if rare and people >= FEW_OF_A_CLASS:  # else the warning above covers them
        named = ", ".join(f"{label} {count}" for count, label in rare[:5])
        more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
        warnings.append(
            f"classes with fewer than {FEW_OF_A_CLASS} scored subjects ({named}{more}): the 95 % "
            "intervals of metrics computed per class, such as AUC and sensitivity, are too narrow "
            "(in simulations, 70 to 72 % cover an AUC of 0.8 or 0.5 with 2 subjects of a class, 86 "
            "to 88 % with 3; near 1 fewer do, 83 % with 5)"
        )
    return warnings


def subjects_per_class(
    true: np.ndarray, subjects: np.ndarray, labels: Sequence[str]
) -> dict[str, int]:
    """Class -> how many subjects have a recording of it; arguments as in `cautions`."""
    members = memberships(true, len(labels))
    return {
        label: len(np.unique(subjects[member]))
        for label, member in zip(labels, members.T, strict=True)
    }


def summarise_seeds(
    true: np.ndarray,
    scores: np.ndarray,
    subjects: np.ndarray,
    *,
    resamples: int,
    seed: int,
    probabilities: bool = False,
) -> dict[str, dict[str, Any]]:
    """Headline metrics of a classifier trained with several seeds, on the same recordings.

    Args:
      true: int [recordings], or bool [recordings, classes].
      scores: [seeds, recordings, classes].
      subjects: [recordings].
      resamples: per interval; the same subjects are drawn for every seed.
      seed: of the bootstrap.
      probabilities: whether the scores are.

    Returns:
      metric -> its mean over S seeds ('value'), the interval of that mean at `LEVEL`, over subjects
      and not over seeds ('interval'), and its standard deviation over seeds ('spread', with divisor
      S - 1; 0 for one seed).
    """
    found = _bootstrap(true, scores, subjects, resamples, seed, probabilities)
    drawn = {name: values[:, 1:].mean(axis=0) for name, values in found.items()}
    ends = _intervals(drawn, true, subjects, scores.shape[-1])
    return {
        name: {
            "value": float(values[:, 0].mean()),
            "interval": ends[name],
            "spread": float(values[:, 0].std(ddof=1)) if len(values) > 1 else 0.0,
        }
        for name, values in found.items()
    }


def summarise(
    true: np.ndarray,
    scores: np.ndarray,
    labels: Sequence[str],
    subjects: np.ndarray,
    *,
    resamples: int,
    seed: int,
    probabilities: bool = False,
) -> dict[str, Any]:
    """The metrics of result.json.

    Args:
      true: int [recordings], indices into `labels`; or bool [recordings, classes].
      scores: [recordings, classes], the highest wins; NaN for a class that was not learnt.
      labels: names of the classes.
      subjects: [recordings].
      probabilities: whether the scores are; adds their calibration error or, for multi-label
        targets, F1 and confusion at `THRESHOLD`.
      resamples, seed: as in `summarise_seeds`.

    Returns:
      Each headline metric; under 'intervals' its interval at `LEVEL`; the accuracy of the majority
      baseline (share of the most frequent class); the confusion matrix, rows true, or for several
      labels [[tn, fp], [fn, tp]] per class (None without probabilities); counts.
    """
    found = _bootstrap(true, scores, subjects, resamples, seed, probabilities)
    summary: dict[str, Any] = {name: float(values[0, 0]) for name, values in found.items()}
    drawn = {name: values[0, 1:] for name, values in found.items()}
    summary["intervals"] = _intervals(drawn, true, subjects, len(labels))
    confusion = None
    if true.ndim == 1:
        if len(labels) == 2:
            summary["positive"] = labels[1]
        confusion = confusion_matrix(true, winners(scores), labels=range(len(labels))).tolist()
    elif probabilities:
        pairs = zip(true.T, (scores >= THRESHOLD).T, strict=True)
        confusion = [confusion_matrix(*pair, labels=[False, True]).tolist() for pair in pairs]
    return summary | {
        "majority_accuracy": float(memberships(true, len(labels)).mean(axis=0).max()),
        "confusion": confusion,
        "labels": list(labels),
        "n_recordings": len(true),
        "n_subjects": len(np.unique(subjects)),
        "subjects_per_class": subjects_per_class(true, subjects, labels),
        "resamples": resamples,
    }


def summarise_both(
    true: np.ndarray,
    scores: np.ndarray,
    labels: Sequence[str],
    subjects: np.ndarray,
    **how: Any,
) -> dict[str, Any]:
    """`summarise` of recordings and, under 'by_subject', of each subject's mean scores.

    The latter is left out where the recordings of a subject differ in their labels. Arguments as in
    `summarise`.
    """
    result = summarise(true, scores, labels, subjects, **how)
    grouped = by_subject(true, scores, subjects)
    if grouped is not None:
        result["by_subject"] = summarise(*grouped[:2], labels, grouped[2], **how)
    return result


def differences(
    true: np.ndarray,
    scores: np.ndarray,
    others: np.ndarray,
    subjects: np.ndarray,
    *,
    resamples: int,
    seed: int,
    probabilities: bool = False,
) -> dict[str, dict[str, Any]]:
    """Paired bootstrap of how much better one classifier is than another on the same recordings.

    Args:
      true: int [recordings], or bool [recordings, classes].
      scores: [recordings, classes] of the one, or [seeds, recordings, classes]: then the mean of
        a metric over seeds is compared.
      others: of the other, likewise; the number of seeds may differ.
      subjects: [recordings].
      resamples, seed, probabilities: as in `summarise_seeds`; the same subjects are drawn for
        both. For a calibration error, less is better.

    Returns:
      metric -> {'value', 'interval'} of the difference.
    """
    options = (subjects, resamples, seed, probabilities)
    one, other = _bootstrap(true, scores, *options), _bootstrap(true, others, *options)
    gaps = {name: one[name].mean(axis=0) - other[name].mean(axis=0) for name in one}
    drawn = {name: gap[1:] for name, gap in gaps.items()}
    ends = _intervals(drawn, true, subjects, scores.shape[-1])
    return {name: {"value": float(gap[0]), "interval": ends[name]} for name, gap in gaps.items()}


def floor(
    true: np.ndarray, scores: np.ndarray, others: np.ndarray, subjects: np.ndarray, **how: Any
) -> dict[str, Any]:
    """The part 'floor' of a probe's result.json: untrained encoders, and how much better it is.

    Args:
      true: int [recordings].
      scores: [recordings, classes], of the probe.
      others: [encoders, recordings, classes], of untrained ones.
      subjects: [recordings].
      **how: as in `summarise_seeds`.

    Returns:
      Mean of each metric over the encoders, 'intervals' of that mean, its 'spread' over them, their
      number 'encoders', and 'difference' from `differences`.
    """
    found = summarise_seeds(true, others, subjects, **how)
    return {
        **{name: one["value"] for name, one in found.items()},
        "intervals": {name: one["interval"] for name, one in found.items()},
        "spread": {name: one["spread"] for name, one in found.items()},
        "encoders": len(others),
        "difference": differences(true, scores, others, subjects, **how),
    }


def table(result: dict[str, Any], head: str) -> str:
    """Formats the headline metrics and their intervals as text.

    Args:
      result: of `summarise_both`, optionally with 'floor'.
      head: heading of their column.
    """

    def cell(value: float, interval: list[float], sign: str = "") -> str:
        low, high = interval
        if np.isnan(low):  # one subject of a class
            return f"{value:{sign}.3f} no interval"
        return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"

    names = list(result["intervals"])
    width = max(map(len, names)) + 2
    floor = result.get("floor")
    heads = [head, "untrained (floor)", "difference"] if floor else [head]
    lines = [" " * (width + 2) + "".join(f"{name:<26}" for name in heads).rstrip()]
    for name in names:
        cells = [cell(result[name], result["intervals"][name])]
        if floor:
            difference = floor["difference"][name]
            cells.append(cell(floor[name], floor["intervals"][name]))
            cells.append(cell(difference["value"], difference["interval"], "+"))
        lines.append(f"  {name:<{width}}" + "".join(f"{c:<26}" for c in cells).rstrip())
    if floor:
        spread = (f"{name} {floor['spread'][name]:.3f}" for name in ("accuracy", "macro_auc"))
        lines.append(
            f"  floor: mean of {floor['encoders']} untrained encoders, whose standard deviation is "
            f"{', '.join(spread)}"
        )
    # Baselines to compare with: alone, an accuracy of 0.83 looks good.
    against = "always the commonest class" + "; chance of macro_auc: 0.5" * ("macro_auc" in names)
    lines.append(f"  {'majority_accuracy':<{width}}{result['majority_accuracy']:.3f} ({against})")
    if "positive" in result:
        share = sum(result["confusion"][1]) / result["n_recordings"]
        lines.append(
            f"  average_precision (chance: {share:.3f}) and sensitivity are for "
            f"{result['positive']!r}; set config.positive to change this"
        )
    if grouped := result.get("by_subject"):
        each = (
            f"{n} {cell(grouped[n], grouped['intervals'][n])}" for n in ("accuracy", "macro_auc")
        )
        lines.append(f"  one mean score per subject: {', '.join(each)}")
    return "\n".join(lines)
