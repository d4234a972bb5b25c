"""Compiled decoding steps: the same tokens, few graphs, and errors before anything is compiled."""

import os
import subprocess
import sys

import pytest
import torch
from transformers import WhisperForConditionalGeneration

from tests.conftest import random_features, random_whisper
from whisper_mla import WhisperMLAForConditionalGeneration, greedy_decoding, quantize_weights
from whisper_mla.transcription.compiled_decoding import compile_decoding

from ..command_line.invoke import error_line


@pytest.fixture
def counters():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return torch._dynamo.utils.counters


def graphs(counters) -> int:
    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]


@pytest.mark.compiles
@pytest.mark.parametrize("kind", ["exact", "int8 weights, int4 latents"])
def test_the_same_tokens_in_few_graphs(kind, counters, monkeypatch):
    """One graph for a single text, one for several of any number: beams, batches and positions compile no more.

    Greedy decoding of the exact model has graphs of its own, with the vocabulary projection in 8 bits.
    """
    monkeypatch.setattr(greedy_decoding, "_SMALLEST_WEIGHT", 1)
    stock = random_whisper(d_model=32, decoder_layers=1, encoder_layers=1)
    latents = {"latent_dtype": "int4", "method": "joint_svd"} if kind != "exact" else {}
    model = WhisperMLAForConditionalGeneration.from_whisper(stock, **latents)
    if kind != "exact":
        quantize_weights(model)
    features = random_features(stock, 3)
    ways = [(features[:1], 1), (features[:2], 1), (features[:2], 3), (features, 1)]

    def tokens():
        return [model.generate(audio, num_beams=beams, max_new_tokens=8) for audio, beams in ways]

    expected = tokens()
    compile_decoding(model, backend="eager", fullgraph=True)
    for found, tokens_expected in zip(tokens(), expected, strict=True):
        assert torch.equal(found, tokens_expected)
    assert len({len(found.unique()) for found in expected} - {1}) > 0  # not one token throughout
    assert 1 <= graphs(counters) <= 3
    if kind == "exact":
        assert greedy_decoding.progress_of(model.proj_out).projection is not None
    before = graphs(counters)
    model.generate(features[:2], num_beams=2, max_new_tokens=12)
    assert graphs(counters) == before


def test_what_is_no_step_is_not_compiled(exact, speech, fresh, counters):
    model = compile_decoding(fresh(exact), backend="aot_eager", fullgraph=True)
    features = speech["input_features"][:1]
    tokens = torch.tensor([[model.config.decoder_start_token_id]])
    model(features, decoder_input_ids=tokens)
    model.generate(features, max_new_tokens=8, output_attentions=True, return_dict_in_generate=True)
    model.train()(features, labels=tokens).loss.backward()
    assert graphs(counters) == 0


def test_on_a_gpu_transformers_compiles(exact, fresh):
    """A device that is no CPU stands for it: nothing is computed."""
    model = fresh(exact).to("meta")
    assert compile_decoding(model) is model
    assert model.generation_config.cache_implementation == "static" and "forward" not in model.__dict__


def test_what_cannot_be_compiled_is_refused(exact, digits, digits_folder, fresh, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="WhisperForConditionalGeneration: only converted models"):
        compile_decoding(WhisperForConditionalGeneration(digits.config))
    model = compile_decoding(fresh(exact), backend="aot_eager")
    with pytest.raises(ValueError, match="its forward is replaced already"):
        compile_decoding(model)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RuntimeError, match=r"needs one of g\+\+, clang\+\+, cl"):
        compile_decoding(fresh(exact))
    monkeypatch.undo()
    audio = tmp_path / "clip.wav"
    assert "only converted models decode compiled" in error_line("transcribe", digits_folder, audio, "--compile")


COMPILED_BESIDE_PLAIN = """
import torch
from tests.conftest import random_features, random_whisper
from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.transcription.compiled_decoding import _cpu_options, compile_decoding

model = WhisperMLAForConditionalGeneration.from_whisper(random_whisper(decoder_layers=1))
features = random_features(model, 2)

def decode():
    out = model.generate(features, max_new_tokens=8, return_dict_in_generate=True, output_logits=True)
    return torch.stack(out.logits)

plain = decode()
compile_decoding(model, options={**_cpu_options(), "cpp_wrapper": False})  # compiles in half the time
print(float((decode() - plain).abs().max()))
"""


@pytest.mark.processes
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="there is one instruction set only")
def test_kernels_on_disk_are_not_taken_for_another_processor(tmp_path):
    """PyTorch's cache of compiled graphs does not tell instruction sets apart: AVX-512's graphs are wrong on AVX2."""
    other = {"AVX512": "avx2"}.get(torch.backends.cpu.get_cpu_capability(), "default")
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    for capability in ({}, {"ATEN_CPU_CAPABILITY": other}):
        run = [sys.executable, "-c", COMPILED_BESIDE_PLAIN]
        done = subprocess.run(run, env=environment | capability, capture_output=True, text=True, check=True)
        assert float(done.stdout) < 1e-4, capability
