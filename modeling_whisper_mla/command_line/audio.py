"""Moved; see `whisper_mla.audio`."""

from whisper_mla.audio import SAMPLING_RATE, AudioError, read_audio

__all__ = ["SAMPLING_RATE", "AudioError", "read_audio"]
