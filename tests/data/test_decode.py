"""What is decoded is what was recorded, or a reason in one line; nothing else is ever made up."""

import os
import subprocess

import numpy as np
import pytest
import scipy.signal
import soundfile
import soxr

from cryjax.data import decode as decoding
from cryjax.data.decode import Unusable, to_int16
from recordings import RATE, chirp, decode, encoded, needs_ffmpeg, noise, pcm16, sine, unusable


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        (kind, "PCM_16")
        for kind in ("WAV", "FLAC", "AIFF", "AU", "CAF", "W64", "RF64", "WAVEX", "NIST")
    ]
    + [("CAF", "ALAC_16")],
)
def test_int16_at_the_same_rate_passes_bit_for_bit(tmp_path, kind, subtype):
    audio = pcm16(noise(level=0.5))
    audio[:3] = [-32768, 32767, 0]
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(encoded(audio, kind, subtype))
    decoded = decode(path, RATE)
    assert decoded.dtype == np.int16
    np.testing.assert_array_equal(decoded, audio)


@pytest.mark.parametrize(
    ("kind", "subtype", "steps"),  # of int16: half for rounding to it, and one of the format
    [
        ("WAV", "PCM_24", 0.5 + 2**-7),
        ("WAV", "FLOAT", 0.5 + 2**-7),
        ("WAV", "DOUBLE", 0.5 + 2**-7),
        ("FLAC", "PCM_24", 0.5 + 2**-7),
        ("AIFF", "PCM_24", 0.5 + 2**-7),
        ("WAV", "PCM_U8", 256.5),
    ],
)
def test_finer_and_coarser_formats_are_rounded_once(tmp_path, kind, subtype, steps):
    waveform = noise()
    path = tmp_path / "a"
    path.write_bytes(encoded(waveform, kind, subtype))
    assert np.abs(decode(path, RATE) - waveform * 32768).max() <= steps


@pytest.mark.parametrize(
    ("kind", "subtype", "decibels"),
    [
        ("OGG", "VORBIS", 15),
        ("OGG", "OPUS", 15),
        ("MP3", "MPEG_LAYER_III", 15),
        ("WAV", "ULAW", 30),
    ],
)
def test_lossy_formats_are_near_and_in_time(tmp_path, kind, subtype, decibels):
    if subtype not in soundfile.available_subtypes(kind):
        pytest.skip(f"this libsndfile does not write {subtype}")
    waveform = chirp()
    path = tmp_path / "a"
    path.write_bytes(encoded(waveform, kind, subtype))
    decoded = decode(path, RATE) / 32768
    assert abs(len(decoded) - len(waveform)) <= 1200
    length = min(len(decoded), len(waveform))
    error = decoded[:length] - waveform[:length]
    assert 10 * np.log10(np.mean(waveform**2) / np.mean(error**2)) > decibels


def test_a_name_does_not_decide_the_format(tmp_path):
    audio = pcm16(noise())
    path = tmp_path / "really_flac.wav"
    path.write_bytes(encoded(audio, "FLAC", "PCM_16"))
    np.testing.assert_array_equal(decode(path, RATE), audio)


def test_floats_over_full_scale_are_clipped(tmp_path):
    for rate in (RATE, 8_000):
        soundfile.write(tmp_path / "a.wav", sine(100, rate, level=4.0), rate, subtype="FLOAT")
        decoded = decode(tmp_path / "a.wav", RATE)
        assert decoded.min() == -32768 and decoded.max() == 32767
        # Nothing wraps round: where the sine is positive, so is what is left of it.
        inside = np.abs(sine(100, RATE, level=4.0)) > 0.2
        np.testing.assert_array_equal(
            np.sign(decoded[inside]), np.sign(sine(100, RATE)[inside]).astype(np.int16)
        )


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("rate", [RATE, 8_000])
def test_floats_that_hold_integers_are_refused(tmp_path, monkeypatch, rate, subtype):
    monkeypatch.setattr(decoding, "_BLOCK_SECONDS", 1)
    for sign in (-1, 1):
        # Far beyond in one channel, once, of a later block.
        waveform = np.stack([noise(2.0, rate=rate), noise(2.0, rate=rate)], axis=1)
        soundfile.write(tmp_path / "a.wav", waveform, rate, subtype=subtype)
        assert len(decode(tmp_path / "a.wav", RATE)) == 2 * RATE
        waveform[-10, 1] = sign * 9.0
        soundfile.write(tmp_path / "a.wav", waveform, rate, subtype=subtype)
        assert unusable(tmp_path / "a.wav") == (
            "samples far beyond full scale: floats must be between minus one and one"
        )
    soundfile.write(tmp_path / "a.wav", 32767 * sine(100, rate), rate, subtype=subtype)
    assert "far beyond full scale" in unusable(tmp_path / "a.wav")


