"""A model with rounded latents, against stock Whisper whose key and value projections read rounded inputs.

The reference shares the rounding with the model and nothing else: it has no packed bytes and a stock cache.
"""

import copy

import pytest
import torch
from transformers import WhisperForConditionalGeneration

from tests.conftest import random_features, random_whisper
from tests.modeling.test_generation import WAYS, assert_same, generate, one
from whisper_mla import WhisperMLAForCausalLM, WhisperMLAForConditionalGeneration
from whisper_mla.configuration import cache_size
from whisper_mla.latent_quantization import round_latent

pytestmark = pytest.mark.usefixtures("encode_once")

BITS = {"int8": 8, "int4": 4, None: None}


def simulated(stock, latent_dtype) -> WhisperForConditionalGeneration:
    """A copy of `stock` that rounds what keys and values are made of, by hooks."""
    model = copy.deepcopy(stock)

    def hook(bits):
        return lambda _, inputs: (round_latent(inputs[0], bits, 32),) if bits else None

    text, audio = latent_dtype if isinstance(latent_dtype, list) else (latent_dtype, latent_dtype)
    for layer in model.model.decoder.layers:
        for attention, dtype in ((layer.self_attn, text), (layer.encoder_attn, audio)):
            attention.k_proj.register_forward_pre_hook(hook(BITS[dtype]))
            attention.v_proj.register_forward_pre_hook(hook(BITS[dtype]))
    return model


@pytest.fixture(scope="module")
def pair(digits):
    model = WhisperMLAForConditionalGeneration.from_whisper(digits, latent_dtype=["int8", "int4"])
    return model, simulated(digits, ["int8", "int4"])


def test_both_in_four_bits(digits, speech):
    model = WhisperMLAForConditionalGeneration.from_whisper(digits, latent_dtype="int4")
    expected = generate(simulated(digits, "int4"), **speech, num_beams=2)
    assert torch.equal(generate(model, **speech, num_beams=2), expected)


@pytest.mark.parametrize(
    "way",
    [
        "greedy",
        "beams, several returned",
        "sampling, several returned",
        "static cache",
        "static cache, beams",
        "no cache",
        "prompt",
    ],
)
def test_batches_of_mixed_lengths(pair, speech, way):
    model, reference = pair
    assert_same(generate(model, **speech, **WAYS[way]), generate(reference, **speech, **WAYS[way]))


def test_rounding_is_not_nothing(pair, digits, speech):
    tokens = torch.tensor([[1, 5, 9]] * 4)
    with torch.no_grad():
        logits = [model(**speech, decoder_input_ids=tokens).logits for model in (*pair, digits)]
    assert (logits[0] - logits[1]).abs().max() < 0.1 * (logits[0] - logits[2]).abs().max()


def test_long_form_with_fallback(pair, long_speech, fresh):
    model, reference = pair
    way = {"max_new_tokens": 30, "return_timestamps": True, "temperature": (0.0, 1.0), "logprob_threshold": -0.05}
    assert_same(generate(fresh(model), **long_speech, **way), generate(fresh(reference), **long_speech, **way))


def test_words(pair, speech, fresh):
    model, reference = pair
    way = {"return_timestamps": True, "return_token_timestamps": True}
    assert_same(generate(fresh(model), **speech, **way), generate(fresh(reference), **speech, **way))


def test_prompt_lookup_and_assistants(pair, digits, speech, fresh, tmp_path):
    """They crop the cache. A rounded assistant of a stock model, too, changes nothing."""
    model, reference = pair
    expected = generate(reference, **one(speech))
    assert torch.equal(generate(model, **one(speech), prompt_lookup_num_tokens=3), expected)
    assert torch.equal(generate(fresh(model), **one(speech), assistant_model=fresh(digits)), expected)
    assert torch.equal(
        generate(fresh(digits), **one(speech), assistant_model=fresh(model)), generate(digits, **one(speech))
    )


@pytest.mark.parametrize("ranks", [{}, {"kv_rank": 64, "cross_kv_rank": 96}, {"kv_rank": [32, 64, 256, 128]}], ids=str)
def test_step_by_step_equals_all_at_once(digits, speech, ranks):
    """Latents are rounded when they are made: attention reads the same with a cache and without."""
    model = WhisperMLAForConditionalGeneration.from_whisper(digits, latent_dtype="int4", **ranks)
    tokens = torch.randint(3, 400, (2, 9), generator=torch.Generator().manual_seed(0))
    features = speech["input_features"][:2]
    with torch.no_grad():
        outputs = model.compress_encoder_outputs(model.get_encoder()(features))
        assert outputs.last_hidden_state.dtype == torch.uint8
        at_once = model(features, decoder_input_ids=tokens, use_cache=False).logits
        cache, steps = None, []
        for start, stop in ((0, 3), (3, 4), (4, 5), (5, 9)):
            found = model(
                encoder_outputs=outputs,
                decoder_input_ids=tokens[:, start:stop],
                past_key_values=cache,
                use_cache=True,
            )
            cache, steps = found.past_key_values, [*steps, found.logits]
    # A value at the border between two codes may fall on either side.
    assert (torch.cat(steps, 1) - at_once).norm() < 1e-3 * at_once.norm()


