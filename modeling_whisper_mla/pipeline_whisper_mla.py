"""The speech recognition pipeline, taught that a Whisper-MLA model is a Whisper."""

from transformers import AutomaticSpeechRecognitionPipeline

from .configuration.configuration_whisper_mla import WhisperMLAConfig


class WhisperMLAASRPipeline(AutomaticSpeechRecognitionPipeline):
    """`AutomaticSpeechRecognitionPipeline` that treats model type `whisper_mla` as it treats `whisper`.

    The stock pipeline decides by the literal model type and would otherwise decode with CTC. Other models, stock
    Whisper among them, are left to it.
    """

    def __init__(self, model, *args, **kwargs):
        self._is_whisper_mla = model.config.model_type == WhisperMLAConfig.model_type
        super().__init__(model, *args, **kwargs)

    @property
    def type(self) -> str:
        """Which decoding the stock pipeline runs; set by its `__init__`."""
        return "seq2seq_whisper" if self._is_whisper_mla else self._stock_type

    @type.setter
    def type(self, value: str):
        self._stock_type = value
