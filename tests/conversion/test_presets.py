"""Presets stand for fields of the configuration, and for nothing that was given too."""

import pytest

from tests.conftest import random_whisper
from whisper_mla.conversion import PRESETS, from_whisper


@pytest.mark.parametrize(
    ("preset", "latent_dtype"), [("lossless", None), ("near-lossless", "int8"), ("small", "int4"), (None, None)]
)
def test_what_a_preset_stands_for(preset, latent_dtype):
    config = from_whisper(random_whisper(), preset=preset).config
    assert (config.latent_dtype, config.kv_rank, config.cross_kv_rank) == (latent_dtype, None, None)


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"latent_dtype": "int8"}, 64),
        ({"preset": "near-lossless"}, 64),
        ({"latent_dtype": "int8", "kv_rank": 32}, 32),
        ({"latent_dtype": "int8", "latent_group_size": 32}, 32),
        ({"latent_dtype": ["int8", "int4"]}, 32),
        ({"latent_dtype": "int4", "latent_group_size": 64}, 64),
    ],
    ids=str,
)
def test_values_that_are_rounded_together(fields, size):
    assert from_whisper(random_whisper(d_model=64), **fields).config.latent_group_size == size


def test_every_preset_is_one_of_those_above():
    assert list(PRESETS) == ["lossless", "near-lossless", "small", "smallest"]
    assert PRESETS["smallest"] == {"latent_dtype": "mixed"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "tiny"}, "preset='tiny': expected one of 'lossless', 'near-lossless', 'small', 'smallest'"),
        ({"preset": "small", "kv_rank": 8}, "preset='small' settles ranks and latent_dtype: leave out kv_rank"),
        ({"preset": "small", "latent_dtype": "int8"}, "leave out latent_dtype"),
        ({"preset": "lossless", "cache_cut": 0.9}, "leave out the budget"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        from_whisper("no-such-owner/no-such-checkpoint", **arguments)
