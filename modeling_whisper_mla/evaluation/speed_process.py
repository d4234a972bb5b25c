"""The speed of decoding, measured in a fresh process; a line of JSON for each setting.

python -m whisper_mla.evaluation.speed_process < JOB.json
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from transformers import WhisperConfig, WhisperForConditionalGeneration

from whisper_mla import WhisperMLAForConditionalGeneration, quantize_weights
from whisper_mla.configuration import WhisperMLAConfig

from .decode_timing import decode
from .fresh_process import is_want_of_memory


def times(job: dict[str, Any]) -> Iterator[float | None]:
    """Milliseconds per token of each setting, the first step included; None: out of memory.

    Args:
        job: `config`, `settings` as `[batch_size, tokens, num_beams]`, `dtype`, `device`, `int8_weights`, `compiled`.
    """
    fields = {**job["config"], "encoder_layers": 1}  # the encoder is not run
    is_latent = fields["model_type"] == WhisperMLAConfig.model_type
    if isinstance(fields.get("audio_kv_rank"), list):
        fields["audio_kv_rank"] = fields["audio_kv_rank"][:1]
    config = (WhisperMLAConfig if is_latent else WhisperConfig).from_dict(fields)
    kind: Any = WhisperMLAForConditionalGeneration if is_latent else WhisperForConditionalGeneration
    torch.manual_seed(0)
    with torch.device(job["device"]):
        model = kind(config).eval().to(getattr(torch, job["dtype"]))
    if job["int8_weights"]:
        quantize_weights(model)
    if is_latent:
        model.expect_many_steps()  # or the first settings would be timed without, and the last with it
    if job["compiled"] and model.device.type == "cpu":
        from whisper_mla.transcription.compiled_decoding import compile_decoding

        compile_decoding(model)
    elif job["compiled"]:
        model.generation_config.cache_implementation = "static"  # as compile_decoding does; stock Whisper can, too
    for batch_size, tokens, num_beams in job["settings"]:
        try:
            with torch.inference_mode():
                # Kernels are chosen, and compiled, here: for a cache that is allocated at once, of its length.
                is_static = model.generation_config.cache_implementation is not None
                decode(model, batch_size, num_beams, tokens if is_static else min(4, tokens))
                found: float | None = decode(model, batch_size, num_beams, tokens)[0]
        except (MemoryError, RuntimeError) as error:  # torch's own error is a RuntimeError
            if not isinstance(error, MemoryError) and not is_want_of_memory(f"{type(error).__name__}: {error}"):
                raise
            found = None
            if job["device"] != "cpu":
                torch.cuda.empty_cache()
        yield found


def main() -> None:
    """Read a job from standard input, and print what was measured."""
    transformers.logging.set_verbosity_error()
    for milliseconds in times(json.loads(sys.stdin.read())):
        print(json.dumps({"milliseconds": milliseconds}), flush=True)


if __name__ == "__main__":
    main()
