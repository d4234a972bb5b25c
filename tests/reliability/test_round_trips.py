"""2,000 random configurations survive convert, save, load, generate: same configuration, same bits, same tokens."""

import os
import tempfile
from unittest import mock

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSpeechSeq2Seq

from tests.conftest import random_features, random_whisper
from whisper_mla import LatentCache, WhisperMLAForConditionalGeneration
from whisper_mla.configuration import cache_size
from whisper_mla.latent_cache import LatentLayer, LatentStaticLayer
from whisper_mla.transformers_releases import CACHE

pytestmark = pytest.mark.properties

# 2,000; fewer only where a run says so (CI at the oldest Transformers).
EXAMPLES = int(os.environ.get("WHISPER_MLA_EXAMPLES", "2000"))
PARTS = 4  # so that several processes share them
NEW_TOKENS = 3
VOCABULARY = 40


@st.composite
def shapes(draw) -> dict:
    """Dimensions of a stock Whisper; both stacks have their own number of layers, heads and hidden units."""
    d_model = draw(st.sampled_from([8, 12, 16, 24]))
    heads = [count for count in (1, 2, 3, 4) if d_model % count == 0]
    return {
        "d_model": d_model,
        "vocab_size": VOCABULARY,
        "num_mel_bins": draw(st.sampled_from([3, 4])),
        "encoder_layers": draw(st.integers(1, 2)),
        "decoder_layers": draw(st.integers(1, 2)),
        "encoder_attention_heads": draw(st.sampled_from(heads)),
        "decoder_attention_heads": draw(st.sampled_from(heads)),
        "encoder_ffn_dim": draw(st.sampled_from([4, 10])),
        "decoder_ffn_dim": draw(st.sampled_from([4, 10])),
        "max_source_positions": draw(st.integers(2, 6)),
        "max_target_positions": draw(st.integers(8, 12)),
        "scale_embedding": draw(st.booleans()),
    }


@st.composite
def latents(draw, shape: dict) -> dict:
    """Arguments of `from_whisper`: every kind of latent, with None, one rank or one per layer."""
    rank = st.integers(1, shape["d_model"])

    def ranks(layers: int):
        return st.none() | rank | st.lists(rank, min_size=layers, max_size=layers)

    fields = {
        "kv_rank": draw(ranks(shape["decoder_layers"])),
        "audio_kv_rank": draw(ranks(shape["encoder_layers"])),
    }
    kind = draw(st.sampled_from(["shared", "per layer", "key_value"]))
    if kind == "shared":
        fields["cross_kv_rank"] = draw(st.none() | rank)
    elif kind == "per layer":
        fields |= {"cross_kv_shared": False, "cross_kv_rank": draw(ranks(shape["decoder_layers"]))}
    else:
        fields["cross_cache"] = "key_value"
    return fields


@st.composite
def examples(draw) -> dict:
    shape = draw(shapes())
    return {
        "seed": draw(st.integers(0, 99)),
        "shape": shape,
        "latents": draw(latents(shape)),
        "dtype": draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])),
        "is_static": draw(st.booleans()),
        "num_beams": draw(st.integers(1, 3)),
        "batch": draw(st.integers(1, 2)),
        "shard": draw(st.sampled_from(["50GB", "2KB"])),
    }


def generate(model, features, example) -> tuple[torch.Tensor, LatentCache]:
    """Tokens, and the cache that `generate` made by itself."""
    made = []
    prepare = WhisperMLAForConditionalGeneration._prepare_cache_for_generation

    def keep(self, generation_config, model_kwargs, *args, **kwargs):
        prepare(self, generation_config, model_kwargs, *args, **kwargs)
        made.append(model_kwargs[CACHE])

    # Without the padding and end tokens, which Whisper cuts off, every sequence has the same length.
    way = {"num_beams": example["num_beams"], "max_new_tokens": NEW_TOKENS, "suppress_tokens": [0, 2]}
    if example["is_static"]:
        way["cache_implementation"] = "static"
    with mock.patch.object(WhisperMLAForConditionalGeneration, "_prepare_cache_for_generation", keep):
        tokens = model.generate(features, **way)
    assert tokens.shape == (len(features), NEW_TOKENS)
    (cache,) = made
    return tokens, cache


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


def assert_right_cache(cache: LatentCache, model, example) -> None:
    config = model.config
    kind = LatentStaticLayer if example["is_static"] else LatentLayer
    assert type(cache) is LatentCache
    assert [type(layer) for layer in cache.self_attention_cache.layers] == [kind] * config.decoder_layers
    # The last token is never fed back, so as many positions are cached as tokens are generated.
    size = cache_size(config, example["batch"], NEW_TOKENS, example["num_beams"], model.dtype.itemsize)
    in_cross_cache = size.cross_attention if config.cross_cache == "key_value" else 0
    assert cache.nbytes == size.self_attention + in_cross_cache


@pytest.mark.parametrize("part", range(PARTS))
def test_round_trip(part):
    as_many = settings(
        max_examples=EXAMPLES // PARTS,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    hypothesis.seed(part)(as_many(given(examples())(check_round_trip)))()


def check_round_trip(example) -> None:
    stock = random_whisper(example["seed"], **example["shape"]).to(example["dtype"])
    features = random_features(stock, example["batch"])
    model = WhisperMLAForConditionalGeneration.from_whisper(stock, **example["latents"])
    tokens, cache = generate(model, features, example)
    assert_right_cache(cache, model, example)

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, max_shard_size=example["shard"])
        again = AutoModelForSpeechSeq2Seq.from_pretrained(folder, dtype="auto")

    assert type(again) is WhisperMLAForConditionalGeneration
    for field, value in {**example["shape"], **example["latents"]}.items():
        assert getattr(again.config, field) == value, field
    before, after = model.config.to_dict(), again.config.to_dict()
    for field in ("_name_or_path", "architectures", "auto_map", "transformers_version"):  # said by saving
        before.pop(field, None), after.pop(field, None)
    assert after == before
    assert again.generation_config.to_dict() == model.generation_config.to_dict()
    assert again.dtype == example["dtype"]

    weights = model.state_dict()
    assert again.state_dict().keys() == weights.keys()
    for name, tensor in again.state_dict().items():
        assert tensor.dtype == weights[name].dtype, name
        assert torch.equal(bits(tensor), bits(weights[name])), name

    loaded_tokens, loaded_cache = generate(again, features, example)
    assert torch.equal(loaded_tokens, tokens)
    assert_right_cache(loaded_cache, again, example)


def test_the_examples_differ():
    """Greedy decoding of these models gives many different tokens, so equal tokens say something."""
    seen = set()
    for seed in range(20):
        stock = random_whisper(seed, d_model=8, vocab_size=VOCABULARY, max_target_positions=8)
        seen.update(stock.generate(random_features(stock), max_new_tokens=NEW_TOKENS).flatten().tolist())
    assert len(seen) > 10
