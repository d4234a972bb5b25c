"""What tells one checkpoint from another, without loading its weights."""

import hashlib
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, GenerationConfig, PreTrainedTokenizerBase

from whisper_mla.conversion.errors import ConversionError
from whisper_mla.conversion.source.loading import read_config_fields
from whisper_mla.transcription.languages import check_language


def checkpoint_identity(source: str, revision: str | None = None) -> dict:
    """Name, revision and, for a folder, a digest of its configuration and of size and time of its weight files.

    Raises:
        ConversionError: no such checkpoint.
    """
    fields = read_config_fields(source, **({} if revision is None else {"revision": revision}))
    digest = hashlib.sha256(repr(sorted(fields.items())).encode())
    if Path(source).is_dir():
        for path in sorted([*Path(source).glob("*.safetensors"), *Path(source).glob("*.bin")]):
            state = path.stat()
            digest.update(f"{path.name} {state.st_size} {state.st_mtime_ns}".encode())
    return {"model": source, "revision": revision, "checkpoint": digest.hexdigest()[:16]}


def check_checkpoint(source: str, languages: set[str | None], revision: str | None = None) -> PreTrainedTokenizerBase:
    """Refuse a checkpoint that cannot transcribe `languages`, before any weights are read.

    Args:
        source: a folder or a Hub id.
        languages: Whisper's codes; None: the model's own choice.
        revision: on the Hub.

    Returns:
        PreTrainedTokenizerBase: its tokenizer.

    Raises:
        ConversionError: not a Whisper of either kind, or no processor.
        ValueError: a language that the model does not have; names the model.
    """
    hub: dict[str, Any] = {} if revision is None else {"revision": revision}
    model_type = read_config_fields(source, **hub).get("model_type")
    if model_type not in ("whisper", "whisper_mla"):
        raise ConversionError(f"{source}: model type {model_type!r} is neither Whisper nor Whisper-MLA.")
    try:
        processor = AutoProcessor.from_pretrained(source, **hub)
    except (OSError, ValueError) as error:
        raise ConversionError(f"{source}: no processor (feature extractor and tokenizer).") from error
    try:
        generation = GenerationConfig.from_pretrained(source, **hub)
    except OSError as error:
        raise ConversionError(f"{source}: no generation_config.json, which says what languages it has.") from error
    for language in sorted(languages, key=str):
        try:
            check_language(generation, language)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
    return processor.tokenizer
