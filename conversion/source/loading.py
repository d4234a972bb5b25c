"""Load a stock Whisper and refuse what is not one, before any work starts."""

import os
import pickle
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel, WhisperConfig, WhisperForConditionalGeneration

from whisper_mla.configuration.configuration_whisper_mla import WhisperMLAConfig
from whisper_mla.conversion.errors import ConversionError

from .adapters import refuse_adapters
from .checkpoint_checks import check_fields, check_folder
from .checksums import verify_checksums

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
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
    refuse_adapters(source)
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
    if isinstance(source, PreTrainedModel):
        return cast(WhisperConfig, source.config)
    return check_fields(name, fields, WhisperConfig)


def read_config_fields(source: str | os.PathLike, **hub_arguments) -> dict:
    """The content of a checkpoint's config.json.

    Raises:
        ConversionError: there is no such checkpoint, or no readable config.json.
    """
    path = Path(source)
    if path.is_file():
        raise ConversionError(f"{source}: is a file. Give the folder of a checkpoint (with config.json) or a Hub id.")
    refuse_adapters(path)
    if path.is_dir() and not (path / hub_arguments.get("subfolder", "") / "config.json").is_file():
        raise ConversionError(f"{source}: no config.json in this folder. Give the folder of a checkpoint or a Hub id.")
    if not path.is_dir() and (path.is_absolute() or str(source).startswith(".") or len(path.parts) > 2):
        raise ConversionError(f"{source}: no such folder. Give the folder of a checkpoint or a Hub id.")
    arguments = {name: value for name, value in hub_arguments.items() if name in _HUB_ARGUMENTS}
    folder = local_folder(source, weights=False, **hub_arguments)
    try:
        fields, _ = PreTrainedConfig.get_config_dict(str(folder), **arguments)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ConversionError(f"{source}: config.json cannot be read ({_first_line(error)}).") from error
    if not isinstance(fields, dict):
        raise ConversionError(f"{source}: config.json does not hold a configuration.")
    rounding = fields.get("quantization_config")
    if not isinstance(rounding, dict | None):
        raise ConversionError(
            f"{source}: config.json has quantization_config={rounding!r}: expected a mapping, or no such field."
        )
    return fields


def local_folder(source: str | os.PathLike, weights: bool = True, **hub_arguments) -> str | os.PathLike:
    """The folder that holds a checkpoint: the source itself, or where its files from the Hub are in the cache.

    Args:
        source: a folder or a Hub id.
        weights: False for config.json alone.
        hub_arguments: those of `from_pretrained`; others are ignored. With `subfolder`, `variant` or `proxies` the
            source is returned as it is, and `from_pretrained` fetches what it needs.

    Raises:
        ConversionError: see [`whisper_mla.hub.pull.pull_folder`].
    """
    from whisper_mla.hub.pull import CHECKPOINT_FILES, CONFIG_FILES, pull_folder

    if Path(source).is_dir() or any(hub_arguments.get(name) for name in ("subfolder", "variant", "proxies")):
        return source
    names = ("revision", "cache_dir", "token", "local_files_only", "force_download")
    hub = {name: hub_arguments[name] for name in names if hub_arguments.get(name) is not None}
    return pull_folder(str(source), files=CHECKPOINT_FILES if weights else CONFIG_FILES, **hub)


