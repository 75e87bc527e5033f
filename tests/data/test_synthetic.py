"""What a clip holds is measured from its samples, and is what the table and the subject say."""

import collections
import functools
import hashlib
import itertools
import pickle
import subprocess
import sys

import librosa
import numpy as np
import pytest

from cryjax.data import synthetic
from cryjax.data.synthetic import cries, signals, sounds
from cryjax.data.synthetic.clips import breaths, of_cries, of_sounds

RATE = 8_000
SEED = 5


@functools.cache
def rendered(corpus, examples=24, rate=RATE):
    clips = synthetic.CORPORA[corpus](examples, SEED)
    return [(clip, clip.render(rate)) for clip in clips]


def energy(waveform, rate, seconds=0.02):
    """[samples] in decibels, over windows centred on each sample."""
    window = round(seconds * rate)
    return 10 * np.log10(np.convolve(waveform**2, np.ones(window) / window, "same") + 1e-12)


def expirations(clip):
    return [breath for breath in breaths(clip) if breath.expiration]


@pytest.mark.parametrize("corpus", synthetic.CORPORA)
def test_any_process_renders_the_same_bits(corpus):
    clips = synthetic.CORPORA[corpus](13, SEED)
    program = (
        "import hashlib, pickle, sys\n"
        "for clip in pickle.load(sys.stdin.buffer):\n"
        "    print(hashlib.sha256(clip.render(8000).tobytes()).hexdigest())\n"
        "print('jax' in sys.modules)"
    )
    # Backwards, so that nothing can depend on the order.
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=pickle.dumps(clips[::-1]),
        capture_output=True,
        check=True,
    )
    *theirs, jax_imported = done.stdout.decode().split()
    mine = [hashlib.sha256(clip.render(8000).tobytes()).hexdigest() for clip in clips]
    assert theirs == mine[::-1]
    assert len(set(mine)) == len(clips)
    assert jax_imported == "False"  # workers start fast
    other = synthetic.CORPORA[corpus](1, SEED + 1)[0].render(8000)
    assert hashlib.sha256(other.tobytes()).hexdigest() not in mine


@pytest.mark.parametrize("rate", [8_000, 16_000])
@pytest.mark.parametrize(
    ("corpus", "shortest"),
    [("sounds", 1), ("cries", 2), ("clinical-injury", 2), ("clinical-unlabelled", 2)],
)
def test_clips_are_sound(corpus, shortest, rate):
    clips = rendered(corpus, 24, rate)
    for _, x in clips:
        assert x.dtype == np.float32 and x.ndim == 1
        assert shortest <= len(x) / rate <= 4
        assert np.isfinite(x).all()
        assert 0.01 < np.abs(x).max() < 1
        assert x.std() > 1e-3  # 30 steps of int16
        assert abs(x.mean()) < 0.1 * x.std()
    peaks = [20 * np.log10(np.abs(x).max()) for _, x in clips]
    assert np.std(peaks) > 2  # some louder than others


@pytest.mark.parametrize("examples", [1, 2, 3, 10, 19, 20, 39, 500])
def test_labels_are_balanced_and_mixed_within_subjects(examples):
    clips = of_cries(examples, SEED)
    assert [clip.index for clip in clips] == list(range(examples))
    labels = collections.Counter(clip.label for clip in clips)
    assert set(labels) <= set(cries.CRIES)
    assert max(labels.values()) - min(labels.values()) <= 1
    subjects = collections.defaultdict(list)
    for clip in clips:
        subjects[clip.subject].append(clip.label)
    for held in subjects.values():
        assert len(held) == examples or 10 <= len(held) < 20
        assert len(set(held)) == min(3, examples)


def test_sounds_are_labelled_by_what_they_hold(monkeypatch):
    held = []
    event = sounds._event
    monkeypatch.setattr(
        sounds, "_event", lambda kind, *rest: held.append(kind) or event(kind, *rest)
    )
    clips = of_sounds(60, SEED)
    counts = collections.Counter()
    for clip in clips:
        held.clear()
        clip.render(RATE)
        assert clip.label == ";".join(sorted(set(held))) and 1 <= len(held) <= 4
        counts[len(held)] += 1
    assert len(counts) == 4
    assert {kind for clip in clips for kind in clip.label.split(";")} == set(sounds.KINDS)
    assert len({clip.subject for clip in clips}) == 60


