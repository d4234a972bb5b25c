"""Transcribe arrays of audio with a Whisper or Whisper-MLA model."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from .audio import SAMPLING_RATE
from .decoding import WindowDecoder
from .fallback import FallbackOptions
from .languages import check_language, default_language
from .recording import Prompt, Recording
from .timestamp_tokens import COUNT, timestamp_tokens
from .transcript import Transcript


class Transcriber:
    """A model and its processor, ready to transcribe batches of files of any length.

    Audio that fits the model's window (30 s) is decoded at once, longer audio window by window, each beginning where
    the model marked the end of the last whole segment (sequential long form). What comes out of a file does not depend
    on the files beside it, but for the rounding of batched arithmetic.

    Args:
        model: a stock Whisper or a Whisper-MLA model in evaluation mode.
        processor: its `WhisperProcessor`.
        language: a language name or code; None: the model's default, or detected from the audio.
        task: "transcribe" or "translate"; None: the model's default.
        timestamps: "none", "segment" or "word".
        num_beams: 1 for greedy decoding.
        fallback: temperatures and thresholds; None: OpenAI's. `fallback.NO_FALLBACK` decodes once.

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
        fallback: FallbackOptions | None = None,
    ):
        if timestamps not in ("none", "segment", "word"):
            raise ValueError(f"timestamps={timestamps!r}: expected 'none', 'segment' or 'word'.")
        generation = model.generation_config
        if timestamps == "word" and not getattr(generation, "alignment_heads", None):
            raise ValueError("timestamps='word': the model's generation config has no alignment_heads. Use 'segment'.")
        self.times = timestamp_tokens(generation)
        if timestamps != "none" and self.times is None:
            raise ValueError(
                f"timestamps={timestamps!r}: the model's generation config has no no_timestamps_token_id, which says "
                "what tokens are times. Use 'none', or convert the original checkpoint with `whisper-mla convert`, "
                "which fills it in."
            )
        self.model, self.processor, self.timestamps = model, processor, timestamps
        self.language = check_language(generation, language, task) or default_language(generation)
        options = fallback or FallbackOptions()
        self.prompt = self._prompt() if options.condition_on_prev_tokens else None
        tokenizer = processor.tokenizer
        special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.not_words = {*tokenizer.all_special_ids, *special}
        if self.times is not None:
            self.not_words |= set(range(self.times.first, self.times.first + COUNT))
        self.decoder = WindowDecoder(model, tokenizer, options, task, num_beams, timestamps == "word")

    def __call__(
        self,
        audios: list[np.ndarray],
        progress: Callable[[Tensor], None] | None = None,
        stretches: list[list[tuple[int, int]]] | None = None,
    ) -> list[Transcript]:
        """Transcribe a batch.

        Args:
            audios: float32 arrays `[samples]` at 16 kHz, of any length.
            progress: called with a tensor `[audios, 2]` of frames done and in all before each batch of windows.
            stretches: for each audio the samples `(first, last)` to transcribe, the rest being skipped; None: all.

        Returns:
            list[Transcript]: in the order of `audios`.
        """
        parts = stretches or [[(0, len(audio))] for audio in audios]
        recordings = [self._recording(audio, part) for audio, part in zip(audios, parts, strict=True)]
        while waiting := [recording for recording in recordings if not recording.is_done]:
            if progress:
                progress(torch.tensor([recording.frames for recording in recordings]))
            windows = [recording.next_window() for recording in waiting]
            for recording, window, decoding in zip(waiting, windows, self.decoder(windows), strict=True):
                recording.take(window, decoding, self.processor.tokenizer, self.not_words)
        return [recording.transcript() for recording in recordings]

    def _recording(self, audio: np.ndarray, parts: list[tuple[int, int]]) -> Recording:
        extractor = self.processor.feature_extractor
        stretches = []
        for first, last in parts:
            is_long = last - first > extractor.n_samples
            # One by one: beside a longer one the end of a file would be computed from padding.
            features = extractor(
                audio[first:last],
                sampling_rate=SAMPLING_RATE,
                return_tensors="pt",
                return_attention_mask=True,
                **({"truncation": False, "padding": "longest"} if is_long else {}),
            )
            frames = int(features.attention_mask.sum())
            stretches.append((features.input_features[0], frames, first / SAMPLING_RATE))
        skipped = (len(audio) - sum(last - first for first, last in parts)) / SAMPLING_RATE
        return Recording(
            stretches,
            window_frames=extractor.nb_max_frames,
            language=self.language,
            with_timestamps=self.timestamps != "none",
            times=self.times,
            prompt=self.prompt,
            skipped_seconds=skipped,
        )

    def _prompt(self) -> Prompt:
        start = getattr(self.model.generation_config, "prev_sot_token_id", None)
        if start is None:
            raise ValueError(
                "condition_on_prev_tokens: the model's generation config has no prev_sot_token_id, the token before a "
                "prompt. Turn it off, or convert the original checkpoint with `whisper-mla convert`, which fills it in."
            )
        return Prompt(start, self.model.config.max_target_positions // 2 - 1)
