import re
import shutil
import subprocess

import numpy as np
import pytest
import soundfile

from whisper_mla.transcription import audio as module
from whisper_mla.transcription.audio import AudioError, read_audio, read_channels


def tone(rate, seconds=0.5, frequency=440.0):
    return np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate).astype(np.float32)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_any_rate_becomes_16_khz(tmp_path, rate, suffix):
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, 0.5 * tone(rate), rate)
    audio = read_audio(path)
    assert audio.dtype == np.float32 and audio.ndim == 1
    assert len(audio) == pytest.approx(8_000, abs=2)
    spectrum = np.abs(np.fft.rfft(audio))
    assert np.argmax(spectrum) * 16_000 / len(audio) == pytest.approx(440, abs=3)


def test_channels_are_averaged(tmp_path):
    left, right = tone(16_000), tone(16_000, frequency=880.0)
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, right], axis=1), 16_000, subtype="FLOAT")
    assert np.allclose(read_audio(tmp_path / "stereo.wav"), (left + right) / 2, atol=1e-6)


def test_not_finite(tmp_path):
    samples = tone(16_000)
    samples[7] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, 16_000, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"nan\.wav: holds NaN"):
        read_audio(tmp_path / "nan.wav")


def test_a_folder_is_no_audio(tmp_path):
    with pytest.raises(AudioError, match="is a folder"):
        read_audio(tmp_path)


def test_without_ffmpeg_the_message_says_so(tmp_path, monkeypatch):
    (tmp_path / "x.wav").write_bytes(b"garbage")
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(AudioError, match=r"x\.wav: libsndfile cannot read it .* ffmpeg is not installed"):
        read_audio(tmp_path / "x.wav")


@pytest.mark.parametrize("returncode", [0, 1])
def test_what_libsndfile_cannot_read_goes_to_ffmpeg(tmp_path, monkeypatch, returncode):
    path = tmp_path / "-clip.m4a"
    path.write_bytes(b"some container")
    samples = tone(16_000)
    calls = []

    def ffmpeg(command, **kwargs):
        calls.append(command)
        return subprocess.CompletedProcess(command, returncode, samples.tobytes(), b"first\nInvalid data")

    monkeypatch.setattr(module.shutil, "which", lambda name: "/usr/bin/ffmpeg")
    monkeypatch.setattr(module.subprocess, "run", ffmpeg)
    if returncode:
        with pytest.raises(AudioError, match=r"clip\.m4a: not audio that can be read \(Invalid data\)"):
            read_audio(path)
    else:
        assert np.array_equal(read_audio(path), samples)
    assert f"file:{path}" in calls[0]


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_a_real_m4a(tmp_path):
    soundfile.write(tmp_path / "tone.wav", tone(44_100), 44_100)
    subprocess.run(["ffmpeg", "-v", "error", "-i", tmp_path / "tone.wav", tmp_path / "tone.m4a"], check=True)
    assert len(read_audio(tmp_path / "tone.m4a")) == pytest.approx(8_000, rel=0.15)


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg", "opus"])
def test_truncated_files_are_noticed(tmp_path, suffix, caplog):
    path = tmp_path / f"speech.{suffix}"
    noise = 0.1 * np.random.default_rng(0).standard_normal(16_000 * 12).astype(np.float32)
    kind = {"format": "OGG", "subtype": "OPUS"} if suffix == "opus" else {}
    soundfile.write(path, noise, 16_000, **kind)
    assert read_channels(path, mix=True).warning is None
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with caplog.at_level("WARNING"):
        seconds = len(read_audio(path)) / 16_000
    assert 4 < seconds < 7
    expected = "the stream does not end" if suffix in ("ogg", "opus") else r"of the 12\.0 s that it announces"
    assert re.search(rf"speech\.{suffix}: seems truncated: .*{expected}", caplog.text)
    assert f"{seconds:.1f} s could be read" in caplog.text


def test_channels_are_kept_apart(tmp_path):
    left, right = tone(8_000), tone(8_000, frequency=880.0)
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, right], axis=1), 8_000, subtype="FLOAT")
    channels = read_channels(tmp_path / "stereo.wav", mix=False).channels
    assert channels.shape == (2, 8_000)
    peaks = [np.argmax(np.abs(np.fft.rfft(channel))) * 16_000 / 8_000 for channel in channels]
    assert peaks == [pytest.approx(440, abs=3), pytest.approx(880, abs=3)]


@pytest.mark.parametrize("error", [TypeError("no samplerate"), RuntimeError("x"), KeyError("y"), MemoryError()])
def test_whatever_a_reader_raises_names_the_file(tmp_path, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    (tmp_path / "x.wav").write_bytes(b"anything")
    monkeypatch.setattr(module, "_read_with_libsndfile", fail)
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(AudioError, match=r"x\.wav: "):
        read_audio(tmp_path / "x.wav")


def test_samples_without_a_header(tmp_path):
    (tmp_path / "x.raw").write_bytes(b"0" * 64)
    with pytest.raises(AudioError, match=r"x\.raw: samples without a header"):
        read_audio(tmp_path / "x.raw")
