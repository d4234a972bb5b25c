"""Bits and ranks chosen together under a budget."""

from itertools import product

import pytest

from tests.conftest import random_whisper
from tests.conversion.conftest import random_statistics
from whisper_mla.configuration import cache_size
from whisper_mla.conversion import ConversionError, from_whisper
from whisper_mla.conversion.source.latents import latents_of

GROUPS = {"latent_group_size": 8, "force": True, "refit": False}


@pytest.fixture(scope="module")
def model():
    return random_whisper(max_source_positions=16)


@pytest.fixture(scope="module")
def statistics(model):
    return random_statistics(model)


def total(model) -> int:
    return cache_size(model.config, positions=40, bytes_per_value=4).total


def kl(model) -> float:
    return model.conversion_report["quality"]["kl_per_token"]


@pytest.mark.parametrize("cut", [0.8, 0.93])
def test_no_pair_of_dtypes_within_the_budget_is_closer_to_stock(model, statistics, cut):
    chosen = from_whisper(model, cache_cut=cut, latent_dtype="auto", calibration=statistics, **GROUPS)
    limit = (1 - cut) * total(model)
    assert total(chosen) <= limit
    others = {}
    for pair in product((None, "int8", "int4"), repeat=2):
        try:
            other = from_whisper(model, cache_cut=cut, latent_dtype=list(pair), calibration=statistics, **GROUPS)
        except ConversionError:
            continue
        assert total(other) <= limit
        others[pair] = kl(other)
    assert kl(chosen) == pytest.approx(min(others.values()), rel=1e-6)
    assert len(set(others.values())) > 3
    names = " and ".join(dtype or "float32" for dtype in chosen.config.latent_dtypes)
    assert (
        f"{names} latents (text and audio) of {len(others)} pairs" in chosen.conversion_record["rank_choice"]["reason"]
    )


def test_the_smallest_cache_within_a_bound_on_quality(model, statistics):
    arguments = {"max_kl": 0.5, "calibration": statistics, "force": True, "refit": False}
    chosen = from_whisper(model, latent_dtype="auto", latent_group_size=8, **arguments)
    plain = from_whisper(model, **arguments)
    assert kl(chosen) <= 0.5
    assert total(chosen) < total(plain)


def test_what_a_rank_costs_is_what_is_held(model):
    for dtype in (None, "int8", "int4", ["int8", "int4"]):
        for shared in (True, False):
            ranks = {"kv_rank": 16, "cross_kv_rank": 8, "cross_kv_shared": shared}
            rounding = {"latent_dtype": dtype, "latent_group_size": 8} if dtype else {}
            small = from_whisper(model, **ranks, **rounding, method="joint_svd")
            assert sum(latent.rank * latent.bytes_per_rank(4) for latent in latents_of(small.config)) == total(small)


def test_refusals(model, statistics):
    with pytest.raises(ConversionError, match=r"cache_cut=0.9999: cannot be met\. The smallest possible cache"):
        from_whisper(model, cache_cut=0.9999, latent_dtype="auto", calibration=statistics, **GROUPS)
    with pytest.raises(ConversionError, match="latent_dtype='auto': is chosen on held-out audio"):
        from_whisper(model, cache_cut=0.9, latent_dtype="auto", method="joint_svd", **GROUPS)
    with pytest.raises(ValueError, match="latent_group_size=64: does not divide"):
        from_whisper(model, cache_cut=0.9, latent_dtype="auto", latent_group_size=64, calibration=statistics)


MIXED = {"latent_dtype": "mixed", "latent_group_size": 8, "force": True}


def test_mixed_bits_keep_every_direction_that_the_budget_pays(model, statistics):
    whole = from_whisper(model, cache_bytes="1MB", calibration=statistics, **MIXED)
    assert whole.config.kv_ranks == [model.config.d_model] * model.config.decoder_layers
    assert set(whole.config.cross_kv_bits) == {8} and not whole.config.cross_latent_is_encoder_output
    small = from_whisper(model, cache_cut=0.95, calibration=statistics, **MIXED)
    assert total(small) <= 0.05 * total(model)
    # Eight bits lose 1e-4 of the variance of normal values; what is left here are rare values beyond the outer codes.
    assert 0 < kl(whole) < kl(small) / 20
    default = from_whisper(model, calibration=statistics, **MIXED)
    bits = sum(map(sum, default.config.kv_bits)) * 40 + sum(default.config.cross_kv_bits) * 16
    positions = 40 * model.config.decoder_layers + 16
    # 3.5 bits per value, of which the scales take half a bit in a model this narrow.
    assert bits * 8 / 8 + 2 * positions <= 3.5 / 8 * model.config.d_model * positions


def test_mixed_bits_without_audio_or_beyond_the_budget(model, statistics):
    with pytest.raises(ConversionError, match="cannot be met with latent_dtype='mixed'"):
        from_whisper(model, cache_bytes=100, calibration=statistics, **MIXED)
    with pytest.raises(ConversionError, match="a processor is needed"):
        from_whisper(model, **MIXED)
