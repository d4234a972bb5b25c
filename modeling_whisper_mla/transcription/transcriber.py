"""Transcribe arrays of audio with a Whisper or Whisper-MLA model."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import AutoModelForSpeechSeq2Seq, PreTrainedModel, ProcessorMixin
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE, _combine_tokens_into_words

from whisper_mla.conversion.errors import ConversionError
from whisper_mla.conversion.source.loading import load_checkpoint, read_config_fields
from whisper_mla.conversion.source.processor import load_processor

from .audio import SAMPLING_RATE


@dataclass(frozen=True)
class Span:
    """Text between two times, in seconds from the beginning of the file."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Transcript:
    """What was said in one file.

    Attributes:
        text: the whole transcript.
        language: code of the language that the model was told or detected; None for an English-only model.
        segments: as the model marked them; none if no timestamps were asked for.
        words: with word timestamps only.
    """

    text: str
    language: str | None = None
    segments: list[Span] = field(default_factory=list)
    words: list[Span] = field(default_factory=list)


class Transcriber:
    """A model and its processor, ready to transcribe batches of files of any length.

    Args:
        model: a stock Whisper or a Whisper-MLA model in evaluation mode.
        processor: its `WhisperProcessor`.
        language: a language name or code; None: the model's default, or detected from the audio.
        task: "transcribe" or "translate"; None: the model's default.
        timestamps: "none", "segment" or "word".
        num_beams: 1 for greedy decoding.

    Raises:
        ValueError: a language, task or timestamps that the model does not have.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        language: str | None = None,
        task: str | None = None,
        timestamps: str = "none",
        num_beams: int = 1,
    ):
        if timestamps not in ("none", "segment", "word"):
            raise ValueError(f"timestamps={timestamps!r}: expected 'none', 'segment' or 'word'.")
        self.model, self.processor, self.timestamps = model, processor, timestamps
        self._not_words = {*processor.tokenizer.all_special_ids, *processor.tokenizer.timestamp_ids()}
        generation = model.generation_config
        if timestamps == "word" and not getattr(generation, "alignment_heads", None):
            raise ValueError("timestamps='word': the model's generation config has no alignment_heads. Use 'segment'.")
        self.languages = {number: name.strip("<|>") for name, number in getattr(generation, "lang_to_id", {}).items()}
        self.arguments: dict = {"num_beams": num_beams, "return_segments": True}
        if not getattr(generation, "is_multilingual", True):
            if (language or "en").lower() not in ("en", "english") or task == "translate":
                raise ValueError(f"language={language!r}, task={task!r}: this model only transcribes English.")
            return
        if language is not None:
            code = TO_LANGUAGE_CODE.get(language.lower(), language.lower())
            if code not in self.languages.values():
                codes = ", ".join(sorted(self.languages.values()))
                raise ValueError(f"language={language!r}: the model does not have it. It has: {codes}.")
            self.arguments["language"] = code
        if task is not None:
            self.arguments["task"] = task

    def __call__(
        self, audios: list[np.ndarray], progress: Callable[[torch.Tensor], None] | None = None
    ) -> list[Transcript]:
        """Transcribe a batch.

        Args:
            audios: float32 arrays `[samples]` at 16 kHz, of any length. Those longer than the model's window
                (30 s) are decoded together, window by window, the others together.
            progress: called with a tensor `[audios, 2]` of frames done and in all before each window.

        Returns:
            list[Transcript]: in the order of `audios`.
        """
        extractor = self.processor.feature_extractor
        is_long = len(audios[0]) > extractor.n_samples
        same = [(len(audio) > extractor.n_samples) == is_long for audio in audios]
        if not all(same):
            # Apart, so that what a file's transcript is does not depend on its neighbours.
            groups = [
                [audio for audio, here in zip(audios, same, strict=True) if here is kind] for kind in (True, False)
            ]
            results = {kind: iter(self(group, progress)) for kind, group in zip((True, False), groups, strict=True)}
            return [next(results[here]) for here in same]
        features = extractor(
            audios,
            sampling_rate=SAMPLING_RATE,
            return_tensors="pt",
            return_attention_mask=True,
            **({"truncation": False, "padding": "longest"} if is_long else {}),
        )
        arguments = dict(self.arguments)
        # Whisper finds its way through long audio by the timestamps that it predicts.
        arguments["return_timestamps"] = is_long or self.timestamps != "none"
        if self.timestamps == "word":
            arguments["return_token_timestamps"] = True
        with torch.inference_mode():
            output = self.model.generate(  # type: ignore[operator]
                features.input_features.to(self.model.device, self.model.dtype),
                attention_mask=features.attention_mask.to(self.model.device),
                monitor_progress=progress,
                **arguments,
            )
        return [self._transcript(segments) for segments in output["segments"]]

    def _transcript(self, segments: list[dict]) -> Transcript:
        tokenizer = self.processor.tokenizer
        texts = [tokenizer.decode(segment["tokens"], skip_special_tokens=True) for segment in segments]
        text, language = "".join(texts).strip(), self._language(segments)
        if self.timestamps == "none":
            return Transcript(text, language)
        spans = [
            Span(round(float(segment["start"]), 2), round(float(segment["end"]), 2), part.strip())
            for segment, part in zip(segments, texts, strict=True)
        ]
        words = []
        if self.timestamps == "word":
            words = [word for segment in segments for word in self._words(segment, language)]
        return Transcript(text, language, [span for span in spans if span.text], words)

    def _language(self, segments: list[dict]) -> str | None:
        """The language token among the tokens that the first window was decoded from."""
        if not segments:
            return None
        result = segments[0]["result"]
        tokens = result["sequences"] if isinstance(result, dict) else result
        return next((self.languages[token] for token in tokens.tolist() if token in self.languages), None)

    def _words(self, segment: dict, language: str | None) -> list[Span]:
        """Words of one segment; a word ends where the next token begins."""
        tokenizer = self.processor.tokenizer
        tokens, starts = segment["tokens"].tolist(), segment["token_timestamps"].tolist()
        ends = [*starts[1:], float(segment["end"])]
        spoken = [i for i, token in enumerate(tokens) if token not in self._not_words]
        name = LANGUAGES.get(language or "en")
        words, _, groups = _combine_tokens_into_words(tokenizer, [tokens[i] for i in spoken], name)
        spans = []
        for word, group in zip(words, groups, strict=True):
            start, end = starts[spoken[group[0]]], ends[spoken[group[-1]]]
            if word.strip():
                spans.append(Span(round(start, 2), round(max(start, end), 2), word.strip()))
        return spans


def load_for_transcription(
    source: str, device: str | None = None, dtype: str | None = None, revision: str | None = None
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a stock or converted checkpoint with its processor.

    Args:
        source: a folder or a Hub id.
        device: "cpu", "cuda", "cuda:1", …; None: the first accelerator there is.
        dtype: "float32", "float16", "bfloat16"; None: float32 on the CPU, else that of the checkpoint.
        revision: branch, tag or commit on the Hub.

    Returns:
        tuple: the model in evaluation mode on its device, and the processor.

    Raises:
        ConversionError: not a Whisper of either kind, weights missing or damaged, no processor, no such device.
    """
    hub = {} if revision is None else {"revision": revision}
    model_type = read_config_fields(source, **hub).get("model_type")
    if model_type not in ("whisper", "whisper_mla"):
        raise ConversionError(f"{source}: model type {model_type!r} is neither Whisper nor Whisper-MLA.")
    try:
        where = torch.device(device or default_device())
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        raise ConversionError(f"device={device!r}: not available here ({str(error).splitlines()[0]}).") from error
    kind = dtype or ("float32" if where.type == "cpu" else "auto")
    model = load_checkpoint(AutoModelForSpeechSeq2Seq, source, dtype=kind, **hub)
    processor = load_processor(source, **hub)
    if processor is None:
        raise ConversionError(f"{source}: no processor (feature extractor and tokenizer) in this checkpoint.")
    model.to(where)  # type: ignore[arg-type]
    return model.eval(), processor


def default_device() -> str:
    """The accelerator PyTorch sees, or the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if accelerator is None else accelerator.type
