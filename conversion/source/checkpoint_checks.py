"""Does the configuration of a checkpoint make sense, and does it describe its weights? Asked before anything is built.

`from_pretrained` believes config.json: it leaves out layers that the configuration does not mention, allocates whatever
size it names, and replaces a generation_config.json that it cannot read by defaults.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig, WhisperConfig
from transformers.activations import ACT2FN

from whisper_mla.conversion.errors import ConversionError

_SIZES = (
    "vocab_size",
    "d_model",
    "num_mel_bins",
    "encoder_layers",
    "decoder_layers",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "max_source_positions",
    "max_target_positions",
)
_PROBABILITIES = ("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop")
# Where the weights say what a field must be: the tensor and its dimension.
_SHAPES = {
    "vocab_size": ("decoder.embed_tokens.weight", 0),
    "d_model": ("decoder.embed_tokens.weight", 1),
    "max_target_positions": ("decoder.embed_positions.weight", 0),
    "max_source_positions": ("encoder.embed_positions.weight", 0),
    "num_mel_bins": ("encoder.conv1.weight", 1),
    "encoder_ffn_dim": ("encoder.layers.0.fc1.weight", 0),
    "decoder_ffn_dim": ("decoder.layers.0.fc1.weight", 0),
}


def check_fields(source: str, fields: dict[str, Any], config_class: type[WhisperConfig]) -> WhisperConfig:
    """The configuration that `fields` describe.

    Args:
        source: named in errors.
        fields: content of config.json.
        config_class: `WhisperConfig` or `WhisperMLAConfig`.

    Raises:
        ConversionError: a field of the wrong type, out of range, or that does not go with another.
    """
    for field in fields:
        kind = getattr(config_class, field, None)
        if isinstance(kind, property) and kind.fset is None:
            raise ConversionError(f"{source}: config.json has {field}, which is no field but computed from others.")
    try:
        config = config_class.from_dict(dict(fields))
        config.validate()
    except Exception as error:  # whatever a wrong field makes of the constructor
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConversionError(f"{source}: config.json is not valid ({reason}).") from error

    def refuse(field: str, expected: str):
        raise ConversionError(f"{source}: config.json has {field}={getattr(config, field)!r}: expected {expected}.")

    for field in _SIZES:
        value = getattr(config, field)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            refuse(field, "an integer, at least 1")
    for field in _PROBABILITIES:
        if not 0 <= getattr(config, field) <= 1:
            refuse(field, "a probability, from 0 to 1")
    for field in ("encoder_attention_heads", "decoder_attention_heads"):
        if config.d_model % getattr(config, field):
            refuse(field, f"a divisor of d_model ({config.d_model})")
    if config.activation_function not in ACT2FN:
        refuse("activation_function", f"one of {', '.join(sorted(ACT2FN))}")
    if config.pad_token_id is not None and not 0 <= config.pad_token_id < config.vocab_size:
        refuse("pad_token_id", f"from 0 to vocab_size - 1 ({config.vocab_size - 1})")
    if config.dtype is not None and not getattr(config.dtype, "is_floating_point", False):
        refuse("dtype", "a floating-point type")
    return config


def check_folder(folder: Path, config: WhisperConfig) -> None:
    """Raise unless the weights and the generation config in `folder` fit `config`.

    Only headers are read, and only of safetensors files; `from_pretrained` reports what does not fit in others.

    Raises:
        ConversionError: a damaged file, another number of layers or another size than `config` says, or values that
            are not floating-point numbers.
    """
    check_generation_config(folder)
    tensors = read_headers(folder)
    for stack in ("encoder", "decoder"):
        prefix = f"{stack}.layers."
        found = {name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)}
        layers = getattr(config, f"{stack}_layers")
        if tensors and layers != len(found):
            raise ConversionError(f"{folder}: config.json has {stack}_layers={layers}, the weights have {len(found)}.")
    for field, (name, dimension) in _SHAPES.items():
        shape = tensors[name][0] if name in tensors else []
        if len(shape) > dimension and getattr(config, field) != shape[dimension]:
            raise ConversionError(
                f"{folder}: config.json has {field}={getattr(config, field)}, but tensor {name} has shape {shape}."
            )
    if getattr(config, "quantization_config", None) is None:
        for name, (_, dtype) in tensors.items():
            if not dtype.startswith(("F", "BF")):
                raise ConversionError(f"{folder}: tensor {name} holds {dtype} values, not floating-point numbers.")


def check_generation_config(folder: Path) -> None:
    """Raise `ConversionError` if there is a generation_config.json that cannot be read."""
    path = folder / "generation_config.json"
    if not path.exists():
        return
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        GenerationConfig.from_dict(fields)
    except Exception as error:  # whatever a wrong field makes of the constructor
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConversionError(f"{folder}: generation_config.json is not valid ({reason}).") from error


def read_headers(folder: Path) -> dict[str, tuple[list[int], str]]:
    """Shape and type of every tensor of the safetensors files that `from_pretrained` would load.

    Args:
        folder: with `model.safetensors`, or with `model.safetensors.index.json` and shards.

    Returns:
        dict: tensor name, without a leading "model.", to its shape and its type as safetensors names it ("F32").
            Empty where there are no such files.

    Raises:
        ConversionError: a file or the index is damaged, or a shard is missing.
    """
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if not (folder / names[0]).is_file():
        if not index.is_file():
            return {}
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ConversionError(f"{folder}: {index.name} is not valid ({type(error).__name__}: {error}).") from error
    tensors = {}
    for name in names:
        try:
            with safe_open(folder / str(name), framework="pt") as file:
                for tensor in file.keys():  # noqa: SIM118  (not a dict)
                    part = file.get_slice(tensor)
                    tensors[tensor.removeprefix("model.")] = (part.get_shape(), part.get_dtype())
        except SafetensorError as error:
            raise ConversionError(
                f"{folder}: {name} is a damaged safetensors file ({error}). Download or copy the checkpoint again."
            ) from error
        except OSError as error:
            raise ConversionError(f"{folder}: the weights cannot be read ({name}: {error}).") from error
    return tensors