def test_kinds_of_sounds_sound_different():
    """Of the energy over a clip's spectrum, noise has little in its strongest hundredth."""
    peaked = collections.defaultdict(list)
    for clip in of_sounds(300, SEED):
        if clip.label in ("tone", "noise"):
            power = np.sort(np.abs(np.fft.rfft(clip.render(RATE))) ** 2)
            peaked[clip.label].append(power[-len(power) // 100 :].sum() / power.sum())
    assert min(map(len, peaked.values())) > 10
    assert np.median(peaked["tone"]) > 0.9 and np.median(peaked["noise"]) < 0.5


def test_harmonics_are_a_sum_of_cosines_under_the_limit():
    pitch = np.full(4_000, 333.0)
    x, phase = signals.harmonics(pitch, RATE, 1.2)
    # 333 Hz times 10 lies under the band in which harmonics fade, times 12 over the limit.
    expected = sum(k**-1.2 * np.cos(k * phase) for k in range(1, 11))
    fade = (3_800 - 11 * 333) / (0.05 * 3_800)
    expected += fade * 11**-1.2 * np.cos(11 * phase)
    np.testing.assert_allclose(x, expected, atol=1e-9)


def test_a_rising_pitch_leaves_nothing_between_its_harmonics():
    """Harmonics over the Nyquist frequency would fold back there."""
    pitch = np.geomspace(700, 3_500, 2 * RATE)
    x, _ = signals.harmonics(pitch, RATE, 0.3)
    power = np.abs(librosa.stft(x, n_fft=512, hop_length=128, window="blackmanharris")) ** 2
    frequency = librosa.fft_frequencies(sr=RATE, n_fft=512)[:, None]
    now = pitch[np.minimum(np.arange(power.shape[1]) * 128, len(pitch) - 1)]
    nearest = now * np.maximum(np.round(frequency / now), 1)
    between = abs(frequency - nearest) > 200  # Hz; a frame's rise smears a harmonic by 100 Hz
    inner = slice(4, -4)  # frames inside
    ratio = (power * between)[:, inner].sum(0) / power[:, inner].sum(0)
    assert 10 * np.log10(ratio.max()) < -50


@pytest.mark.parametrize("rate", [8_000, 16_000])
def test_tones_and_chirps_keep_clear_of_the_nyquist_frequency(rate):
    """So do the harmonics of a stack; noise and clicks fill the band by design."""
    for seed in range(40):
        kind = sounds.KINDS[seed % 5]
        x = sounds._event(kind, np.random.default_rng(seed), rate // 2, rate)
        assert np.isfinite(x).all() and np.abs(x).max() == pytest.approx(1)
        if kind in ("tone", "chirp", "stack"):
            power = np.abs(np.fft.rfft(x * np.blackman(len(x)))) ** 2
            assert power[int(0.97 * len(power)) :].sum() < 1e-4 * power.sum()


def pitch_hz(x, breath, rate=RATE):
    """Median fundamental of the middle of a breath, by YIN over two octaves."""
    middle = slice(
        round((breath.start + 0.2 * breath.seconds) * rate),
        round((breath.start + 0.7 * breath.seconds) * rate),
    )
    f0 = librosa.yin(x[middle], fmin=250, fmax=1_000, sr=rate, frame_length=512)
    return np.median(f0)


def test_pitch_is_what_the_clip_says():
    right, octave_right = [], []
    for clip, x in rendered("cries", 60):
        for breath in expirations(clip):
            # The middle of an arc lies to one side of its mean.
            most = abs(breath.arc_semitones) / 2 + 1
            off = 12 * np.log2(pitch_hz(x, breath) / breath.pitch_hz)
            right.append(abs(off) < most)
            octave_right.append(abs((off + 6) % 12 - 6) < most)
    # In a rough stretch, half the fundamental is a right answer too.
    assert np.mean(right) > 0.85 and np.mean(octave_right) > 0.95


def test_pitch_follows_the_label_within_a_subject_and_the_subject_more():
    semitones = collections.defaultdict(lambda: collections.defaultdict(list))
    for clip in of_cries(1_200, SEED):
        for breath in expirations(clip):
            semitones[clip.subject][clip.label].append(12 * np.log2(breath.pitch_hz))
    difference = [np.mean(by["pain"]) - np.mean(by["discomfort"]) for by in semitones.values()]
    table = cries.CRIES["pain"].pitch_semitones - cries.CRIES["discomfort"].pitch_semitones
    error = np.std(difference) / np.sqrt(len(difference))
    assert abs(np.mean(difference) - table) < 3.5 * error and error < 0.2
    between = np.std([np.mean(by["hunger"]) for by in semitones.values()])
    shifts = np.std([cry.pitch_semitones for cry in cries.CRIES.values()])
    assert between > 1.5 * shifts


def test_measured_pitch_is_higher_in_pain():
    measured = collections.defaultdict(list)
    for clip, x in rendered("cries", 300):
        semitones = 12 * np.log2(pitch_hz(x, expirations(clip)[0]))
        measured[clip.subject].append((clip.label, semitones))
    difference = []
    for values in measured.values():
        labels, semitones = map(np.array, zip(*values, strict=True))
        # To the octave nearest to the subject's others: rough stretches measure an octave low.
        semitones -= 12 * np.round((semitones - np.median(semitones)) / 12)
        means = [semitones[labels == label].mean() for label in ("pain", "discomfort")]
        difference.append(means[0] - means[1])
    # The table says 2.5 semitones; thirty subjects leave an error of about 0.25.
    assert 1.5 < np.mean(difference) < 3.5


def test_expirations_are_longer_in_pain_by_the_tables_ratio():
    seconds = collections.defaultdict(list)
    for clip in of_cries(1_500, SEED):
        seconds[clip.label].append(np.log(expirations(clip)[0].seconds))
    for label in ("hunger", "discomfort"):
        ratio = np.mean(seconds["pain"]) - np.mean(seconds[label])
        table = np.log(cries.CRIES["pain"].first_seconds / cries.CRIES[label].first_seconds)
        error = np.sqrt(np.var(seconds["pain"]) + np.var(seconds[label])) / np.sqrt(500)
        assert abs(ratio - table) < 3.5 * error and error < 0.1 * table


def test_breaths_are_heard_where_the_clip_says():
    louder, early = [], []
    for clip, x in rendered("cries", 60):
        level = energy(x, RATE)
        time = np.arange(len(x)) / RATE
        planned = breaths(clip)
        for one, other in itertools.pairwise(planned):
            assert one.start + one.seconds <= other.start
        assert planned[0].start > 0 and planned[-1].start + planned[-1].seconds <= len(x) / RATE
        quiet = np.ones(len(x), bool)
        for breath in planned:
            quiet &= (time < breath.start) | (time > breath.start + breath.seconds + 0.1)
        for breath in expirations(clip):
            middle = abs(time - breath.start - 0.4 * breath.seconds) < 0.1 * breath.seconds
            louder.append(np.median(level[middle]) - np.median(level[quiet]))
        first = planned[0]
        peak = level[(time > first.start) & (time < first.start + first.seconds)].max()
        early.append(time[np.argmax(level > peak - 10)] - first.start)
    assert np.percentile(louder, 5) > 6
    # To within 10 dB of its peak in about half of the onset; never before the breath.
    assert min(early) > -0.02 and np.median(early) < 0.08


def test_subjects_share_their_traits():
    """The place of recording, heard in the pauses, is one a subject."""
    spectra = collections.defaultdict(list)
    for clip, x in rendered("cries", 60):
        start = round(breaths(clip)[0].start * RATE)
        power = np.abs(np.fft.rfft(x[: min(start, 400)], 512)) ** 2
        bands = np.log([band.mean() for band in np.array_split(power[8:248], 12)])
        spectra[clip.subject].append(bands - bands.mean())
    means = np.array([np.mean(each, axis=0) for each in spectra.values()])
    within = np.mean([np.var(each, axis=0, ddof=1) / len(each) for each in spectra.values()])
    assert np.var(means, axis=0, ddof=1).mean() > 3 * within


@pytest.mark.parametrize("corpus", synthetic.CORPORA)
def test_another_seed_is_other_subjects(corpus):
    one, other = ({clip.subject for clip in synthetic.CORPORA[corpus](30, seed)} for seed in (0, 1))
    assert one and other and not one & other