def test_to_int16_is_undone_exactly():
    every = np.arange(-32768, 32768).astype(np.int16)
    np.testing.assert_array_equal(to_int16(every / np.float32(32768)), every)
    np.testing.assert_array_equal(to_int16(np.array([-2.0, 1.0, 2.0])), [-32768, 32767, 32767])


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_a_sine_keeps_its_length_frequency_and_level(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", sine(1_000, rate), rate, subtype="PCM_24")
    decoded = decode(tmp_path / "a.wav", RATE) / 32768
    assert abs(len(decoded) - RATE) <= 1
    middle = decoded[2_000:14_000]
    expected = sine(1_000, RATE)[2_000:14_000]
    assert np.abs(middle - expected).max() < 3e-5  # in phase too, to an int16 step


@pytest.mark.parametrize("rate", [22_050, 44_100, 48_000, 96_000, 192_000])
def test_what_is_over_the_nyquist_frequency_is_gone(tmp_path, rate):
    hertz = min(9_500, 0.45 * rate)
    soundfile.write(tmp_path / "a.wav", sine(hertz, rate), rate, subtype="FLOAT")
    try:
        # Its start and end are clicks, which do have content below.
        left = decode(tmp_path / "a.wav", RATE)[1_000:-1_000] / 32768
    except Unusable as error:
        assert str(error) == "silent"
        return
    assert 20 * np.log10(np.sqrt(2 * np.mean(left**2)) / 0.5 + 1e-12) < -80


def test_what_is_under_an_old_nyquist_frequency_gets_no_image(tmp_path):
    soundfile.write(tmp_path / "a.wav", sine(3_000, 8_000, 2.0), 8_000, subtype="FLOAT")
    decoded = decode(tmp_path / "a.wav", RATE)[4_000:-4_000]
    spectrum = np.abs(np.fft.rfft(decoded * scipy.signal.windows.blackmanharris(len(decoded))))
    hertz = np.fft.rfftfreq(len(decoded), 1 / RATE)
    assert abs(hertz[spectrum.argmax()] - 3_000) < 1
    assert 20 * np.log10(spectrum[hertz > 3_500].max() / spectrum.max()) < -80


@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_channels_are_averaged(tmp_path, rate):
    audio = pcm16(noise(channels=8, rate=rate, level=0.2))
    soundfile.write(tmp_path / "a.wav", audio, rate)
    expected = audio.mean(axis=1) / 32768
    if rate != RATE:
        expected = soxr.resample(expected, rate, RATE, quality="VHQ")
    decoded = decode(tmp_path / "a.wav", RATE)
    assert len(decoded) == len(expected)
    assert np.abs(decoded - expected * 32768).max() <= 0.51


@pytest.mark.parametrize(("rate", "seconds"), [(44_100, 5.3), (8_000, 5.3), (RATE, 5.3)])
def test_blocks_leave_no_seam(tmp_path, monkeypatch, rate, seconds):
    monkeypatch.setattr(decoding, "_BLOCK_SECONDS", 1)
    waveform = noise(seconds, rate=rate)
    soundfile.write(tmp_path / "a.wav", waveform, rate, subtype="FLOAT")
    expected = waveform if rate == RATE else soxr.resample(waveform, rate, RATE, quality="VHQ")
    decoded = decode(tmp_path / "a.wav", RATE)
    assert len(decoded) == len(expected)
    assert np.abs(decoded - expected * 32768).max() <= 1


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("WAV", "MS_ADPCM")],
)
def test_blocks_leave_no_seam_in_a_codec(tmp_path, monkeypatch, kind, subtype):
    # Where a codec's frames depend on those before, to seek to a block is to lose some.
    path = tmp_path / "a"
    path.write_bytes(encoded(noise(20.3), kind, subtype))
    whole, _ = soundfile.read(path, dtype="float32")
    monkeypatch.setattr(decoding, "_BLOCK_SECONDS", 1)
    np.testing.assert_allclose(decode(path, RATE).astype(int), to_int16(whole), rtol=0, atol=1)


def test_reasons_of_paths(tmp_path):
    assert unusable(tmp_path / "none.wav") == "no such file"
    assert unusable(tmp_path / "cries\\a.wav") == (
        "no such file; write '/' between folders, not '\\'"
    )
    assert unusable(tmp_path) == "not a file"
    os.mkfifo(tmp_path / "pipe.wav")
    assert unusable(tmp_path / "pipe.wav") == "not a file"
    assert unusable(tmp_path / "nul\0.wav") == "no such file"
    assert "too long" in unusable(tmp_path / ("a" * 300))
    (tmp_path / "empty.wav").touch()
    assert unusable(tmp_path / "empty.wav") == "an empty file"


