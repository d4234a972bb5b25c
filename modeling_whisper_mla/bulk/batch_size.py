"""How many recordings are decoded at once: from free memory, and fewer where that was too many."""

import os
from typing import cast

import psutil
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers import PreTrainedModel, WhisperConfig

from whisper_mla.evaluation.memory import Setting, memory_of

# Larger batches wait longer for their longest text than they save, above all where arithmetic is the limit.
MOST_ON_CPU, MOST_ON_ACCELERATOR = 16, 64
# The part of free memory that is planned with: the rest is for what is not counted, and for neighbours.
PLANNED = 0.5


def bytes_of_a_stream(model: PreTrainedModel, num_beams: int = 1) -> int:
    """Bytes that one more recording in a batch takes, computed from the configuration.

    Args:
        model: a stock Whisper or a Whisper-MLA model.
        num_beams: hypotheses per recording.
    """
    config = cast(WhisperConfig, model.config)
    found = memory_of(config, Setting(1, config.max_target_positions, num_beams, model.dtype.itemsize))
    return found.cache + found.work


def free_bytes(device: torch.device) -> int:
    """Memory that this process may take: of its GPU, or its share of what the machine has available."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def fitting_batch_size(model: PreTrainedModel, num_beams: int = 1) -> int:
    """The batch size for the memory that is free now, at least 1."""
    most = MOST_ON_CPU if model.device.type == "cpu" else MOST_ON_ACCELERATOR
    room = int(PLANNED * free_bytes(model.device)) // bytes_of_a_stream(model, num_beams)
    return max(1, min(most, room))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was short: as Accelerate tells it, or Python's own."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, Exception) and should_reduce_batch_size(error)
    )


def free_what_was_tried() -> None:
    """Give memory of a failed attempt back, so that a smaller one can have it."""
    clear_device_cache(garbage_collection=True)
