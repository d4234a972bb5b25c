"""On a GPU: the tokens of stock Whisper, rounded latents, compiled steps, times in half precision.

`WHISPER_MLA_DEVICE=cpu` runs the same on a CPU, which shows that the tests work and nothing about GPUs.
"""

import copy
import os

import pytest
import torch

from whisper_mla import WhisperMLAForConditionalGeneration, audio_blocks
from whisper_mla.transcription.compiled_decoding import compile_decoding

DEVICE = os.environ.get("WHISPER_MLA_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="no GPU here; WHISPER_MLA_DEVICE=cpu takes the CPU"
    ),
]


@pytest.fixture(scope="module")
def audio(speech):
    return {name: tensor.to(DEVICE) for name, tensor in speech.items()}


@pytest.fixture(scope="module")
def stock(digits):
    return copy.deepcopy(digits).to(DEVICE)


@pytest.mark.parametrize("way", [{}, {"num_beams": 3}, {"return_timestamps": True}], ids=str)
def test_float32_tokens(stock, audio, way):
    model = WhisperMLAForConditionalGeneration.from_whisper(stock)
    assert torch.equal(model.generate(**audio, **way), stock.generate(**audio, **way))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_near_as_stock(stock, audio, dtype):
    """RMS errors of the logits against stock in float32: ours at most twice stock's."""
    tokens = stock.generate(**audio)
    half = copy.deepcopy(stock).to(dtype)
    model = WhisperMLAForConditionalGeneration.from_whisper(half)
    with torch.no_grad():
        expected = stock(audio["input_features"], decoder_input_ids=tokens).logits
        features = audio["input_features"].to(dtype)
        ours, theirs = (
            (one(features, decoder_input_ids=tokens).logits.float() - expected).square().mean().sqrt()
            for one in (model, half)
        )
    assert 0 < ours < 2 * theirs


@pytest.mark.parametrize("latent_dtype", ["int8", "int4"])
def test_rounded_latents_in_blocks(stock, audio, latent_dtype, monkeypatch):
    model = WhisperMLAForConditionalGeneration.from_whisper(stock, latent_dtype=latent_dtype)
    expected = model.generate(**audio, num_beams=2)
    monkeypatch.setattr(audio_blocks, "UNPACKED_BYTES_ON_ACCELERATORS", 1)
    monkeypatch.setattr(audio_blocks, "UNPACKED_BYTES", 1)
    assert torch.equal(model.generate(**audio, num_beams=2), expected)


def test_compiled_steps(stock, audio):
    model = WhisperMLAForConditionalGeneration.from_whisper(stock)
    expected = model.generate(**audio)
    assert torch.equal(compile_decoding(model).generate(**audio), expected)


def test_token_times_in_float16(stock, audio):
    """Those of stock Whisper in float32 but for single frames, where tokens are the same (stock's own are NaN's)."""
    way = {"return_token_timestamps": True, "return_dict_in_generate": True}
    expected = copy.deepcopy(stock).generate(**audio, **way)
    model = WhisperMLAForConditionalGeneration.from_whisper(copy.deepcopy(stock).half())
    found = model.generate(**audio, **way)
    length = min(found["sequences"].shape[1], expected["sequences"].shape[1])
    same = found["sequences"][:, :length] == expected["sequences"][:, :length]
    apart = (found["token_timestamps"][:, :length] - expected["token_timestamps"][:, :length]).abs()
    print("seconds apart at most:", apart[same].max().item(), "beyond a frame:", int((apart[same] > 0.021).sum()))
    assert found["token_timestamps"].isfinite().all() and same.float().mean() > 0.9 and apart[same].max() < 0.041
