"""Describe: the configuration of a Whisper-MLA model and the size of its cache."""

from .cache_size import CacheSize, cache_size
from .configuration_whisper_mla import WhisperMLAConfig
from .presets import WHISPER_SIZES, whisper_config

__all__ = ["WHISPER_SIZES", "CacheSize", "WhisperMLAConfig", "cache_size", "whisper_config"]
