"""Voice activity detection with the package of the extra, on bundled speech between silences."""

import sys

import numpy as np
import pytest
import torch

from whisper_mla.transcription.transcriber import Transcriber
from whisper_mla.transcription.voice_activity import VoiceActivityDetector


@pytest.fixture(scope="module")
def detector():
    return VoiceActivityDetector()


def test_silence_is_skipped_and_times_are_those_of_the_file(exact, processor, clips, detector):
    threads = torch.get_num_threads()
    clip, silence = clips["clip00"], np.zeros(64_000, dtype=np.float32)
    audio = np.concatenate([silence, clip["samples"], silence, clip["samples"], silence])
    stretches = detector(audio)
    assert len(stretches) == 2 and torch.get_num_threads() == threads
    (transcript,) = Transcriber(exact, processor, timestamps="segment")([audio], stretches=[stretches])
    assert transcript.text == f"{clip['text']} {clip['text']}"
    seconds, second = len(audio) / 16_000, 8 + len(clip["samples"]) / 16_000
    assert 10 < transcript.skipped_seconds < 12 and seconds == 12 + 2 * (second - 8)
    assert 3.5 < transcript.segments[0].start <= 4.5
    assert second - 0.5 < transcript.segments[-1].start < second + 0.5
    assert transcript.segments[-1].end <= seconds


def test_without_speech_there_is_no_text(exact, processor, detector):
    noise = 0.01 * np.random.default_rng(0).standard_normal(80_000).astype(np.float32)
    assert detector(noise) == []
    (transcript,) = Transcriber(exact, processor)([noise], stretches=[[]])
    assert (transcript.text, transcript.skipped_seconds) == ("", 5.0)


def test_without_the_extra_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    with pytest.raises(ValueError, match=r'pip install "whisper-mla\[vad\]"'):
        VoiceActivityDetector()


def test_a_threshold_is_a_probability():
    with pytest.raises(ValueError, match="threshold=1"):
        VoiceActivityDetector(1)
