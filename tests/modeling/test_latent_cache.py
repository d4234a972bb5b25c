import copy
import weakref

import pytest
import torch
from transformers.cache_utils import DynamicCache, EncoderDecoderCache, StaticCache

from tests.conftest import random_whisper
from whisper_mla import LatentCache, WhisperMLAConfig, WhisperMLAForConditionalGeneration
from whisper_mla.latent_cache import LatentLayer, LatentStaticLayer
from whisper_mla.transformers_releases import CACHE


@pytest.fixture
def config() -> WhisperMLAConfig:
    return WhisperMLAConfig(d_model=32, decoder_layers=3, encoder_layers=5, kv_rank=[4, 8, 16])


def filled(config, length=5, batch=4, **kwargs) -> LatentCache:
    cache = LatentCache(config, **kwargs)
    for layer, rank in enumerate(config.kv_ranks):
        latent = torch.arange(batch * length * rank, dtype=torch.float32).view(batch, 1, length, rank)
        cache.self_attention_cache.update(latent, latent[..., :0], layer)
    return cache


def tensors_in(value, seen=None) -> dict[int, torch.Tensor]:
    """All tensors reachable from an object, by storage."""
    seen = {} if seen is None else seen
    if isinstance(value, torch.Tensor):
        seen[value.untyped_storage().data_ptr()] = value
    elif isinstance(value, dict):
        for item in value.values():
            tensors_in(item, seen)
    elif isinstance(value, list | tuple):
        for item in value:
            tensors_in(item, seen)
    elif hasattr(value, "__dict__"):
        tensors_in(vars(value), seen)
    return seen


def reachable_bytes(value) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors_in(value).values())


@pytest.mark.parametrize("max_cache_len", [None, 9])
def test_each_layer_holds_one_tensor(config, max_cache_len):
    cache = filled(config, max_cache_len=max_cache_len)
    kind = LatentLayer if max_cache_len is None else LatentStaticLayer
    assert len(cache.self_attention_cache.layers) == 3
    for layer, rank in zip(cache.self_attention_cache.layers, config.kv_ranks, strict=True):
        assert type(layer) is kind
        assert layer.keys.shape == (4, 1, max_cache_len or 5, rank)
        assert layer.values.numel() == 0
        assert "values" not in vars(layer)
    assert cache.get_seq_length() == 5
    assert cache.nbytes == 4 * (max_cache_len or 5) * (4 + 8 + 16) * 4
    counters = 0 if max_cache_len is None else 3 * 8
    assert reachable_bytes(cache) == cache.nbytes + counters


def test_static_layer_appends_in_place(config):
    cache = filled(config, length=5, max_cache_len=9)
    layer = cache.self_attention_cache.layers[1]
    address = layer.keys.data_ptr()
    new = torch.full((4, 1, 2, 8), -1.0)
    keys, values = layer.update(new, new[..., :0])
    assert keys.data_ptr() == address and values.shape[-1] == 0
    assert layer.get_seq_length() == 7
    assert torch.equal(keys[:, :, 5:7], new)
    assert not keys[:, :, 7:].any()


def test_reorder_crop_repeat_select_reset(config):
    cache = filled(config)
    before = [layer.keys.clone() for layer in cache.self_attention_cache.layers]

    order = torch.tensor([3, 3, 0, 1])
    cache.reorder_cache(order)
    for layer, keys in zip(cache.self_attention_cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys[order])
    cache.crop(-2)
    assert cache.get_seq_length() == 3
    assert torch.equal(cache.self_attention_cache.layers[2].keys, before[2][order][:, :, :3])
    cache.crop(0)
    assert cache.get_seq_length() == 3
    cache.batch_repeat_interleave(2)
    assert torch.equal(cache.self_attention_cache.layers[0].keys, before[0][order][:, :, :3].repeat_interleave(2, 0))
    cache.batch_select_indices(torch.tensor([0, 7]))
    assert torch.equal(cache.self_attention_cache.layers[0].keys, before[0][[3, 1]][:, :, :3])
    cache.reset()
    assert not any(layer.keys is not None and layer.keys.any() for layer in cache.self_attention_cache.layers)


def test_offload_and_prefetch_move_the_latent(config):
    layer = filled(config).self_attention_cache.layers[0]
    before = layer.keys.clone()
    layer.offload()
    layer.prefetch()
    assert torch.equal(layer.keys, before)


def test_deepcopy_is_independent(config):
    cache = filled(config)
    other = copy.deepcopy(cache)
    other.self_attention_cache.layers[0].keys.zero_()
    assert cache.self_attention_cache.layers[0].keys.any()


def test_repr_says_what_is_stored(config):
    assert "empty" in repr(LatentCache(config))
    text = repr(filled(config))
    assert "[4, 1, 5, 4] float32" in text and "nothing stored" in text
    cache = LatentCache(WhisperMLAConfig(cross_cache="key_value", decoder_layers=1))
    cache.cross_attention_cache.update(torch.zeros(1, 6, 500, 64), torch.zeros(1, 6, 500, 64), 0)
    assert "1.54 MB of keys and values" in repr(cache)


