"""Load the feature extractor and tokenizer of a checkpoint, or say why there is none."""

import json
import os
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, PreTrainedModel, ProcessorMixin

from whisper_mla.conversion.errors import ConversionError

from .loading import local_folder

_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "vocab.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "normalizer.json",
)


def load_processor(source: str | os.PathLike, **hub_arguments) -> ProcessorMixin | None:
    """The processor of a checkpoint.

    Args:
        source: a folder or a Hub id.
        hub_arguments: those of `from_pretrained`.

    Returns:
        ProcessorMixin, or None where the checkpoint has no whole processor.

    Raises:
        ConversionError: there is one, and it is damaged.
    """
    given, source = source, local_folder(source, **hub_arguments)
    for name in _FILES:
        path = Path(source) / (hub_arguments.get("subfolder") or "") / name
        if not path.exists():
            continue
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConversionError(f"{given}: {name} is not valid ({type(error).__name__}: {error}).") from error
    try:
        return AutoProcessor.from_pretrained(source, **hub_arguments)
    except (OSError, ValueError):
        return None
    except Exception as error:  # the tokenizers library has no class of its own for a file that is wrong
        reason = " ".join(str(error).split())
        raise ConversionError(f"{given}: the processor is damaged ({type(error).__name__}: {reason}).") from error


def save_processor(source: str | os.PathLike, folder: str | os.PathLike, **hub_arguments) -> bool:
    """Copy the feature extractor and tokenizer of a checkpoint into a folder.

    Returns:
        bool: whether the checkpoint has a processor.

    Raises:
        ConversionError: it is damaged.
    """
    processor = load_processor(source, **hub_arguments)
    if processor is None:
        return False
    processor.save_pretrained(folder)
    spelling = getattr(processor.tokenizer, "english_spelling_normalizer", None)
    if spelling:  # Transformers does not save the table of the English normaliser
        text = json.dumps(spelling, ensure_ascii=False, indent=2)
        Path(folder, "normalizer.json").write_text(text + "\n", encoding="utf-8")
    return True


def processor_of(source: str | os.PathLike | PreTrainedModel, arguments: dict[str, Any]) -> ProcessorMixin | None:
    """The processor that belongs to a source; for a model in memory, the one where it was loaded from.

    Args:
        source: a folder, a Hub id, or a model.
        arguments: those of `from_pretrained`; only what says where files are is used.

    Raises:
        ConversionError: it is damaged.
    """
    if not isinstance(source, PreTrainedModel):
        names = ("cache_dir", "local_files_only", "token", "revision", "subfolder")
        return load_processor(source, **{name: arguments[name] for name in names if name in arguments})
    name = source.config._name_or_path
    try:
        return load_processor(name) if name else None
    except ConversionError:
        return None
