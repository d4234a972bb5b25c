"""What a generation config of Whisper needs, filled in where a checkpoint lacks it.

Checkpoints from before 2023, fine-tuned ones and those saved without `generation_config.json` lack the tokens of
languages, tasks and times, the alignment heads for word times, or the length. Then `generate(language=…)` or timestamps
fail, or a transcript ends after 20 tokens.
"""

import copy
import os
from typing import Any

from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    WhisperConfig,
    WhisperForConditionalGeneration,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES
from transformers.utils import logging

from .processor import processor_of

logger = logging.get_logger(__name__)

# Of the published sizes, by (decoder layers, heads, d_model, vocabulary): https://github.com/openai/whisper,
# whisper/__init__.py. The first and second large checkpoint have the same dimensions and different heads.
_ALIGNMENT_HEADS: dict[tuple[int, int, int, int], str] = {
    (4, 6, 384, 51864): "1.0 2.0 2.5 3.0 3.1 3.2 3.3 3.4",
    (4, 6, 384, 51865): "2.2 3.0 3.2 3.3 3.4 3.5",
    (6, 8, 512, 51864): "3.3 4.7 5.1 5.5 5.7",
    (6, 8, 512, 51865): "3.1 4.2 4.3 4.7 5.1 5.2 5.4 5.6",
    (12, 12, 768, 51864): "6.6 7.0 7.3 7.8 8.2 8.5 8.7 9.0 9.4 9.8 9.10 10.0 10.1 10.2 10.3 10.6 10.11 11.2 11.4",
    (12, 12, 768, 51865): "5.3 5.9 8.0 8.4 8.7 8.8 9.0 9.7 9.9 10.5",
    (24, 16, 1024, 51864): (
        "11.4 14.1 14.12 14.14 15.4 16.0 16.4 16.9 17.12 17.14 18.7 18.10 18.15 20.0 20.3 20.9 20.14 21.12"
    ),
    (24, 16, 1024, 51865): "13.15 15.4 15.15 16.1 20.0 23.4",
    (32, 20, 1280, 51866): "7.0 10.17 12.18 13.12 16.1 17.14 19.11 21.4 24.1 25.6",
    (4, 20, 1280, 51866): "2.4 2.11 3.3 3.6 3.11 3.14",
}


def alignment_heads(config: WhisperConfig) -> list[list[int]] | None:
    """`[layer, head]` of the heads that follow the audio, for a checkpoint of a published size; else None."""
    size = (config.decoder_layers, config.decoder_attention_heads, config.d_model, config.vocab_size)
    heads = _ALIGNMENT_HEADS.get(size)
    return [[int(number) for number in head.split(".")] for head in heads.split()] if heads else None


def fill_generation_fields(
    given: GenerationConfig, config: WhisperConfig, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[GenerationConfig, list[str]]:
    """A generation config with what is missing.

    Args:
        given: of the checkpoint; not modified. Nothing that it has is changed.
        config: of the model: its dimensions tell the length and the published size.
        tokenizer: tells the tokens; None: those stay missing, and so does the length.

    Returns:
        tuple: the config, and the names of the fields that were filled in, in order.
    """
    known: dict[str, Any] = {"alignment_heads": alignment_heads(config)}
    if tokenizer is not None:
        known |= _token_fields(tokenizer)
        if given.max_length is None and given.max_new_tokens is None:
            known["max_length"] = config.max_target_positions
    filled = copy.deepcopy(given)
    names = [name for name, value in known.items() if value is not None and getattr(given, name, None) is None]
    for name in names:
        setattr(filled, name, known[name])
    return filled, sorted(names)


def complete_generation_config(
    source: str | os.PathLike | PreTrainedModel,
    stock: WhisperForConditionalGeneration,
    processor: ProcessorMixin | None,
    arguments: dict[str, Any],
) -> GenerationConfig:
    """The generation config of a source with what it lacks; a warning says what was filled in.

    Args:
        source: a folder, a Hub id, or a model; its processor is loaded only if something is missing.
        stock: the model of the source.
        processor: of the source, where it is at hand.
        arguments: those of `from_pretrained`.
    """
    given = stock.generation_config
    if processor is None and lacks_fields(given):
        processor = processor_of(source, arguments)
    filled, names = fill_generation_fields(given, stock.config, getattr(processor, "tokenizer", None))
    if names:
        logger.warning(f"The generation config lacked {', '.join(names)}: filled in from tokenizer and dimensions.")
    return filled


def lacks_fields(given: GenerationConfig) -> bool:
    """Whether a tokenizer could tell something that a generation config lacks."""
    names = ["no_timestamps_token_id", "prev_sot_token_id", "is_multilingual"]
    if getattr(given, "is_multilingual", True):
        names += ["lang_to_id", "task_to_id"]
    return any(getattr(given, name, None) is None for name in names)


def _token_fields(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    known = tokenizer.get_vocab()
    languages = {token: known[token] for code in LANGUAGES if (token := f"<|{code}|>") in known}
    tasks = {name: known[f"<|{name}|>"] for name in ("transcribe", "translate") if f"<|{name}|>" in known}
    # English-only tokenizers list the languages too, one place before those of multilingual ones.
    start = known.get("<|startoftranscript|>")
    has_languages = len(languages) > 1 and start is not None and tokenizer.eos_token_id != 50256
    fields: dict[str, Any] = {
        "no_timestamps_token_id": known.get("<|notimestamps|>"),
        "prev_sot_token_id": known.get("<|startofprev|>"),
    }
    if start is not None:
        fields["is_multilingual"] = has_languages
    if has_languages:
        fields |= {"lang_to_id": languages, "task_to_id": tasks}
    return fields
