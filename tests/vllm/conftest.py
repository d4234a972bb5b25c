"""Models served by vLLM, in processes of their own. Each waits for what it needs, with a limit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from whisper_mla import WhisperMLAForConditionalGeneration

HERE = Path(__file__).parent
# Enough for vLLM to start on one core.
START_SECONDS = 300


def vllm_environment() -> dict[str, str]:
    """For a vLLM process on the CPU: no network, no binding of threads to cores."""
    return os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


def serve_options() -> list[str]:
    """Small and quick to start."""
    cache = ["--kv-cache-memory-bytes", str(64 << 20), "--max-num-seqs", "4", "--max-num-batched-tokens", "1500"]
    return ["--dtype", "float32", "--enforce-eager", *cache]


def decode_with_vllm(
    folder: Path, jobs: list[dict], scratch: Path, processes: int = 1, blocks: int = 0, draft: int = 0
) -> dict:
    """What vLLM makes of `jobs`; see `decode.py`."""
    (scratch / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, str(HERE / "decode.py"), str(folder), str(scratch / "jobs.json"), str(scratch / "out")]
    done = subprocess.run(
        [*command, str(processes), str(blocks), str(draft)],
        env=vllm_environment(),
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return json.loads((scratch / "out").read_text())


@torch.no_grad()
def greedy(
    model: WhisperMLAForConditionalGeneration, features: torch.Tensor, prompt: list[int], max_tokens: int
) -> list[int]:
    """Plain greedy decoding of one clip (`features` `[1, mels, frames]`) with our model: nothing forbidden."""
    encoded = model.get_encoder()(features)
    tokens, cache = list(prompt), None
    inputs = torch.tensor([prompt])
    while len(tokens) < len(prompt) + max_tokens:
        output = model(
            encoder_outputs=encoded, decoder_input_ids=inputs, use_cache=True, **({} if cache is None else cache)
        )
        name = "cache" if "cache" in output else "past_key_values"
        cache = {name: output[name]}
        tokens.append(int(output.logits[0, -1].argmax()))
        if tokens[-1] == model.generation_config.eos_token_id:
            break
        inputs = torch.tensor([tokens[-1:]])
    return tokens[len(prompt) :]
