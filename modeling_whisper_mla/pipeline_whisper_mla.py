"""The speech recognition pipeline, taught that a Whisper-MLA model is a Whisper."""

from transformers import AutomaticSpeechRecognitionPipeline
from transformers.pipelines import PIPELINE_REGISTRY


class WhisperMLAASRPipeline(AutomaticSpeechRecognitionPipeline):
    """`AutomaticSpeechRecognitionPipeline` that treats model type `whisper_mla` as it treats `whisper`.

    The stock pipeline decides by the literal model type and would otherwise decode with CTC. Other models, stock
    Whisper among them, are left to it.
    """

    def __init__(self, model, *args, **kwargs):
        self._is_whisper_mla = model.config.model_type == "whisper_mla"
        super().__init__(model, *args, **kwargs)

    @property
    def type(self) -> str:
        """Which decoding the stock pipeline runs; set by its `__init__`."""
        return "seq2seq_whisper" if self._is_whisper_mla else self._stock_type

    @type.setter
    def type(self, value: str):
        self._stock_type = value


def register_pipeline() -> None:
    """Make `pipeline("automatic-speech-recognition")` use [`WhisperMLAASRPipeline`]."""
    # Not Transformers' own register_pipeline(), which would mark every saved pipeline as custom code.
    PIPELINE_REGISTRY.supported_tasks["automatic-speech-recognition"]["impl"] = WhisperMLAASRPipeline
