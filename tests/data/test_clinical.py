"""Who is in the clinical corpora, and that an injury and a site are in their audio."""

import collections
import dataclasses
import functools
import itertools

import librosa
import numpy as np
import pytest
from sklearn import linear_model, metrics, model_selection, pipeline, preprocessing

from cryjax.data import synthetic
from cryjax.data.synthetic import clinical, cries
from cryjax.data.synthetic.clips import (
    breaths,
    clinical_injury,
    clinical_triggers,
    clinical_unlabelled,
)

RATE = 8_000
SEED = 5


def number(clip):
    return int(clip.subject.partition("-")[0].removeprefix("newborn"))


def by_subject(clips):
    return {
        subject: list(held)
        for subject, held in itertools.groupby(clips, key=lambda clip: clip.subject)
    }


def expirations(clip):
    return [breath for breath in breaths(clip) if breath.expiration]


def is_odd(breath):
    return breath.glide_semitones != 0 or breath.second > 0 or breath.pitch_hz >= 1_000


def measures(clip):
    """What a clip is made to hold, as numbers on scales where an injury adds."""
    planned = expirations(clip)
    pauses = [b.start - a.start - a.seconds for a, b in itertools.pairwise(planned)]
    semitones = 12 * np.log2([breath.pitch_hz for breath in planned if breath.pitch_hz < 1_000])
    first = planned[0]
    return {
        "seconds": np.log(first.seconds),
        "pause": np.log(np.mean(pauses)) if pauses else np.nan,
        "pitch": np.mean(semitones) if len(semitones) else np.nan,
        "wander": np.std(semitones) if len(semitones) > 1 else np.nan,
        "arc": first.arc_semitones,
        "rough": first.rough,
        "odd": np.mean([is_odd(breath) for breath in planned]),
        "onset": np.log(first.onset_seconds),
    }


@functools.cache
def features(examples):
    """Recordings, and `measures` [clips, numbers] with the mean of the others where one lacks."""
    clips = clinical_injury(examples, SEED)
    found = np.array([list(measures(clip).values()) for clip in clips])
    return clips, np.where(np.isnan(found), np.nanmean(found, axis=0), found)


@pytest.mark.parametrize("examples", [1, 2, 7, 60, 1_000])
def test_newborns_are_recorded_in_turn_and_a_tenth_are_injured(examples):
    clips = clinical_injury(examples, SEED)
    assert [clip.index for clip in clips] == list(range(examples))
    assert clips == clinical_injury(1_200, SEED)[:examples]
    held = by_subject(clips)
    assert list(held) == [f"newborn{i:04d}-{SEED}" for i in range(len(held))]
    sizes = [len(each) for each in held.values()]
    assert all(3 <= size <= 8 for size in sizes[:-1]) and 1 <= sizes[-1] <= 8
    assert len(set(sizes)) == 6 or examples < 1_000
    status = [{clip.label for clip in each} for each in held.values()]
    assert all(each in ({"healthy"}, {"injury"}) for each in status)
    for first in range(0, len(status) - 9, 10):
        assert status[first : first + 10].count({"injury"}) == 1
    assert sorted({"healthy", "injury"})[1] == "injury"  # the class that a detector scores


def test_full_size_is_about_a_thousand_newborns():
    numbers = clinical.labelled(5_500, SEED)
    assert 950 < len(set(numbers)) < 1_050


def test_triggers_are_another_label_of_the_same_audio():
    injuries, triggers = clinical_injury(40, SEED), clinical_triggers(40, SEED)
    for one, other in zip(injuries, triggers, strict=True):
        assert dataclasses.replace(one, corpus=other.corpus, label=other.label) == other
    for i in (0, 17, 39):
        assert injuries[i].render(RATE).tobytes() == triggers[i].render(RATE).tobytes()
        assert breaths(injuries[i]) == breaths(triggers[i])
    labels = collections.Counter(clip.label for clip in triggers)
    assert set(labels) == set(cries.CRIES) and max(labels.values()) - min(labels.values()) <= 1
    for held in list(by_subject(triggers).values())[:-1]:
        assert len({clip.label for clip in held}) == 3


