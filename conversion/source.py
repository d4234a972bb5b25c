"""Load a stock Whisper and refuse what is not one, before any work starts."""

import os
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel, WhisperConfig, WhisperForConditionalGeneration

from whisper_mla.configuration.configuration_whisper_mla import WhisperMLAConfig

from .errors import ConversionError

_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")


def read_config(source: str | os.PathLike | PreTrainedModel, **hub_arguments) -> WhisperConfig:
    """The configuration of a stock Whisper, without its weights.

    Args:
        source: a Hub id, a folder, or a model in memory.
        hub_arguments: those of `from_pretrained`; others are ignored.

    Returns:
        WhisperConfig: the very object of a model in memory.

    Raises:
        ConversionError: there is no such checkpoint, no readable config.json, or it is not of a stock Whisper.
    """
    if isinstance(source, PreTrainedModel):
        name, model_type = type(source).__name__, source.config.model_type
    else:
        fields = read_config_fields(source, **hub_arguments)
        name, model_type = str(source), fields.get("model_type", "unknown")
    if model_type == WhisperMLAConfig.model_type:
        raise ConversionError(
            f"{name}: already a Whisper-MLA model. Convert the stock checkpoint, or export this one first "
            "(whisper-mla export, to_whisper())."
        )
    if model_type != WhisperConfig.model_type:
        raise ConversionError(f"{name}: model type {model_type!r} is not Whisper.")
    return cast(
        WhisperConfig, source.config if isinstance(source, PreTrainedModel) else WhisperConfig.from_dict(fields)
    )


def read_config_fields(source: str | os.PathLike, **hub_arguments) -> dict:
    """The content of a checkpoint's config.json.

    Raises:
        ConversionError: there is no such checkpoint, or no readable config.json.
    """
    path = Path(source)
    if path.is_file():
        raise ConversionError(f"{source}: is a file. Give the folder of a checkpoint (with config.json) or a Hub id.")
    if path.is_dir() and not (path / hub_arguments.get("subfolder", "") / "config.json").is_file():
        raise ConversionError(f"{source}: no config.json in this folder. Give the folder of a checkpoint or a Hub id.")
    if not path.is_dir() and (path.is_absolute() or str(source).startswith(".") or len(path.parts) > 2):
        raise ConversionError(f"{source}: no such folder. Give the folder of a checkpoint or a Hub id.")
    arguments = {name: value for name, value in hub_arguments.items() if name in _HUB_ARGUMENTS}
    try:
        fields, _ = PreTrainedConfig.get_config_dict(str(source), **arguments)
    except (OSError, ValueError) as error:
        kind = "config.json cannot be read" if path.is_dir() else "no such folder, and not to be had from the Hub"
        raise ConversionError(f"{source}: {kind} ({_first_line(error)}).") from error
    if not isinstance(fields, dict):
        raise ConversionError(f"{source}: config.json does not hold a configuration.")
    return fields


def load_whisper(source: str | os.PathLike | PreTrainedModel, **kwargs) -> WhisperForConditionalGeneration:
    """A stock Whisper with complete, finite weights.

    Args:
        source: a Hub id, a folder (single or sharded weights), or a model in memory.
        kwargs: for `from_pretrained`; `dtype` defaults to that of the checkpoint.

    Returns:
        WhisperForConditionalGeneration: the very object if `source` is a model.

    Raises:
        ConversionError: not a Whisper, already converted, no weights, weights missing, damaged or not finite,
            or spread over several devices.
    """
    read_config(source, **kwargs)
    if isinstance(source, PreTrainedModel):
        if kwargs:
            raise ConversionError(f"{sorted(kwargs)}: only for a source that is loaded, not for a model in memory.")
        if not isinstance(source, WhisperForConditionalGeneration):
            raise ConversionError(f"{type(source).__name__}: expected a WhisperForConditionalGeneration.")
        model: PreTrainedModel = source
    else:
        model = load_checkpoint(
            WhisperForConditionalGeneration,
            source,
            **{**({} if "torch_dtype" in kwargs else {"dtype": "auto"}), **kwargs},
        )
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) > 1 or "meta" in devices:
        raise ConversionError(
            f"{_describe(source)}: the weights are spread over {', '.join(devices)}. Convert on one device (without a "
            "device_map that splits or offloads), and spread the converted checkpoint when loading it."
        )
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise ConversionError(f"{_describe(source)}: tensor {name} holds NaN or infinite values.")
    return cast(WhisperForConditionalGeneration, model)


def load_checkpoint(model_class, source: str | os.PathLike, **kwargs) -> PreTrainedModel:
    """`model_class.from_pretrained`, which would fill what is missing with random weights, made strict.

    Args:
        model_class: a model class or an Auto class.
        source: a Hub id or a folder.
        kwargs: for `from_pretrained`.

    Raises:
        ConversionError: no weights, or tensors that are missing, damaged or of a wrong shape.
    """
    try:
        # What does not fit is reported to us rather than raised, so that the error can name the tensor.
        reporting = {"ignore_mismatched_sizes": True, "output_loading_info": True}
        model, info = model_class.from_pretrained(source, **{**kwargs, **reporting})
    except SafetensorError as error:
        raise ConversionError(
            f"{source}: damaged safetensors file ({error}). Download or copy the checkpoint again."
        ) from error
    except (OSError, RuntimeError) as error:
        raise ConversionError(f"{source}: the weights cannot be read ({_first_line(error)}).") from error
    for name, found, expected in sorted(info["mismatched_keys"]):
        raise ConversionError(
            f"{source}: tensor {name} has shape {list(found)} where config.json implies {list(expected)}."
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ConversionError(
            f"{source}: tensor {missing[0]} is missing from the weights ({len(missing)} in all). "
            "Download or copy the checkpoint again."
        )
    return model


def _describe(source) -> str:
    return type(source).__name__ if isinstance(source, PreTrainedModel) else str(source)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
