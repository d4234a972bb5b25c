"""Clips made into examples: features, and the transcript as decoder input."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.logging import tqdm

from whisper_mla.conversion.errors import ConversionError
from whisper_mla.transcription.audio import SAMPLING_RATE
from whisper_mla.transcription.length import length_arguments

from .clips import Clip
from .examples import BATCH_SIZE, Example, like_lengths

# Bytes of encoder output that may be kept.
_KEPT = 2 * 10**9


def windows_of(clips: Sequence[Clip], window: int) -> list[tuple[np.ndarray, str | None]]:
    """Clips cut into windows of so many samples at most, each with the transcript that is known of it."""
    pieces = []
    for clip in clips:
        whole = len(clip.samples) <= window
        for start in range(0, len(clip.samples), window):
            piece = clip.samples[start : start + window]
            if start == 0 or len(piece) >= SAMPLING_RATE:  # the last moment of a cut would be transcribed as nonsense
                pieces.append((piece, clip.text if whole else None))
    return pieces


def make_examples(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    clips: Sequence[Clip],
    *,
    language: str | None = None,
    task: str | None = None,
    batch_size: int = BATCH_SIZE,
    encode: bool = False,
    transcripts: dict[int, list[int]] | None = None,
    after_batch: Callable[[list[Example], bool, int], None] | None = None,
) -> list[Example]:
    """Features and decoder inputs of clips. Audio longer than the model's window is cut into windows.

    Args:
        model: the stock model, which transcribes (greedily) what has no transcript.
        processor: its processor.
        clips: of `read_clips`.
        language: of the audio; None: the model's default, or detected. Clips with a transcript need a language where
            the model has no default; None is English.
        task: "transcribe" or "translate"; None: the model's default.
        batch_size: clips at once, of like lengths.
        encode: keep what the encoder makes of all audio, not only of what it transcribes anyway.
        transcripts: tokens by number of the window, of what was transcribed before; what is transcribed is added.
        after_batch: called with the examples of a batch, whether the model transcribed them now if there is anything
            to transcribe from here on, and how many windows are left.

    Returns:
        list[Example]: in the order of the clips. Encoder outputs are kept if all together are below 2 GB.

    Raises:
        ConversionError: a language or task for an English-only model.
        ValueError: a language or task that Transformers does not know.
    """
    is_multilingual = getattr(model.generation_config, "is_multilingual", False)
    if not is_multilingual and (language or task):
        raise ConversionError(f"language={language!r}, task={task!r}: this model knows English transcription only.")
    pieces = windows_of(clips, processor.feature_extractor.n_samples)
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
    known = {} if transcripts is None else transcripts
    unknown = [text is None and index not in known for index, (_, text) in enumerate(pieces)]
    keeps = 4 * len(pieces) * model.config.max_source_positions * model.config.d_model <= _KEPT
    order = like_lengths([len(samples) for samples, _ in pieces], batch_size)
    examples: dict[int, Example] = {}
    description = (
        f"{'Transcribing' if any(unknown) else 'Encoding' if encode and keeps else 'Reading'} calibration audio"
    )
    for start in tqdm(range(0, len(pieces), batch_size), desc=description, unit="batch"):
        chosen = order[start : start + batch_size]
        features = processor.feature_extractor(
            [pieces[index][0] for index in chosen], sampling_rate=SAMPLING_RATE, return_tensors="pt"
        ).input_features
        states: Any = [None] * len(chosen)
        transcribed = any(unknown[index] for index in chosen)
        if transcribed or (encode and keeps):
            with torch.no_grad():
                encoded = model.get_encoder()(features.to(model.device, model.dtype)).last_hidden_state
            states = encoded.cpu() if keeps else states
        if transcribed:
            with torch.inference_mode():
                generated = model.generate(  # type: ignore[operator]
                    encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
                    force_unique_generate_call=True,
                    num_beams=1,
                    **arguments,
                    **length_arguments(model),
                )
            generated = getattr(generated, "sequences", generated).tolist()
            known.update({index: ids for index, ids in zip(chosen, generated, strict=True) if unknown[index]})
        for index, row, of_audio in zip(chosen, features, states, strict=True):
            text = pieces[index][1]
            ids = list(known[index]) if text is None else tokenizer(text).input_ids
            while len(ids) > 1 and ids[-1] in (tokenizer.eos_token_id, tokenizer.pad_token_id):
                ids.pop()
            prompt = next((i for i, token in enumerate(ids) if token not in special), len(ids))
            tokens = torch.tensor(ids[: model.config.max_target_positions])
            examples[index] = Example(row, tokens, max(prompt, 1), of_audio)
        if after_batch is not None:
            left = order[start + batch_size :]
            is_typical = transcribed or not any(unknown[index] for index in left)
            after_batch([examples[index] for index in chosen], is_typical, len(left))
    return [examples[index] for index in range(len(pieces))]