def load_whisper(source: str | os.PathLike | PreTrainedModel, **kwargs) -> WhisperForConditionalGeneration:
    """A stock Whisper with complete, finite weights.

    Args:
        source: a Hub id, a folder (single or sharded weights), or a model in memory.
        kwargs: for `from_pretrained`; `dtype` defaults to that of the checkpoint.

    Returns:
        WhisperForConditionalGeneration: the very object if `source` is a model.

    Raises:
        ConversionError: not a Whisper, already converted, no weights, weights missing, damaged, not finite,
            quantised, or spread over several devices.
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
    if getattr(model, "hf_quantizer", None) is not None or getattr(model.config, "quantization_config", None):
        raise ConversionError(
            f"{_describe(source)}: the weights are quantised. Convert the original checkpoint, and quantise the result."
        )
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) > 1 or "meta" in devices:
        raise ConversionError(
            f"{_describe(source)}: the weights are spread over {', '.join(devices)}. Convert on one device (without a "
            "device_map that splits or offloads), and spread the converted checkpoint when loading it."
        )
    if model is source:
        _check_finite(source, model)
    return cast(WhisperForConditionalGeneration, model)


def load_checkpoint(model_class, source: str | os.PathLike, **kwargs) -> PreTrainedModel:
    """`model_class.from_pretrained`, which would fill what is missing with random weights, made strict.

    Args:
        model_class: a model class or an Auto class.
        source: a Hub id or a folder.
        kwargs: for `from_pretrained`.

    Raises:
        ConversionError: whatever makes the checkpoint unfit: a configuration that is not valid or not that of the
            weights; no weights; tensors that are missing, damaged, of a wrong shape, not finite, or that have no place
            in the model; a checksum that is not the recorded one.
    """
    if not kwargs.get("weights_only", True):
        raise ConversionError("weights_only=False: would run what a pickle says. Convert it to safetensors first.")
    _check_before_loading(source, **kwargs)
    folder = local_folder(source, **kwargs)
    try:
        # What does not fit is reported to us rather than raised, so that the error can name the tensor.
        reporting = {"ignore_mismatched_sizes": True, "output_loading_info": True, "weights_only": True}
        model, info = model_class.from_pretrained(folder, **{**kwargs, **reporting})
    except SafetensorError as error:
        raise ConversionError(
            f"{source}: damaged safetensors file ({error}). Download or copy the checkpoint again."
        ) from error
    except pickle.UnpicklingError as error:
        raise ConversionError(
            f"{source}: the weights are a pickle that is damaged or holds more than tensors; nothing of it was run. "
            "Convert them to safetensors where you trust them."
        ) from error
    except (OSError, RuntimeError) as error:
        raise ConversionError(f"{source}: the weights cannot be read ({_first_line(error)}).") from error
    except Exception as error:  # Transformers has no class of its own for a checkpoint that is wrong
        raise ConversionError(f"{source}: cannot be loaded ({type(error).__name__}: {_first_line(error)}).") from error
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
    # Other names may be those of a further head; these are parts of the model that the configuration leaves out.
    left_over = sorted(name for name in info["unexpected_keys"] if name.startswith("model."))
    if left_over:
        raise ConversionError(
            f"{source}: tensor {left_over[0]} has no place in the model that config.json describes "
            f"({len(left_over)} in all)."
        )
    _check_finite(source, model)
    if folder != source:  # not the place in the cache, but what the user knows it by
        model.name_or_path = model.config._name_or_path = str(source)
        model.config._commit_hash = Path(folder).name
    return model


def _check_before_loading(source: str | os.PathLike, **kwargs) -> None:
    """Refuse a checkpoint that `from_pretrained` would load wrongly, or only after allocating what it describes."""
    fields = read_config_fields(source, **kwargs)
    config_class = {"whisper": WhisperConfig, "whisper_mla": WhisperMLAConfig}.get(str(fields.get("model_type")))
    if config_class is None:
        raise ConversionError(f"{source}: model type {fields.get('model_type')!r} is neither Whisper nor Whisper-MLA.")
    config = check_fields(str(source), fields, config_class)
    folder = Path(local_folder(source, **kwargs)) / (kwargs.get("subfolder") or "")
    if folder.is_dir() and not kwargs.get("variant"):
        verify_checksums(folder)
        check_folder(folder, config)


def _check_finite(source, model: PreTrainedModel) -> None:
    for name, tensor in model.state_dict().items():
        # Offloaded tensors are elsewhere; quantised ones are of other classes.
        if type(tensor) is not torch.Tensor or tensor.device.type == "meta" or tensor.dtype not in _FLOATS:
            continue
        if not torch.isfinite(tensor).all():
            raise ConversionError(f"{_describe(source)}: tensor {name} holds NaN or infinite values.")


def _describe(source) -> str:
    return type(source).__name__ if isinstance(source, PreTrainedModel) else str(source)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