def test_saved_loaded_and_switched_on_later(digits, exact, speech, tmp_path):
    model = WhisperMLAForConditionalGeneration.from_whisper(digits, latent_dtype=["int8", "int4"])
    expected = generate(model, **speech, num_beams=2)
    model.save_pretrained(tmp_path / "rounded")
    loaded = WhisperMLAForConditionalGeneration.from_pretrained(tmp_path / "rounded")
    assert loaded.config.latent_dtype == ["int8", "int4"]
    assert torch.equal(generate(loaded, **speech, num_beams=2), expected)
    exact.save_pretrained(tmp_path / "exact")
    switched = WhisperMLAForConditionalGeneration.from_pretrained(tmp_path / "exact", latent_dtype=["int8", "int4"])
    assert torch.equal(generate(switched, **speech, num_beams=2), expected)
    assert WhisperMLAForCausalLM.from_pretrained(tmp_path / "rounded").config.text_latent_bits == [8] * 4


@pytest.fixture(scope="module")
def mixed_pair(digits, processor, clips):
    """A model of mixed bits, and stock Whisper whose keys and values are computed from its rounded latents."""
    paths = [clips[f"clip0{i}"]["path"] for i in range(4)]
    arguments = {"latent_dtype": "mixed", "cache_cut": 0.95, "processor": processor, "language": "en", "force": True}
    model = WhisperMLAForConditionalGeneration.from_whisper(digits, calibration=paths, **arguments)
    stock, ours = copy.deepcopy(digits), model.model.decoder
    for layer, stock_layer, bits in zip(ours.layers, stock.model.decoder.layers, model.config.kv_bits, strict=True):
        cross = (ours.cross_kv_down_proj, layer.encoder_attn, stock_layer.encoder_attn, model.config.cross_kv_bits)
        for down, new, old, row in (
            (layer.self_attn.kv_down_proj, layer.self_attn, stock_layer.self_attn, bits),
            cross,
        ):
            for kind in ("k_proj", "v_proj"):
                up = getattr(new, kind)
                getattr(old, kind).forward = lambda x, down=down, up=up, row=row: up(round_latent(down(x), row, 32))
    return model, stock


@pytest.mark.parametrize("way", ["beams, several returned", "static cache"])
def test_mixed_bits(mixed_pair, speech, way):
    model, reference = mixed_pair
    assert_same(generate(model, **one(speech), **WAYS[way]), generate(reference, **one(speech), **WAYS[way]))


def test_mixed_bits_crop_save_and_fold_back(mixed_pair, digits, speech, fresh, tmp_path):
    model, _ = mixed_pair
    sizes = [
        cache_size(each.config, positions=each.config.max_target_positions, bytes_per_value=4).total
        for each in (digits, model)
    ]
    assert 0.94 * 0.05 * sizes[0] < sizes[1] <= 0.05 * sizes[0]
    expected = generate(model, **one(speech))
    assert torch.equal(generate(fresh(model), **one(speech), assistant_model=fresh(digits)), expected)
    model.save_pretrained(tmp_path)
    loaded = WhisperMLAForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.kv_bits == model.config.kv_bits
    assert torch.equal(generate(loaded, **one(speech)), expected)
    # Without the rounding it is a model of ranks: what `to_whisper` gives.
    tokens, exact = torch.tensor([[1, 5, 9]] * 4), fresh(model)
    for module in exact.model.decoder.modules():
        if getattr(module, "latent_bits", None) is not None:
            module.latent_bits = None
    with torch.no_grad():
        states = exact.get_encoder()(speech["input_features"]).last_hidden_state
        latent = {"encoder_hidden_states": exact.model.decoder.cross_latent(states), "encoder_states_are_latent": True}
        exact.config.latent_dtype = None  # the decoder would unpack
        found = exact.proj_out(exact.model.decoder(input_ids=tokens, **latent).last_hidden_state)
        stock = model.to_whisper()(**speech, decoder_input_ids=tokens).logits
    assert torch.allclose(found, stock, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """Packed bytes hold whatever the model's dtype, and its own dtype comes back."""
    model = WhisperMLAForConditionalGeneration.from_whisper(random_whisper(), latent_dtype="int4").to(dtype)
    features = random_features(model)
    cached, uncached = (model.generate(features, max_new_tokens=6, use_cache=use) for use in (True, False))
    assert cached.shape == uncached.shape
    assert model(features, decoder_input_ids=cached).logits.dtype == dtype


def test_training_reaches_what_lies_below_the_latents():
    model = WhisperMLAForConditionalGeneration.from_whisper(random_whisper(), latent_dtype="int4").train()
    for layer in model.model.decoder.layers:  # leaves keys and values as the only way
        torch.nn.init.zeros_(layer.self_attn.q_proj.weight)
    labels = torch.randint(4, 128, (2, 7))
    model(random_features(model), labels=labels).loss.backward()
    assert model.model.encoder.conv1.weight.grad.abs().sum() > 0
    assert model.model.decoder.embed_positions.weight.grad.abs().sum() > 0
