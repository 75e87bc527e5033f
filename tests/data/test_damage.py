"""Of a damaged file only what was recorded comes, or a reason in one line."""

import io
import pathlib

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cryjax.data import decode as decoding
from cryjax.data.decode import Unusable, to_int16
from recordings import RATE, chirp, decode, encoded, needs_ffmpeg, noise, pcm16, unusable


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.raw", "a.txt", "a"])
@pytest.mark.parametrize("content", [b"\x00" * 4096, b"RIFF", bytes(range(256)) * 16, b"a text\n"])
def test_garbage_cannot_be_decoded(tmp_path, monkeypatch, name, content):
    (tmp_path / name).write_bytes(content)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "cannot decode" in unusable(tmp_path / name)


TRUNCATED = [
    ("WAV", "PCM_16"),
    ("WAV", "PCM_24"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
    ("AIFF", "PCM_16"),
    ("CAF", "ALAC_16"),
]


@pytest.fixture
def poisoned_memory(monkeypatch):
    """Memory that nobody filled is far from any audio here."""
    empty = np.empty

    def poisoned(*args, **kwargs):
        array = empty(*args, **kwargs)
        if array.dtype.kind == "f":
            array.fill(1.0)
        return array

    monkeypatch.setattr(np, "empty", poisoned)


# The second takes a codec so few bytes that its header and its last page are all there is.
@pytest.mark.parametrize("waveform", [noise(3.7), chirp(seconds=2.2)], ids=["noise", "chirp"])
@pytest.mark.parametrize("ffmpeg", [False, pytest.param(True, marks=needs_ffmpeg)])
@pytest.mark.parametrize(("kind", "subtype"), TRUNCATED)
def test_of_a_truncated_file_only_true_audio_comes(
    tmp_path, monkeypatch, poisoned_memory, kind, subtype, ffmpeg, waveform
):
    if not ffmpeg:
        monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(decoding, "_BLOCK_SECONDS", 1)
    content = encoded(waveform, kind, subtype)
    whole, _ = soundfile.read(io.BytesIO(content), dtype="float32")
    path = tmp_path / "a"
    lengths = [0]
    for share in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999):
        path.write_bytes(content[: round(share * len(content))])
        try:
            decoded = decode(path, RATE)
        except Unusable as error:
            assert "\n" not in str(error)
            continue
        lengths.append(len(decoded))
        assert len(decoded) <= len(whole)
        # A codec's frames overlap, so what stands last may lack its other half, as in any player.
        lossless = subtype in ("PCM_16", "PCM_24", "ALAC_16")
        sure = len(decoded) if lossless else max(len(decoded) - 2_880, 0)
        np.testing.assert_allclose(
            decoded[:sure].astype(int), to_int16(whole[:sure]), rtol=0, atol=0 if lossless else 1
        )
        assert np.abs(decoded / 32768).max() <= np.abs(whole).max() + 0.1
    assert lengths == sorted(lengths)
    # libsndfile gives up on a truncated FLAC file, and on an Ogg file of one page.
    if kind not in ("FLAC", "OGG"):
        assert lengths[-1] > 0.7 * len(whole)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_of_a_file_with_a_hole_what_lies_around_it_comes(tmp_path, poisoned_memory, subtype):
    # The last page of an Ogg file says how long it is, so this one claims more than there is.
    content = encoded(noise(10.0), "OGG", subtype)
    whole, _ = soundfile.read(io.BytesIO(content), dtype="float32")
    (tmp_path / "a.ogg").write_bytes(content[: len(content) // 2] + content[-len(content) // 3 :])
    decoded = decode(tmp_path / "a.ogg", RATE)
    assert 0.3 * len(whole) < len(decoded) < 0.95 * len(whole)
    for part in (slice(0, 3 * RATE), slice(-RATE, None)):
        np.testing.assert_allclose(decoded[part].astype(int), to_int16(whole[part]), atol=1)
    assert np.abs(decoded / 32768).max() <= np.abs(whole).max() + 0.1


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_truncated_wav_is_exactly_the_prefix(tmp_path, share):
    audio = pcm16(noise(2.0))
    content = encoded(audio, "WAV", "PCM_16")
    header = len(content) - audio.nbytes
    cut = round(share * len(content))
    (tmp_path / "a.wav").write_bytes(content[:cut])
    np.testing.assert_array_equal(decode(tmp_path / "a.wav", RATE), audio[: (cut - header) // 2])


SMALL = {
    "WAV": encoded(noise(0.2), "WAV", "PCM_16"),
    "WAV float": encoded(noise(0.2, channels=2), "WAV", "FLOAT", 44_100),
    "FLAC": encoded(noise(0.2), "FLAC", "PCM_16"),
    "OGG": encoded(noise(0.2), "OGG", "VORBIS", 22_050),
    "AIFF": encoded(noise(0.2), "AIFF", "PCM_24"),
}


@pytest.mark.parametrize("kind", SMALL)
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damage_is_unusable_or_sound_but_never_a_fault(tmp_path, monkeypatch, kind, data):
    monkeypatch.setenv("PATH", str(tmp_path))  # without ffmpeg
    content = bytearray(SMALL[kind])
    # Most of what can go wrong is in a header.
    place = st.integers(0, 127) | st.integers(0, len(content) - 1)
    for at, value in data.draw(st.lists(st.tuples(place, st.integers(0, 255)), max_size=6)):
        content[at] = value
    if data.draw(st.booleans()):
        del content[data.draw(place) :]
    path = pathlib.Path(tmp_path, "a")
    path.write_bytes(content)
    try:
        decoded = decode(path, RATE)
    except Unusable as error:
        assert "\n" not in str(error)
    else:
        assert decoded.dtype == np.int16 and decoded.ndim == 1 and decoded.any()
