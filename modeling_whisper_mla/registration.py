"""Make the Auto classes and the speech recognition pipeline know `whisper_mla`."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    AutoTokenizer,
    WhisperFeatureExtractor,
    WhisperProcessor,
    WhisperTokenizer,
)

from .configuration.configuration_whisper_mla import WhisperMLAConfig
from .modeling_whisper_mla import WhisperMLAForCausalLM, WhisperMLAForConditionalGeneration, WhisperMLAModel
from .pipeline_whisper_mla import register_pipeline


def register() -> None:
    """Register configuration, models, processors and pipeline. Calling it again changes nothing."""
    AutoConfig.register(WhisperMLAConfig.model_type, WhisperMLAConfig, exist_ok=True)
    AutoModel.register(WhisperMLAConfig, WhisperMLAModel, exist_ok=True)
    AutoModelForSpeechSeq2Seq.register(WhisperMLAConfig, WhisperMLAForConditionalGeneration, exist_ok=True)
    AutoModelForCausalLM.register(WhisperMLAConfig, WhisperMLAForCausalLM, exist_ok=True)
    AutoFeatureExtractor.register(WhisperMLAConfig, WhisperFeatureExtractor, exist_ok=True)
    AutoTokenizer.register(WhisperMLAConfig, WhisperTokenizer, exist_ok=True)
    AutoProcessor.register(WhisperMLAConfig, WhisperProcessor, exist_ok=True)
    register_pipeline()
