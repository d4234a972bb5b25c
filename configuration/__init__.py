"""Describe: the configuration of a Whisper-MLA model and the size of its cache."""

from .cache_size import CacheSize, cache_size
from .configuration_whisper_mla import WhisperMLAConfig

__all__ = ["CacheSize", "WhisperMLAConfig", "cache_size"]
