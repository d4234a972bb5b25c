import pytest
from transformers import WhisperConfig

from whisper_mla.configuration import WhisperMLAConfig, cache_size

LARGE = {"d_model": 1280, "decoder_layers": 32, "decoder_attention_heads": 20, "encoder_attention_heads": 20}


@pytest.mark.parametrize(
    ("config", "beams", "megabytes"),
    [
        (WhisperConfig(**LARGE), 1, 319.2),
        (WhisperConfig(**LARGE), 5, 1595.8),
        (WhisperMLAConfig(**LARGE), 1, 40.5),
        (WhisperMLAConfig(**LARGE, kv_rank=320), 1, 13.0),
        (WhisperMLAConfig(**LARGE, kv_rank=320), 5, 49.7),
        (WhisperMLAConfig(**LARGE, kv_rank=320, cross_kv_rank=320), 1, 10.1),
        (WhisperMLAConfig(**LARGE, kv_rank=320, cross_cache="key_value"), 1, 254.9),
        # 448 positions of 32 layers and 1500 frames of 1280 values: 5 bits each, 9 and 5 bits, 6 bits
        (WhisperMLAConfig(**LARGE, latent_dtype="int4"), 1, (448 * 32 + 1500) * 800 / 1e6),
        (WhisperMLAConfig(**LARGE, latent_dtype=["int8", "int4"]), 1, (448 * 32 * 1440 + 1500 * 800) / 1e6),
        (WhisperMLAConfig(**LARGE, latent_dtype="int4", latent_group_size=16), 1, (448 * 32 + 1500) * 960 / 1e6),
    ],
)
def test_large_v3_in_float16(config, beams, megabytes):
    assert cache_size(config, num_beams=beams).total / 1e6 == pytest.approx(megabytes, abs=0.06)


def test_cross_latent_is_counted_once_per_audio():
    config = WhisperMLAConfig(cross_kv_rank=100)
    one, five = cache_size(config, batch_size=3), cache_size(config, batch_size=3, num_beams=5)
    assert one.cross_attention == five.cross_attention == 3 * 1500 * 100 * 2
    assert five.self_attention == 5 * one.self_attention


def test_rounded_latents_take_the_same_in_every_dtype():
    config = WhisperMLAConfig(latent_dtype=["int4", None])
    half, single = (cache_size(config, bytes_per_value=size) for size in (2, 4))
    assert half.self_attention == single.self_attention == 448 * 4 * (384 * 4 // 8 + 384 // 32 * 4)
    assert 2 * half.cross_attention == single.cross_attention


@pytest.mark.parametrize("argument", ["batch_size", "positions", "num_beams", "bytes_per_value"])
def test_arguments_below_one_are_named(argument):
    with pytest.raises(ValueError, match=f"{argument}=0"):
        cache_size(WhisperConfig(), **{argument: 0})
