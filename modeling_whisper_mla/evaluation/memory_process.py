"""The peak memory of decoding, measured in a fresh process.

python -m whisper_mla.evaluation.memory_process < JOB.json
"""

import ctypes
import dataclasses
import gc
import json
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    WhisperConfig,
    WhisperForConditionalGeneration,
)
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput

from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.configuration import WhisperMLAConfig

from .fresh_process import run_fresh
from .memory import Setting


@dataclass(frozen=True)
class Measured:
    """Memory: resident memory of the process on the CPU, PyTorch's allocations on a GPU.

    Attributes:
        peak: at most, in bytes; None if it was ended for want of memory or time.
        before: with the model loaded.
        reason: why there is no peak.
        held: freed when the cache at its longest and the audio's latents or encoder output were let go.
    """

    peak: int | None
    before: int | None
    reason: str | None = None
    held: int | None = None


def measure(config: WhisperConfig, setting: Setting, seconds: float = 600.0, device: str = "cpu") -> Measured:
    """Decode with random weights and a random encoder output in a fresh process, and tell its peak.

    Args:
        config: of a stock or Whisper-MLA model.
        setting: with 4 bytes per value float32 is decoded, with 2 bfloat16, on a GPU float16.
        seconds: after which the process is ended.
        device: as torch writes it.

    Returns:
        Measured: "out of memory" and "out of time" are results.

    Raises:
        RuntimeError: the process failed of anything else; with its message.
    """
    job = {"config": config.to_dict(), "setting": dataclasses.asdict(setting), "device": device}
    found, reason = run_fresh(__name__, job, seconds)
    return Measured(None, None, reason) if reason else Measured(**found[-1])


def measure_growth(
    config: WhisperConfig, setting: Setting, lengths: list[int], seconds: float = 600.0, device: str = "cpu"
) -> tuple[dict[int, int], str | None]:
    """The peak when so many positions have been decoded, of one decoding up to those of the setting.

    Args:
        config, setting, seconds, device: as of [`measure`].
        lengths: text positions, ascending.

    Returns:
        tuple: bytes by length, and why longer ones are missing, or None.
    """
    job = {"config": config.to_dict(), "setting": dataclasses.asdict(setting), "device": device, "lengths": lengths}
    found, reason = run_fresh(__name__, job, seconds)
    return {one["positions"]: one["peak"] for one in found if "positions" in one}, reason


class _PeaksByLength(LogitsProcessor):
    """Prints the peak so far when a length is reached; changes nothing."""

    def __init__(self, lengths: list[int], device: str):
        self.lengths, self.device = lengths, device

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # The step whose scores these are has all of `input_ids` in its cache; one token more is still to come.
        if input_ids.shape[1] + 1 in self.lengths:
            print(json.dumps({"positions": input_ids.shape[1] + 1, "peak": _peak(self.device)}), flush=True)
        return scores


def _peak(device: str) -> int:
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measured_decoding(
    config: WhisperConfig, setting: Setting, device: str = "cpu", lengths: list[int] | None = None
) -> Measured:
    """Decode with random weights in this process, which should be a fresh one: peaks are of its whole life.

    Args:
        config: stock's or ours.
        setting: audios, positions and beams, and bytes per value for the dtype.
        device: "cpu" or "cuda".
        lengths: positions at which the peak so far is printed, as lines of JSON.

    Returns:
        Measured: bytes.
    """
    kind = WhisperForConditionalGeneration
    if config.model_type == WhisperMLAConfig.model_type:
        kind = WhisperMLAForConditionalGeneration  # type: ignore[assignment]
    half = torch.bfloat16 if device == "cpu" else torch.float16
    torch.set_default_dtype(torch.float32 if setting.bytes_per_value == 4 else half)
    if device != "cpu":
        torch.set_default_device(device)
    model = kind(config).eval()
    start = torch.full((setting.batch_size, 1), config.decoder_start_token_id)
    count = setting.positions - 1
    before = _taken(device)
    outputs: Any = BaseModelOutput(torch.randn(setting.batch_size, config.max_source_positions, config.d_model))
    if isinstance(model, WhisperMLAForConditionalGeneration):
        outputs = model.compress_encoder_outputs(outputs)  # so that the encoder output itself is held no longer
    # Not Whisper's own generate, which ends at 448 positions.
    generated: Any = GenerationMixin.generate(
        model,
        encoder_outputs=outputs,
        decoder_input_ids=start,
        logits_processor=LogitsProcessorList([_PeaksByLength(lengths, device)] if lengths else []),
        generation_config=GenerationConfig(
            max_new_tokens=count,
            min_new_tokens=count,
            num_beams=setting.num_beams,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
            decoder_start_token_id=config.decoder_start_token_id,
            return_dict_in_generate=True,
        ),
    )
    peak = _peak(device)
    with_cache = _taken(device)
    del generated, outputs
    return Measured(peak, before, held=with_cache - _taken(device))


def _taken(device: str) -> int:
    """Bytes that are held now; what the C library keeps for later use is given back before."""
    gc.collect()
    if device != "cpu":
        return torch.cuda.memory_allocated()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    import psutil

    return psutil.Process().memory_info().rss


def main() -> None:
    """Read a job from standard input, and print what was measured as JSON."""
    transformers.logging.set_verbosity_error()
    job = json.loads(sys.stdin.read())
    kind = WhisperMLAConfig if job["config"]["model_type"] == WhisperMLAConfig.model_type else WhisperConfig
    with torch.inference_mode():
        found = measured_decoding(
            kind.from_dict(job["config"]), Setting(**job["setting"]), job["device"], job.get("lengths")
        )
    print(json.dumps(dataclasses.asdict(found)))


if __name__ == "__main__":
    main()
