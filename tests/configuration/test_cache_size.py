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
    ],
)
def test_large_v3_in_float16(config, beams, megabytes):
    assert cache_size(config, num_beams=beams).total / 1e6 == pytest.approx(megabytes, abs=0.06)


def test_cross_latent_is_counted_once_per_audio():
    config = WhisperMLAConfig(cross_kv_rank=100)
    one, five = cache_size(config, batch_size=3), cache_size(config, batch_size=3, num_beams=5)
    assert one.cross_attention == five.cross_attention == 3 * 1500 * 100 * 2
    assert five.self_attention == 5 * one.self_attention


@pytest.mark.parametrize("argument", ["batch_size", "positions", "num_beams", "bytes_per_value"])
def test_arguments_below_one_are_named(argument):
    with pytest.raises(ValueError, match=f"{argument}=0"):
        cache_size(WhisperConfig(), **{argument: 0})
