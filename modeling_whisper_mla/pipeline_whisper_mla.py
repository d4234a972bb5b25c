"""The speech recognition pipeline, taught that a Whisper-MLA model is a Whisper."""

from transformers import AutoConfig, AutomaticSpeechRecognitionPipeline, AutoModelForSpeechSeq2Seq, AutoTokenizer
from transformers.pipelines import PIPELINE_REGISTRY


class WhisperMLAASRPipeline(AutomaticSpeechRecognitionPipeline):
    """`AutomaticSpeechRecognitionPipeline` that treats model type `whisper_mla` as it treats `whisper`.

    The stock pipeline decides by the literal model type and would otherwise decode with CTC. Other models, stock
    Whisper among them, are left to it. An assistant model may be a Whisper-MLA checkpoint too.
    """

    def __init__(self, model, *args, **kwargs):
        self._is_whisper_mla = model.config.model_type == "whisper_mla"
        assistant = kwargs.get("assistant_model")
        # Stock looks for the classes of an assistant that is given by name inside Transformers only.
        if isinstance(assistant, str) and AutoConfig.from_pretrained(assistant).model_type == "whisper_mla":
            loaded = AutoModelForSpeechSeq2Seq.from_pretrained(assistant).to(device=model.device, dtype=model.dtype)
            kwargs |= {"assistant_model": loaded, "assistant_tokenizer": AutoTokenizer.from_pretrained(assistant)}
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
