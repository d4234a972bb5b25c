"""Clips made into examples: features, and the transcript as decoder input."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils.logging import tqdm

from whisper_mla.conversion.errors import ConversionError
from whisper_mla.transcription.audio import SAMPLING_RATE
from whisper_mla.transcription.length import length_arguments

from .clips import Clip
from .examples import Example


def make_examples(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    clips: Sequence[Clip],
    *,
    language: str | None = None,
    task: str | None = None,
    batch_size: int = 8,
) -> list[Example]:
    """Features and decoder inputs of clips. Audio longer than the model's window is cut into windows.

    Args:
        model: the stock model, which transcribes (greedily) what has no transcript.
        processor: its processor.
        clips: of `read_clips`.
        language: of the audio; None: the model's default, or detected. Clips with a transcript need a language where
            the model has no default; None is English.
        task: "transcribe" or "translate"; None: the model's default.
        batch_size: clips at once.

    Raises:
        ConversionError: a language or task for an English-only model.
        ValueError: a language or task that Transformers does not know.
    """
    is_multilingual = getattr(model.generation_config, "is_multilingual", False)
    if not is_multilingual and (language or task):
        raise ConversionError(f"language={language!r}, task={task!r}: this model knows English transcription only.")
    window = processor.feature_extractor.n_samples
    pieces = []
    for clip in clips:
        whole = len(clip.samples) <= window
        for start in range(0, len(clip.samples), window):
            piece = clip.samples[start : start + window]
            if start == 0 or len(piece) >= SAMPLING_RATE:  # the last moment of a cut would be transcribed as nonsense
                pieces.append((piece, clip.text if whole else None))
    tokenizer = copy.deepcopy(processor.tokenizer)  # its language is about to be set
    special = set(tokenizer.all_special_ids)
    if is_multilingual and any(text is not None for _, text in pieces):
        generation = model.generation_config
        tokenizer.set_prefix_tokens(
            language=language or getattr(generation, "language", None) or "en",
            task=task or getattr(generation, "task", None) or "transcribe",
            predict_timestamps=False,
        )
    arguments = {name: value for name, value in {"language": language, "task": task}.items() if value is not None}
    examples = []
    description = "Transcribing calibration audio" if any(text is None for _, text in pieces) else "Extracting features"
    for start in tqdm(range(0, len(pieces), batch_size), desc=description, unit="batch"):
        chosen = pieces[start : start + batch_size]
        features = processor.feature_extractor(
            [samples for samples, _ in chosen], sampling_rate=SAMPLING_RATE, return_tensors="pt"
        ).input_features
        generated: Any = [None] * len(chosen)
        if any(text is None for _, text in chosen):
            with torch.inference_mode():
                generated = model.generate(  # type: ignore[operator]
                    features.to(model.device, model.dtype),
                    force_unique_generate_call=True,
                    num_beams=1,
                    **arguments,
                    **length_arguments(model),
                )
                generated = getattr(generated, "sequences", generated).cpu()
        for row, (_, text), tokens in zip(features, chosen, generated, strict=True):
            ids = tokens.tolist() if text is None else tokenizer(text).input_ids
            while len(ids) > 1 and ids[-1] in (tokenizer.eos_token_id, tokenizer.pad_token_id):
                ids.pop()
            prompt = next((i for i, token in enumerate(ids) if token not in special), len(ids))
            examples.append(Example(row, torch.tensor(ids[: model.config.max_target_positions]), max(prompt, 1)))
    return examples