@pytest.mark.parametrize("cross_cache", ["latent", "key_value"])
def test_like_takes_the_kind_of_a_stock_cache(config, cross_cache):
    config.cross_cache = cross_cache
    text_config = config.get_text_config(decoder=True)
    dynamic = LatentCache.like(EncoderDecoderCache(DynamicCache(), DynamicCache()), config)
    assert type(dynamic.self_attention_cache) is DynamicCache
    static = LatentCache.like(
        EncoderDecoderCache(StaticCache(text_config, max_cache_len=7), StaticCache(text_config, max_cache_len=30)),
        config,
    )
    assert static.get_max_length() == 7 and static.is_compileable
    if cross_cache == "key_value":
        assert static.cross_attention_cache.get_max_length() == 30
    assert LatentCache.like(DynamicCache(), config).get_seq_length() == 0


@pytest.mark.parametrize("num_beams", [1, 5])
@pytest.mark.parametrize(
    "ranks",
    [
        {},
        {"kv_rank": [64, 48, 128, 256], "cross_kv_rank": 96},
        {"cross_cache": "key_value"},
        {"latent_dtype": "int4"},
        {"latent_dtype": ["int8", "int4"], "kv_rank": [64, 32, 128, 256], "cross_kv_rank": 96},
        {"latent_dtype": ["int4", None], "cross_cache": "key_value"},
    ],
    ids=str,
)
def test_generate_holds_exactly_the_computed_bytes(digits, speech, monkeypatch, ranks, num_beams):
    """Every tensor reachable from the cache, and what cross-attention reads, once per audio."""
    model = WhisperMLAForConditionalGeneration.from_whisper(digits, **ranks)
    cross_inputs, caches = {}, []
    original = model.model.decoder.forward

    def spy(*args, encoder_hidden_states=None, **kwargs):
        cross_inputs.clear()
        caches[:] = [kwargs[CACHE]]
        cross_inputs[encoder_hidden_states.untyped_storage().data_ptr()] = encoder_hidden_states
        return original(*args, encoder_hidden_states=encoder_hidden_states, **kwargs)

    monkeypatch.setattr(model.model.decoder, "forward", spy)
    model.generate(**speech, num_beams=num_beams)
    cache = caches[0]
    assert type(cache) is LatentCache
    held = reachable_bytes(cache)
    assert held == cache.nbytes
    if model.config.cross_cache == "latent":
        assert len(cross_inputs) == 1
        held += sum(tensor.untyped_storage().nbytes() for tensor in cross_inputs.values())
    assert held == model.cache_nbytes(batch_size=4, positions=cache.get_seq_length(), num_beams=num_beams)


def test_several_returned_sequences_read_one_latent_per_audio(digits, speech, monkeypatch):
    model = WhisperMLAForConditionalGeneration.from_whisper(digits, cross_kv_rank=96)
    shapes = set()
    original = model.model.decoder.forward

    def spy(*args, encoder_hidden_states=None, input_ids=None, **kwargs):
        shapes.add((len(input_ids), *encoder_hidden_states.shape))
        return original(*args, encoder_hidden_states=encoder_hidden_states, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(model.model.decoder, "forward", spy)
    model.generate(**speech, do_sample=True, num_return_sequences=3)
    assert shapes == {(12, 4, 500, 96)}
    shapes.clear()
    model.generate(**speech, num_beams=2, num_return_sequences=2)
    assert shapes == {(16, 4, 500, 96)}


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("latent", [{"cross_kv_rank": 96}, {"latent_dtype": [None, "int4"]}], ids=str)
def test_what_is_kept_replaces_the_encoder_output(digits, speech, num_beams, latent):
    """While decoding, nothing keeps the full encoder output of a low-rank or rounded model alive."""
    encoder_outputs, alive = [], []
    model = WhisperMLAForConditionalGeneration.from_whisper(digits, **latent)
    hooks = [
        model.model.encoder.layer_norm.register_forward_hook(
            lambda *call: encoder_outputs.append(weakref.ref(call[2]))
        ),
        model.model.decoder.layer_norm.register_forward_hook(lambda *_: alive.append(encoder_outputs[0]() is not None)),
    ]
    model.generate(**speech, max_new_tokens=4, num_beams=num_beams)
    for hook in hooks:
        hook.remove()
    assert len(encoder_outputs) == 1
    assert len(alive) >= 4 and not any(alive)


def test_large_v3_dimensions_without_allocating():
    """40.5 MB exact, 13.0 MB with kv_rank 320, 12.7 MB in int4, for float16 and 448 positions."""
    shape = {"d_model": 1280, "decoder_layers": 32, "decoder_attention_heads": 20, "encoder_attention_heads": 20}
    for ranks, megabytes in (({}, 40.5), ({"kv_rank": 320}, 13.0), ({"latent_dtype": "int4"}, 12.7)):
        with torch.device("meta"):
            model = WhisperMLAForConditionalGeneration(WhisperMLAConfig(**shape, **ranks, encoder_layers=1)).half()
        assert model.cache_nbytes() / 1e6 == pytest.approx(megabytes, abs=0.06)


def test_forward_without_generate_makes_a_latent_cache():
    model = WhisperMLAForConditionalGeneration.from_whisper(random_whisper(encoder_layers=3), kv_rank=8)
    outputs = model(torch.randn(1, 8, 60), decoder_input_ids=torch.tensor([[3, 4]]), use_cache=True)
    assert isinstance(outputs.past_key_values, LatentCache)
    assert len(outputs.past_key_values.self_attention_cache.layers) == 2
    assert outputs.past_key_values.nbytes == 2 * 2 * 8 * 4
