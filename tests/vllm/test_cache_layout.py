"""Where latents lie in vLLM's cache; vLLM is not needed."""

import itertools

import pytest

from whisper_mla import WhisperMLAConfig
from whisper_mla.configuration.presets import whisper_config
from whisper_mla.vllm_plugin.cache_layout import cache_layout, matched_widths


def base(**latent_fields) -> WhisperMLAConfig:
    return WhisperMLAConfig.from_whisper_config(whisper_config("base"), **latent_fields)


def test_an_exact_model_stores_every_layers_input_and_the_encoder_output_once():
    layout = cache_layout(base())
    assert (layout.text_width, layout.audio_width) == (6 * 512, 512)
    assert layout.text_starts == (0, 512, 1024, 1536, 2048, 2560)
    assert layout.audio_starts == (0,) * 6


def test_a_shared_rank_is_stored_once_for_all_layers():
    layout = cache_layout(base(kv_rank=128, cross_kv_rank=128))
    assert (layout.text_width, layout.audio_width) == (6 * 128, 128)
    assert layout.audio_starts == (0,) * 6


def test_lists_of_ranks_lie_side_by_side():
    ranks, cross = [64, 48, 128, 256, 8, 16], [32, 16, 8, 64, 128, 2]
    layout = cache_layout(base(kv_rank=ranks, cross_kv_rank=cross, cross_kv_shared=False))
    assert layout.text_starts == (0, 64, 112, 240, 496, 504)
    assert layout.audio_starts == (0, 32, 48, 56, 120, 248)
    assert layout.text_width >= 520 and layout.audio_width >= 250
    assert layout.text_width == 2 * layout.audio_width


def test_full_keys_and_values_of_the_audio_are_served_as_the_encoder_output():
    assert cache_layout(base(cross_cache="key_value")) == cache_layout(base())


@pytest.mark.parametrize(
    ("needed", "widths"),
    [
        ((384, 96), (384, 96)),
        ((496, 96), (500, 100)),  # 5 times; 6 times 96 would cost more text
        ((100, 100), (100, 100)),
        ((96, 496), (100, 500)),
        ((1, 7), (1, 7)),
    ],
)
def test_widths_are_padded_little(needed, widths):
    assert matched_widths(*needed, positions=448, frames=1500) == widths


def test_no_pair_of_widths_is_cheaper():
    for text, audio in itertools.product(range(1, 25), repeat=2):
        found = matched_widths(text, audio, 448, 1500)
        pairs = itertools.product(range(text, 2 * text + audio), range(audio, 2 * audio + text))
        whole = [(t, a) for t, a in pairs if t % a == 0 or a % t == 0]
        best = min(t * 448 + a * 1500 for t, a in whole)
        assert found in whole
        assert found[0] * 448 + found[1] * 1500 == best, (text, audio)
