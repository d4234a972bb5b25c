"""The peak memory of decoding, measured in a fresh process on the CPU.

python -m whisper_mla.evaluation.memory_process < JOB.json
"""

import dataclasses
import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import psutil
import torch
import transformers
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput

from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.configuration import WhisperMLAConfig

from .memory import Setting


@dataclass(frozen=True)
class Measured:
    """Resident memory of the process.

    Attributes:
        peak: at most, in bytes; None if it was ended for want of memory or time.
        before: with the model loaded.
        reason: why there is no peak.
    """

    peak: int | None
    before: int | None
    reason: str | None = None


def measure(config: WhisperConfig, setting: Setting, seconds: float = 600.0) -> Measured:
    """Decode with random weights and a random encoder output in a fresh process, and tell its peak.

    Args:
        config: of a stock or Whisper-MLA model.
        setting: with 4 bytes per value float32 is decoded, with 2 bfloat16.
        seconds: after which the process is ended.

    Returns:
        Measured: "out of memory" and "out of time" are results.

    Raises:
        RuntimeError: the process failed of anything else; with its message.
    """
    job = json.dumps({"config": config.to_dict(), "setting": dataclasses.asdict(setting)})
    command = [sys.executable, "-m", __name__]
    variables = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    try:
        done = subprocess.run(
            command, input=job, env=variables, capture_output=True, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return Measured(None, None, f"out of time ({seconds:.0f} s)")
    if done.returncode == 0:
        return Measured(**json.loads(done.stdout.splitlines()[-1]))
    if done.returncode == -9 or "can't allocate memory" in done.stderr or "MemoryError" in done.stderr:
        return Measured(None, None, "out of memory")
    raise RuntimeError(f"the measuring process failed: {done.stderr.strip().splitlines()[-1]}")


def _decode(config: WhisperConfig, setting: Setting) -> Measured:
    kind = WhisperForConditionalGeneration
    if config.model_type == WhisperMLAConfig.model_type:
        kind = WhisperMLAForConditionalGeneration  # type: ignore[assignment]
    torch.set_default_dtype(torch.float32 if setting.bytes_per_value == 4 else torch.bfloat16)
    model = kind(config).eval()
    start = torch.full((setting.batch_size, 1), config.decoder_start_token_id)
    count = setting.positions - 1
    before = psutil.Process().memory_info().rss
    outputs: Any = BaseModelOutput(torch.randn(setting.batch_size, config.max_source_positions, config.d_model))
    if isinstance(model, WhisperMLAForConditionalGeneration):
        outputs = model.compress_encoder_outputs(outputs)  # so that the encoder output itself is held no longer
    # Not Whisper's own generate, which ends at 448 positions.
    GenerationMixin.generate(
        model,
        encoder_outputs=outputs,
        decoder_input_ids=start,
        generation_config=GenerationConfig(
            max_new_tokens=count,
            min_new_tokens=count,
            num_beams=setting.num_beams,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
            decoder_start_token_id=config.decoder_start_token_id,
        ),
    )
    unit = 1 if sys.platform == "darwin" else 1024
    return Measured(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, before)


def main() -> None:
    """Read a job from standard input, and print what was measured as JSON."""
    transformers.logging.set_verbosity_error()
    job = json.loads(sys.stdin.read())
    kind = WhisperMLAConfig if job["config"]["model_type"] == WhisperMLAConfig.model_type else WhisperConfig
    with torch.inference_mode():
        found = _decode(kind.from_dict(job["config"]), Setting(**job["setting"]))
    print(json.dumps(dataclasses.asdict(found)))


if __name__ == "__main__":
    main()