@pytest.mark.parametrize("samples", [0, 1, RATE // 20 - 1])
def test_too_short(tmp_path, samples):
    soundfile.write(tmp_path / "a.wav", noise(1.0)[:samples], RATE)
    assert f"only {samples} samples" in unusable(tmp_path / "a.wav")


def test_just_long_enough(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(1.0)[: RATE // 20], RATE)
    assert len(decode(tmp_path / "a.wav", RATE)) == RATE // 20


def test_silence(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE), RATE)
    assert unusable(tmp_path / "a.wav") == "silent"
    one = np.zeros(RATE)
    one[-1] = 2**-15
    soundfile.write(tmp_path / "a.wav", one, RATE)
    assert np.count_nonzero(decode(tmp_path / "a.wav", RATE)) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_samples_that_are_not_finite(tmp_path, value, rate):
    waveform = noise(channels=2, rate=rate)
    waveform[-10, 1] = value
    soundfile.write(tmp_path / "a.wav", waveform, rate, subtype="FLOAT")
    assert "not finite" in unusable(tmp_path / "a.wav")


def test_rates_out_of_range(tmp_path):
    for rate in (decoding.RATES_HZ[0] - 1, decoding.RATES_HZ[1] + 1):
        soundfile.write(tmp_path / "a.wav", noise(rate=rate), rate)
        assert f"{rate} Hz" in unusable(tmp_path / "a.wav")
    for rate in decoding.RATES_HZ:
        soundfile.write(tmp_path / "a.wav", noise(rate=rate), rate)
        assert abs(len(decode(tmp_path / "a.wav", RATE)) - RATE) <= 1


def test_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "_BLOCK_SECONDS", 1)
    monkeypatch.setattr(decoding, "MAXIMUM_HOURS", 2 / 3600)
    soundfile.write(tmp_path / "a.flac", noise(2.0), RATE)
    assert len(decode(tmp_path / "a.flac", RATE)) == 2 * RATE
    soundfile.write(tmp_path / "a.flac", noise(2.01), RATE)
    assert "longer than" in unusable(tmp_path / "a.flac")


@needs_ffmpeg
def test_ffmpeg_decodes_what_libsndfile_cannot(tmp_path):
    rate = 44_100
    left, right = sine(440, rate, 2.0), sine(3_000, rate, 2.0, level=0.25)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), rate)
    path = tmp_path / "it's $(odd) -i.m4a"
    command = ["ffmpeg", "-v", "error", "-i", tmp_path / "a.wav", "-c:a", "aac", "-b:a", "256k"]
    subprocess.run([*command, path], check=True, capture_output=True)
    with pytest.raises(soundfile.SoundFileError):
        soundfile.info(path)

    decoded = decode(path, RATE) / 32768
    assert abs(len(decoded) / RATE - 2.0) < 0.1
    middle = decoded[RATE // 2 : RATE // 2 + RATE]  # a second, so a bin is a hertz
    spectrum = 2 * np.abs(np.fft.rfft(middle)) / RATE
    assert spectrum[440] == pytest.approx(0.25, rel=0.02)  # of a mean over two channels
    assert spectrum[3_000] == pytest.approx(0.125, rel=0.02)
    spectrum[[440, 3_000]] = 0
    assert spectrum.max() < 0.25 / 100


@needs_ffmpeg
def test_ffmpeg_refuses_garbage_too(tmp_path):
    (tmp_path / "a.m4a").write_bytes(bytes(range(256)) * 16)
    assert "neither libsndfile nor ffmpeg" in unusable(tmp_path / "a.m4a")


@needs_ffmpeg
def test_ffmpeg_gets_no_file_without_sound(tmp_path):
    picture = ["-f", "lavfi", "-i", "color=red:s=16x16:d=0.2", "-c:v", "mpeg4"]
    subprocess.run(
        ["ffmpeg", "-v", "error", *picture, tmp_path / "a.mp4"], check=True, capture_output=True
    )
    assert "neither libsndfile nor ffmpeg" in unusable(tmp_path / "a.mp4")


@needs_ffmpeg
def test_ffmpeg_that_hangs_is_stopped(tmp_path, monkeypatch):
    (tmp_path / "ffmpeg").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(decoding, "FFMPEG_SECONDS", 0.2)
    (tmp_path / "a.m4a").write_bytes(b"x" * 100)
    assert "longer than" in unusable(tmp_path / "a.m4a")


def test_without_ffmpeg_the_reason_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "a.m4a").write_bytes(b"\x00\x00\x00\x20ftypM4A " + bytes(100))
    assert "ffmpeg, if installed, might" in unusable(tmp_path / "a.m4a")