def test_unlabelled_recordings_are_in_a_fifth_of_labelled_newborns():
    labelled = {clip.subject for clip in clinical_injury(240, SEED)}
    clips = clinical_unlabelled(720, SEED)
    assert clips == clinical_unlabelled(1_000, SEED)[:720]
    assert {clip.label for clip in clips} == {""}
    again = [clip for clip in clips if clip.subject in labelled]
    assert len(again) == 720 // 5
    assert {number(clip) for clip in again} == set(range(36)) and len(labelled) >= 36
    assert all(number(clip) >= 100_000 for clip in clips if clip.subject not in labelled)
    assert set(collections.Counter(clip.subject for clip in clips).values()) == {4}
    known = {clip.render(RATE).tobytes() for clip in clinical_injury(8, SEED)}
    assert not known & {clip.render(RATE).tobytes() for clip in again[:8]}


def test_a_newborn_is_the_same_with_and_without_labels():
    """Its voice: recordings of one agree in pitch, and so do those without its labels."""
    pitch = []
    for corpus in ("clinical-injury", "clinical-unlabelled"):
        semitones = collections.defaultdict(list)
        for clip in synthetic.CORPORA[corpus](800, SEED):
            semitones[number(clip)].append(measures(clip)["pitch"])
        pitch.append([np.nanmean(semitones[i]) for i in range(40)])
    assert np.corrcoef(pitch)[0, 1] > 0.7
    assert abs(np.corrcoef(pitch[0], np.roll(pitch[1], 1))[0, 1]) < 0.5


def test_injury_changes_what_a_cry_is_made_to_hold():
    clips, numbers_of_clips = features(2_500)
    held = collections.defaultdict(list)
    for clip, numbers in zip(clips, numbers_of_clips, strict=True):
        held[clip.label, clip.subject].append(numbers)
    healthy, injured = (
        np.array([np.mean(rows, axis=0) for (of, _), rows in held.items() if of == label])
        for label in ("healthy", "injury")
    )
    error = np.sqrt(sum(each.var(axis=0, ddof=1) / len(each) for each in (healthy, injured)))
    difference = injured.mean(axis=0) - healthy.mean(axis=0)
    clear = dict(zip(measures(clips[0]), difference / error, strict=True))
    for name in ("pause", "pitch", "wander", "rough", "odd"):
        assert clear[name] > 3, name
    for name in ("seconds", "arc"):
        assert clear[name] < -3, name
    assert abs(clear["onset"]) < 3  # which an injury leaves alone


def test_injury_is_of_moderate_difficulty():
    """By subject, to a linear classifier of the numbers that a clip is made from."""
    clips, numbers = features(2_500)
    true = np.array([clip.label for clip in clips]) == "injury"
    classifier = pipeline.make_pipeline(
        preprocessing.StandardScaler(), linear_model.LogisticRegression(class_weight="balanced")
    )
    score = model_selection.cross_val_predict(
        classifier,
        numbers,
        true,
        groups=[clip.subject for clip in clips],
        cv=model_selection.StratifiedGroupKFold(5, shuffle=True, random_state=0),
        method="decision_function",
    )
    assert 0.85 < metrics.roc_auc_score(true, score) < 0.97


@pytest.fixture
def severity(monkeypatch):
    """Sets that of every newborn."""
    newborn = clinical.newborn

    def to(value):
        monkeypatch.setattr(
            clinical,
            "newborn",
            lambda *which: dataclasses.replace(newborn(*which), severity=value),
        )

    return to


def pitch_hz(x, seconds, lowest=250, highest=1_000):
    """Median fundamental from one time to another, by YIN."""
    inside = x[round(seconds[0] * RATE) : round(seconds[1] * RATE)]
    return np.median(librosa.yin(inside, fmin=lowest, fmax=highest, sr=RATE, frame_length=512))


