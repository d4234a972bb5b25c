"""Calibrate: from audio, or from a statistics file, to statistics of one stock model."""

import copy
import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin, WhisperForConditionalGeneration
from transformers.utils import logging

from .calibration import Statistics, gather_statistics
from .calibration_audio import make_examples, read_clips
from .errors import ConversionError
from .statistics_file import load_statistics

logger = logging.get_logger(__name__)


def calibrate(
    stock: WhisperForConditionalGeneration,
    calibration: Any,
    processor: ProcessorMixin | None = None,
    *,
    language: str | None = None,
    task: str | None = None,
    held_out: float = 0.25,
    gradients: bool = True,
    encoder: bool = True,
    seed: int = 0,
) -> Statistics:
    """Statistics of a stock model on calibration audio.

    Args:
        stock: in evaluation mode. In half precision a float32 copy is run.
        calibration: audio (see `read_clips`), a statistics file, or `Statistics`, which are checked and returned.
        processor: of the model; not needed for statistics that exist.
        language, task: of the audio; None: the model's default, or detected.
        held_out: share of the clips that is kept apart to measure conversions on, evenly spread; at least one clip,
            unless there is only one.
        gradients: gather the Fisher information, for `method="fisher"`.
        encoder: gather statistics of encoder self-attention.
        seed: of the random projections behind the Fisher information.

    Returns:
        Statistics: with `examples`, the clips that they are of, and `held_out`.

    Raises:
        ConversionError: no audio that can be read, no processor, or statistics of another model.
    """
    fingerprint = weights_fingerprint(stock)
    if isinstance(calibration, (str, os.PathLike)) and Path(calibration).suffix == ".safetensors":
        calibration, name = load_statistics(calibration), str(calibration)
    else:
        name = "calibration"
    if isinstance(calibration, Statistics):
        if calibration.source.get("model_sha256") != fingerprint:
            raise ConversionError(
                f"{name}: these statistics are of another model ({calibration.source.get('model', 'unknown')}, or in "
                "another dtype). Calibrate this one: whisper-mla calibrate"
            )
        return calibration
    if processor is None:
        raise ConversionError("calibration: a processor is needed (processor=), the source has none.")
    if not 0 <= held_out < 1:
        raise ConversionError(f"held_out={held_out}: expected a share from 0 to below 1.")
    clips = read_clips(calibration)
    model = running_copy(stock)
    examples = make_examples(model, processor, clips, language=language, task=task)
    kept = _spread(len(examples), held_out)
    used = [example for i, example in enumerate(examples) if i not in kept]
    statistics = gather_statistics(model, used, gradients=gradients, encoder=encoder, seed=seed)
    statistics.examples = used
    statistics.held_out = [examples[i] for i in sorted(kept)]
    statistics.source = {
        "model": model_name(stock),
        "model_sha256": fingerprint,
        "clips": len(clips),
        "seconds": round(sum(len(clip.samples) for clip in clips) / 16_000, 1),
        "with_transcript": sum(clip.text is not None for clip in clips),
        "held_out_windows": len(kept),
        "text_vectors": sum(len(example.decoder_input_ids) for example in used),
        "audio_vectors": len(used) * stock.config.max_source_positions,
    }
    return statistics


def model_name(model: PreTrainedModel) -> str:
    """The Hub id that a model came from, or the name of its folder: where that lies means nothing to others."""
    name = str(model.config._name_or_path or type(model).__name__)
    return Path(name).resolve().name if Path(name).is_dir() else name


def running_copy(stock: WhisperForConditionalGeneration) -> WhisperForConditionalGeneration:
    """The model itself if it is in float32, else a float32 copy: statistics of rounded activations would be noise."""
    return stock if stock.dtype == torch.float32 else copy.deepcopy(stock).float()


def weights_fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 over names, shapes and values (as float32) of all weights: a float16 checkpoint and its float32
    copy have the same."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _spread(count: int, share: float) -> set[int]:
    """Indices of about `share · count` items, at least one of two, evenly spread."""
    number = max(round(count * share), 1) if share and count > 1 else 0
    return {int((i + 0.5) * count / number) for i in range(number)}


__all__ = ["calibrate", "model_name", "running_copy", "weights_fingerprint"]
