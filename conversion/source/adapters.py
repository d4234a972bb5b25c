"""Refuse adapters as a source: their weights are not those of the model until they are merged."""

import json
import os
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from whisper_mla.conversion.errors import ConversionError

ADAPTER_FILE = "adapter_config.json"


def refuse_adapters(source: Any) -> None:
    """Refuse a PEFT model, a model with an adapter, and the folder of an adapter.

    Args:
        source: whatever was given to be converted.

    Raises:
        ConversionError: it is or holds an adapter, or it is neither a model nor a name; says what to do.
    """
    if isinstance(source, (str, os.PathLike)):
        _refuse_folder(Path(source))
    elif hasattr(source, "merge_and_unload"):
        raise ConversionError(
            f"{type(source).__name__}: merge the adapter first (model.merge_and_unload()), and convert what that "
            "returns."
        )
    elif getattr(source, "_hf_peft_config_loaded", False):
        raise ConversionError(
            f"{type(source).__name__}: has an adapter (add_adapter, load_adapter). Merge the adapter first "
            "(peft.PeftModel.from_pretrained(base, adapter).merge_and_unload()), or take it off "
            "(model.delete_adapter(…))."
        )
    elif not isinstance(source, PreTrainedModel):
        kind = "a module, but no WhisperForConditionalGeneration" if isinstance(source, nn.Module) else "no source"
        raise ConversionError(
            f"{type(source).__name__}: {kind}. Give a folder, a Hub id or a WhisperForConditionalGeneration."
        )


def _refuse_folder(folder: Path) -> None:
    if not (folder / ADAPTER_FILE).is_file() or (folder / "config.json").is_file():
        return
    try:
        base = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    raise ConversionError(
        f"{folder}: is an adapter of {base or 'some model'}, not a model. Merge the adapter first: "
        f"PeftModel.from_pretrained(WhisperForConditionalGeneration.from_pretrained({base or '…'!r}), "
        f"{str(folder)!r}).merge_and_unload().save_pretrained(…), and convert that."
    )