def test_injury_is_heard(severity):
    """In the same cries of the same newborns, without and with one."""
    higher, quieter = [], []
    for clip in clinical_injury(50, SEED):
        semitones, quiet = [], []
        for value in (0.0, 1.5):
            severity(value)
            x = clip.render(RATE)
            first = expirations(clip)[0]
            middle = [first.start + share * first.seconds for share in (0.3, 0.7)]
            semitones.append(np.nan if is_odd(first) else 12 * np.log2(pitch_hz(x, middle)))
            level = librosa.feature.rms(y=x, frame_length=256, hop_length=80)[0]
            quiet.append(np.mean(level < 0.2 * np.percentile(level, 95)))
        higher.append(semitones[1] - semitones[0])
        quieter.append(quiet[1] - quiet[0])
    # To the nearest octave: in a rough stretch, half the fundamental is a right answer too. Where
    # the melody is flatter, its middle lies less above its mean.
    higher = (np.array(higher) + 6) % 12 - 6
    assert 0.7 < np.nanmedian(higher) < 1.5 * clinical.INJURY.pitch_semitones + 0.5
    assert np.mean(quieter) > 0.05  # longer pauses, shorter expirations


def one_breath(**fields):
    """One expiration of a steady voice, before the vocal tract, [samples]."""
    rng = np.random.default_rng(0)
    infant = cries.Infant(rng)
    infant.jitter = infant.shimmer = infant.breath = 0.0
    plain = {"pitch_hz": 400.0, "onset_seconds": 0.05, "arc_semitones": 0.0, "peak": 0.5}
    breath = cries.Breath(True, 0.0, 1.0, **plain | {"rough": 0.0} | fields)
    return cries.source(breath, infant, 1.0, rng, RATE)


def test_a_glide_is_a_leap_of_the_pitch():
    for semitones in (-7.0, 0.0, 7.0):
        x = one_breath(glide_semitones=semitones)
        leap = pitch_hz(x, (0.6, 0.9)) / pitch_hz(x, (0.1, 0.4))
        assert 12 * np.log2(leap) == pytest.approx(semitones, abs=0.3)


def test_biphonation_is_a_second_pitch():
    level = []
    for second in (0.0, 1.3):
        power = np.abs(np.fft.rfft(one_breath(second=second) * np.blackman(RATE))) ** 2
        level.append(power[int(400 * 1.3) - 5 : int(400 * 1.3) + 6].sum() / power[395:406].sum())
    assert level[0] < 1e-3 and level[1] == pytest.approx(0.7**2, rel=0.2)


def test_hyperphonation_is_within_its_range_and_heard():
    heard = []
    for clip in clinical_injury(600, SEED):
        for breath in expirations(clip):
            if breath.pitch_hz >= 1_000 and breath.seconds > 0.3:
                middle = [breath.start + share * breath.seconds for share in (0.3, 0.7)]
                ratio = pitch_hz(clip.render(RATE), middle, 600, 2_000) / breath.pitch_hz
                heard.append(abs(12 * np.log2(ratio)) < abs(breath.arc_semitones) / 2 + 1)
                assert breath.pitch_hz < 1_600
    assert len(heard) > 10 and np.mean(heard) > 0.8


def test_sites_are_heard_and_newborns_differ_less_within_one():
    """By the colour and the level of the noise before the first breath."""
    bands = collections.defaultdict(list)
    for clip in clinical_injury(200, SEED)[::2]:
        x = clip.render(RATE)
        start = round(breaths(clip)[0].start * RATE)
        power = np.abs(np.fft.rfft(x[: min(start, 400)] / x.std(), 512)) ** 2
        found = np.log([band.mean() for band in np.array_split(power[8:248], 12)])
        bands[clinical.newborn(SEED, number(clip)).site].append(found)
    assert len(bands) == clinical.SITES
    between = np.var([np.mean(each, axis=0) for each in bands.values()], axis=0, ddof=1)
    within = np.mean([np.var(each, axis=0, ddof=1) for each in bands.values()], axis=0)
    size = np.mean([len(each) for each in bands.values()])
    assert between.mean() > 5 * within.mean() / size


def test_injury_differs_by_site_a_little():
    newborns = [clinical.newborn(SEED, i) for i in range(8_000)]
    injured = collections.defaultdict(list)
    for newborn in newborns:
        injured[newborn.site].append(newborn.severity > 0)
    shares = [np.mean(injured[site]) for site in range(clinical.SITES)]
    assert min(shares) > 0.07 and max(shares) < 0.13
    assert np.mean(shares[3:]) > np.mean(shares[:2])
    severities = [newborn.severity for newborn in newborns if newborn.severity]
    assert len(severities) == 800 and np.mean(severities) == pytest.approx(1, abs=0.05)
    assert min(severities) >= 0.5
