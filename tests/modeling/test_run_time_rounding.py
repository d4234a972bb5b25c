"""A quantised cache asked of `generate` is that of the model loaded with the same `latent_dtype`."""

import pytest
import torch
from transformers import pipeline

from tests.modeling.test_generation import assert_same, generate, one
from whisper_mla import WhisperMLAForConditionalGeneration, quantize_weights
from whisper_mla.transcription.compiled_decoding import compile_decoding
from whisper_mla.transformers_releases import CACHE

pytestmark = pytest.mark.usefixtures("encode_once")


@pytest.fixture(scope="module")
def rounded(digits):
    """Of eight bits and of four, made so from the beginning."""
    return {
        bits: WhisperMLAForConditionalGeneration.from_whisper(digits, latent_dtype=f"int{bits}", method="joint_svd")
        for bits in (8, 4)
    }


def ask(bits: int) -> dict:
    return {"cache_implementation": "quantized", "cache_config": {"nbits": bits}}


@pytest.mark.parametrize(
    "way",
    [
        {"num_beams": 3, "num_return_sequences": 2},
        {"return_timestamps": True, "return_token_timestamps": True},
        {"do_sample": True, "temperature": 1.5},
    ],
    ids=str,
)
def test_the_same_tokens(exact, rounded, speech, way, fresh):
    way = {**speech, **way, "max_new_tokens": 16}
    model, found = fresh(exact), {}
    for bits in (8, 4):
        found[bits] = generate(model, **way, **ask(bits))
        assert_same(found[bits], generate(rounded[bits], **way))
    assert_same(generate(model, **way), generate(exact, **way))  # which is as it was
    assert model.config.latent_dtype is None


def test_what_is_held_is_packed(exact, rounded, speech):
    def held(model, **more) -> int:
        way = {**one(speech), "max_new_tokens": 8, "return_dict_in_generate": True, **more}
        layers = generate(model, **way)[CACHE].self_attention_cache.layers
        return sum(layer.keys.nbytes for layer in layers)

    sizes = {bits: held(exact, **ask(bits)) for bits in (8, 4)}
    assert sizes == {bits: held(rounded[bits]) for bits in (8, 4)}
    whole = held(exact) / 2  # in 16 bits
    assert sizes == {8: whole * 8.5 / 16, 4: whole * 5 / 16}
    by_32 = {"cache_implementation": "quantized", "cache_config": {"nbits": 8, "q_group_size": 32}}
    assert held(exact, **by_32) == whole * 9 / 16


def test_by_the_generation_config_and_the_pipeline(exact, rounded, processor, clips, fresh, speech):
    model = fresh(exact)
    model.generation_config.cache_implementation = "quantized"  # four bits, as in Transformers
    assert torch.equal(generate(model, **speech), generate(rounded[4], **speech))
    parts = {"tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
    run = pipeline("automatic-speech-recognition", model=fresh(exact), **parts)
    expected = pipeline("automatic-speech-recognition", model=rounded[8], **parts)
    samples = clips["clip03"]["samples"]
    assert run(samples, generate_kwargs=ask(8)) == expected(samples)


def test_int8_weights_are_shared(exact, speech, fresh):
    model = quantize_weights(fresh(exact))
    packed = [module._product for module in model.modules() if hasattr(module, "_product")]
    first = generate(model, **one(speech), **ask(8))
    packed = [module._product for module in model.modules() if hasattr(module, "_product")]
    assert torch.equal(generate(model, **one(speech), **ask(8)), first)
    assert all(
        a is b for a, b in zip(packed, (m._product for m in model.modules() if hasattr(m, "_product")), strict=True)
    )
    assert None not in packed[-2:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cache_config": {"nbits": 3}}, r"nbits=3: expected one of \[4, 8\]"),
        ({"cache_config": {"backend": "quanto"}}, "cache_config has 'backend'.*nbits, q_group_size"),
        ({"cache_config": 4}, "cache_config=4: expected a dictionary"),
        ({"cache_config": {"q_group_size": 7}}, "latent_group_size=7: expected a power of two"),
        ({"past_key_values": object()}, "and a cache: leave out one"),
    ],
)
def test_what_cannot_be_had_is_refused(exact, speech, arguments, message):
    with pytest.raises(ValueError, match=message):
        exact.generate(**one(speech), cache_implementation="quantized", **arguments)


def test_models_that_cannot_be_rearranged_are_refused(exact, rounded, speech, fresh):
    with pytest.raises(ValueError, match=r"rounded as it is \(latent_dtype='int8'\)"):
        rounded[8].generate(**one(speech), **ask(8))
    model = compile_decoding(fresh(exact), backend="eager")
    with pytest.raises(ValueError, match=r"forward of the model was replaced.*latent_dtype='int4' instead"):
        model.generate(**one(speech), **ask(4))
