"""Load a stock Whisper and refuse what is not one, before any work starts."""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel, WhisperForConditionalGeneration

from whisper_mla.configuration.configuration_whisper_mla import WhisperMLAConfig

from .errors import ConversionError

_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")


def read_model_type(source: str | os.PathLike, **hub_arguments) -> str:
    """The `model_type` of a checkpoint, from its config.json alone.

    Args:
        source: a folder or a Hub id.
        hub_arguments: those of `from_pretrained`; others are ignored.

    Returns:
        str: "whisper", "whisper_mla", …; empty if the configuration does not say.

    Raises:
        ConversionError: there is no such checkpoint, or no readable config.json.
    """
    if Path(source).is_file():
        raise ConversionError(f"{source}: is a file. Give the folder of a checkpoint (with config.json) or a Hub id.")
    arguments = {name: value for name, value in hub_arguments.items() if name in _HUB_ARGUMENTS}
    try:
        config, _ = PreTrainedConfig.get_config_dict(str(source), **arguments)
    except (OSError, ValueError) as error:
        kind = "a folder with a readable config.json" if Path(source).exists() else "a folder"
        raise ConversionError(
            f"{source}: not {kind}, nor a Hub checkpoint that can be reached ({_first_line(error)})"
        ) from error
    return config.get("model_type", "") if isinstance(config, dict) else ""


def load_whisper(source: str | os.PathLike | PreTrainedModel, **kwargs) -> WhisperForConditionalGeneration:
    """A stock Whisper with complete, finite weights.

    Args:
        source: a Hub id, a folder (single or sharded weights), or a model in memory.
        kwargs: for `from_pretrained`; `dtype` defaults to that of the checkpoint.

    Returns:
        WhisperForConditionalGeneration: the very object if `source` is a model.

    Raises:
        ConversionError: not a Whisper, already converted, no weights, weights missing, damaged or not finite.
    """
    if isinstance(source, PreTrainedModel):
        if kwargs:
            raise ConversionError(f"{sorted(kwargs)}: only for a source that is loaded, not for a model in memory.")
        _require_stock(source.config.model_type, type(source).__name__)
        if not isinstance(source, WhisperForConditionalGeneration):
            raise ConversionError(f"{type(source).__name__}: expected a WhisperForConditionalGeneration.")
        model = source
    else:
        _require_stock(read_model_type(source, **kwargs), source)
        model = _load(source, **kwargs)
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise ConversionError(f"{_describe(source)}: tensor {name} holds NaN or infinite values.")
    return model


def _require_stock(model_type: str, source) -> None:
    if model_type == WhisperMLAConfig.model_type:
        raise ConversionError(
            f"{source}: already a Whisper-MLA model. Convert the stock checkpoint, or export this one first "
            "(whisper-mla export, to_whisper())."
        )
    if model_type != "whisper":
        raise ConversionError(f"{source}: model type {model_type or 'unknown'!r} is not Whisper.")


def _load(source, **kwargs) -> WhisperForConditionalGeneration:
    try:
        model, info = WhisperForConditionalGeneration.from_pretrained(
            source, **{"dtype": "auto", **kwargs}, output_loading_info=True
        )
    except SafetensorError as error:
        raise ConversionError(
            f"{source}: damaged safetensors file ({error}). Download or copy the checkpoint again."
        ) from error
    except (OSError, RuntimeError) as error:
        raise ConversionError(f"{source}: the weights cannot be read ({_first_line(error)})") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ConversionError(
            f"{source}: {len(missing)} tensors are missing from the weights, the first is {missing[0]}. "
            "Download or copy the checkpoint again."
        )
    return model


def _describe(source) -> str:
    return type(source).__name__ if isinstance(source, PreTrainedModel) else str(source)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
