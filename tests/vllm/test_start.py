"""What vLLM is started with, wrong: each is refused with a sentence before any process starts."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vllm.conftest import START_SECONDS, vllm_environment
from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.int8_weights import METHOD

pytest.importorskip("vllm", reason="needs the [vllm] extra")
pytestmark = pytest.mark.vllm

DRAFT = '{"method": "draft_model", "model": "FOLDER", "num_speculative_tokens": 2}'
TRANSFER = '{"kv_connector": "ExampleConnector", "kv_role": "kv_both"}'
# Name: changes to config.json, files that are missing, options, what is said. None: vLLM would start.
STARTS = {
    "as it is": ({}, [], [], None),
    "rounded latents": ({"latent_dtype": "int4"}, [], [], "--hf-overrides"),
    "rounded latents, remedied": ({"latent_dtype": "int4"}, [], ["--hf-overrides", '{"latent_dtype": null}'], None),
    "other ranks": ({}, [], ["--hf-overrides", '{"kv_rank": 8}'], "--hf-overrides kv_rank: the weights"),
    "int8 weights": ({"quantization_config": {"quant_method": METHOD}}, [], [], "convert again without --weights int8"),
    "no tokenizer": ({}, ["tokenizer.json"], [], "has no tokenizer (tokenizer.json or vocab.json)"),
    "no feature extractor": ({}, ["processor_config.json"], [], "has no feature extractor"),
    "quantised cache": ({}, [], ["--kv-cache-dtype", "fp8"], "--kv-cache-dtype fp8"),
    "prefix caching": ({}, [], ["--enable-prefix-caching"], "--enable-prefix-caching: vLLM has none"),
    "adapters": ({}, [], ["--enable-lora", "--max-lora-rank", "16"], "--enable-lora: adapters"),
    "embeddings": ({}, [], ["--runner", "pooling"], "--runner pooling: Whisper-MLA transcribes"),
    "quantised weights": ({}, [], ["--quantization", "fp8"], "--quantization fp8: weights are folded"),
    "a draft of other models": ({}, [], ["--speculative-config", DRAFT], "--speculative-config with the method"),
    "a cache that moves": ({}, [], ["--kv-transfer-config", TRANSFER], "--kv-transfer-config: vLLM moves no caches"),
    "stages": ({}, [], ["--pipeline-parallel-size", "2"], "Pipeline parallelism is not supported"),
    "more text than there are positions": ({}, [], ["--max-model-len", "2000"], "max_model_len"),
    "heads that cannot be split": ({}, [], ["--tensor-parallel-size", "3"], "--tensor-parallel-size 3"),
}


@pytest.fixture(scope="module")
def said(digits, processor, tmp_path_factory) -> dict[str, str | None]:
    """What vLLM says to each of STARTS."""
    scratch = tmp_path_factory.mktemp("starts")
    WhisperMLAForConditionalGeneration.from_whisper(digits).save_pretrained(scratch / "whole")
    processor.save_pretrained(scratch / "whole")
    jobs = []
    for name, (changes, missing, options, _) in STARTS.items():
        folder = scratch / name
        shutil.copytree(scratch / "whole", folder, ignore=shutil.ignore_patterns(*missing), copy_function=os.link)
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(json.dumps(config))
        jobs.append(
            ["--model", str(folder), "--dtype", "float32", *(part.replace("FOLDER", str(folder)) for part in options)]
        )
    (scratch / "jobs.json").write_text(json.dumps(jobs))
    script = Path(__file__).with_name("engine_config.py")
    command = [sys.executable, str(script), str(scratch / "jobs.json"), str(scratch / "out")]
    done = subprocess.run(
        command, env=vllm_environment(), capture_output=True, text=True, timeout=START_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return dict(zip(STARTS, json.loads((scratch / "out").read_text()), strict=True))


@pytest.mark.parametrize("name", STARTS)
def test_what_vllm_cannot_serve_is_refused_with_the_remedy(name, said):
    expected = STARTS[name][3]
    assert said[name] is None if expected is None else expected in (said[name] or "it would start")
