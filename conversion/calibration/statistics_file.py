"""Calibration statistics in a safetensors file, for further conversions of the same model."""

import json
import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from whisper_mla.conversion.errors import ConversionError

from .examples import Example
from .kronecker import KroneckerFactors
from .statistics import InputStatistics, Statistics

_FORMAT = "whisper-mla statistics 1"


def save_statistics(statistics: Statistics, path: str | os.PathLike) -> None:
    """Write statistics whole or not at all.

    Args:
        statistics: of `gather_statistics`.
        path: a file whose name ends in ".safetensors"; replaced if it exists.

    Raises:
        ConversionError: it cannot be written.
    """
    path = Path(path)
    tensors = {}
    for name, found in statistics.inputs.items():
        tensors[f"inputs.{name}.mean"] = found.mean
        tensors[f"inputs.{name}.covariance"] = found.covariance
        if found.gradient is not None:
            tensors[f"inputs.{name}.gradient"] = found.gradient
        if found.kronecker is not None:
            tensors[f"inputs.{name}.kronecker.gradient"] = found.kronecker.gradient
            tensors[f"inputs.{name}.kronecker.covariance"] = found.kronecker.covariance
    for name, query in statistics.queries.items():
        tensors[f"queries.{name}"] = query
    for number, example in enumerate(statistics.held_out):
        tensors[f"held_out.{number:04d}.input_features"] = example.input_features
        tensors[f"held_out.{number:04d}.decoder_input_ids"] = example.decoder_input_ids
    facts = {
        "counts": {name: found.count for name, found in statistics.inputs.items()},
        "prompt_lengths": [example.prompt_length for example in statistics.held_out],
        "source": statistics.source,
    }
    metadata = {"format": _FORMAT, "facts": json.dumps(facts)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.partial-", dir=path.parent) as folder:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, f"{folder}/new", metadata)
            os.replace(f"{folder}/new", path)
    except (OSError, SafetensorError) as error:
        raise ConversionError(f"{path}: cannot be written ({error}).") from error


def load_statistics(path: str | os.PathLike) -> Statistics:
    """Read what `save_statistics` wrote.

    Args:
        path: of the file.

    Returns:
        Statistics: with the clips that were held out, without those that it was gathered from.

    Raises:
        ConversionError: no such file, damaged, or not statistics.
    """
    if not Path(path).is_file():
        raise ConversionError(f"{path}: no such statistics file.")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ConversionError(f"{path}: not a statistics file. Write one with: whisper-mla calibrate")
            facts = json.loads(metadata["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        inputs = {
            name: InputStatistics(
                count,
                tensors[f"inputs.{name}.mean"],
                tensors[f"inputs.{name}.covariance"],
                tensors.get(f"inputs.{name}.gradient"),
                _kronecker(tensors, f"inputs.{name}.kronecker"),
            )
            for name, count in facts["counts"].items()
        }
        held_out = [
            Example(
                tensors[f"held_out.{number:04d}.input_features"],
                tensors[f"held_out.{number:04d}.decoder_input_ids"],
                length,
            )
            for number, length in enumerate(facts["prompt_lengths"])
        ]
        source = dict(facts["source"])
    except ConversionError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(f"{path}: damaged statistics file ({error}). Calibrate again.") from error
    queries = {name.removeprefix("queries."): tensor for name, tensor in tensors.items() if name.startswith("queries.")}
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise ConversionError(f"{path}: damaged statistics file (NaN or infinite values). Calibrate again.")
    return Statistics(inputs, queries, held_out, source, name=str(path))


def _kronecker(tensors: dict[str, Tensor], prefix: str) -> KroneckerFactors | None:
    if f"{prefix}.gradient" not in tensors:
        return None
    return KroneckerFactors(tensors[f"{prefix}.gradient"], tensors[f"{prefix}.covariance"])
