"""Whisper with multi-head latent attention, for Hugging Face Transformers.

Importing this package registers the model type `whisper_mla` with the Auto classes and the pipeline.
"""

from .configuration import WhisperMLAConfig
from .int8_weights import Int8WeightsConfig, quantize_weights
from .latent_cache import LatentCache
from .modeling_whisper_mla import (
    WhisperMLAForCausalLM,
    WhisperMLAForConditionalGeneration,
    WhisperMLAModel,
    WhisperMLAPreTrainedModel,
)
from .pipeline_whisper_mla import WhisperMLAASRPipeline
from .registration import register
from .version import __version__

register()

__all__ = [
    "Int8WeightsConfig",
    "LatentCache",
    "WhisperMLAASRPipeline",
    "WhisperMLAConfig",
    "WhisperMLAForCausalLM",
    "WhisperMLAForConditionalGeneration",
    "WhisperMLAModel",
    "WhisperMLAPreTrainedModel",
    "__version__",
    "quantize_weights",
    "register",
]
