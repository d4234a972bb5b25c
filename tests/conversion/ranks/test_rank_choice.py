"""Ranks under a budget, from the size that a user writes to the cache of the model."""

import copy
import importlib
from dataclasses import replace

import pytest
import torch

from tests.conftest import random_whisper
from tests.conversion.tiny import random_statistics
from tests.rounding import same_divergence
from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.configuration.cache_size import cache_size
from whisper_mla.conversion import ConversionError, from_whisper, to_whisper
from whisper_mla.conversion.ranks.budget import Budget, parse_bytes
from whisper_mla.conversion.ranks.quality import HeldOut

pytestmark = pytest.mark.numerics

# Float32: 4 bytes × (40 positions × 2 × 32 × 2 layers + 30 frames × 2 × 32 × 2 layers).
STOCK_BYTES = 4 * (40 + 30) * 128
# Bytes of one unit of rank in one layer's self-attention, and in the cross-attention latent.
SELF, CROSS = 4 * 40, 4 * 30


def cache_bytes_of(model) -> int:
    return cache_size(model.config, positions=40, bytes_per_value=4).total


def convert(model, statistics, **arguments):
    return from_whisper(model, calibration=statistics, force=True, **{"refit": False, **arguments})


def refusal(model, statistics=None, **arguments) -> str:
    with pytest.raises(ValueError) as error:
        from_whisper(model, calibration=statistics, force=True, refit=False, **arguments)
    return str(error.value)


@pytest.mark.parametrize(
    ("size", "expected"),
    [(12_000, 12_000), ("12000", 12_000), ("12MB", 12_000_000), (" 1.5 KiB ", 1536), ("0.5gib", 2**29), ("7 b", 7)],
)
def test_sizes(size, expected):
    assert parse_bytes(size) == expected


@pytest.mark.parametrize("size", ["", "MB", "12 apples", "-3", "1e6", "1.2.3MB"])
def test_what_is_no_size(size):
    with pytest.raises(ConversionError, match=r"cache_bytes=.*: expected bytes, or a size such as 12MB"):
        parse_bytes(size)


def test_stock_cache(tiny):
    assert cache_size(tiny.config, positions=40, bytes_per_value=4).total == STOCK_BYTES


@pytest.mark.parametrize("method", ["joint_svd", "covariance", "fisher"])
@pytest.mark.parametrize("cut", [0.7, 0.85, 0.93])
def test_cache_cut(tiny, tiny_statistics, method, cut):
    model = convert(tiny, tiny_statistics, cache_cut=cut, method=method)
    report = model.conversion_report
    limit = STOCK_BYTES * (1 - cut)
    assert report["cache"]["model_bytes"] == cache_bytes_of(model) <= limit
    ranks = [*model.config.kv_ranks, model.config.cross_kv_ranks[0]]
    assert all(rank % 4 == 0 for rank in ranks)
    kl = report["rank_choice_kl"]
    chosen = report["rank_choice"]["allocation"]
    assert set(kl) == {"uniform", "greedy", "measured"} and kl[chosen] == min(kl.values())
    assert report["rank_choice"]["reason"].startswith(f"{chosen} ranks: KL to stock")
    assert report["rank_choice"] == model.conversion_record["rank_choice"]
    if chosen != "uniform":  # not one step more would have fitted
        left = limit - cache_bytes_of(model)
        assert all(left < 4 * cost for cost, rank in zip((SELF, SELF, CROSS), ranks, strict=True) if rank < 32)
    else:
        assert len(set(ranks)) == 1 and limit - cache_bytes_of(model) < 4 * (2 * SELF + CROSS)


@pytest.mark.parametrize("size", [11_000, "11KB", "10.75KiB"])
def test_cache_bytes(tiny, tiny_statistics, size):
    model = convert(tiny, tiny_statistics, cache_bytes=size)
    assert 10_000 < cache_bytes_of(model) <= parse_bytes(size)


def test_one_rank_given_and_the_other_chosen(tiny, tiny_statistics):
    model = convert(tiny, tiny_statistics, cache_bytes=8000, kv_rank=[12, 20])
    assert model.config.kv_rank == [12, 20]
    assert model.config.cross_kv_rank == (8000 - 32 * SELF) // CROSS // 4 * 4 == 24
    exact_cross = convert(tiny, tiny_statistics, cache_bytes=9000, cross_kv_rank=32)
    assert exact_cross.config.cross_kv_ranks == [32, 32]
    assert 9000 - 4 * SELF < cache_bytes_of(exact_cross) <= 9000
    low_cross = convert(tiny, tiny_statistics, cache_bytes=9000, cross_kv_rank=4)
    assert low_cross.config.cross_kv_rank == 4 and sum(low_cross.config.kv_ranks) > sum(exact_cross.config.kv_ranks)


def test_bounds_and_multiples(tiny, tiny_statistics):
    model = convert(tiny, tiny_statistics, cache_cut=0.8, rank_multiple=3, min_rank=8, max_rank=20)
    ranks = [*model.config.kv_ranks, model.config.cross_kv_ranks[0]]
    assert all(rank % 3 == 0 and 9 <= rank <= 18 for rank in ranks)
    assert cache_bytes_of(model) <= 0.2 * STOCK_BYTES


def test_the_better_allocation_is_chosen(tiny_statistics):
    """A layer whose keys and values say next to nothing needs no rank; only the greedy allocation can tell."""
    model = random_whisper()
    with torch.no_grad():
        for name in ("k_proj", "v_proj"):
            getattr(model.model.decoder.layers[0].self_attn, name).weight.mul_(1e-3)
    statistics = random_statistics(model)
    arguments = {"cross_kv_rank": 32, "cache_bytes": 32 * CROSS + 32 * SELF}
    converted = convert(model, statistics, **arguments)
    assert converted.config.kv_ranks == [4, 28]
    report = converted.conversion_report
    assert report["rank_choice"]["allocation"] == "greedy"
    assert report["rank_choice_kl"]["greedy"] < report["rank_choice_kl"]["uniform"] / 10
    assert same_divergence(report["quality"]["kl_per_token"], report["rank_choice_kl"]["greedy"])
    unheard = copy.copy(statistics)
    unheard.held_out = []
    without = convert(model, unheard, **arguments).conversion_report
    assert without["rank_choice"] == {
        "allocation": "greedy",
        "reason": "greedy ranks; no held-out audio to compare on",
    }
    without = convert(model, unheard, method="covariance", **arguments).conversion_report
    assert without["rank_choice"]["allocation"] == "uniform" and without["quality"] is None


def test_predictions_are_corrected_by_measurements():
    """Keys and values of one layer are large, but nothing of them is used: `covariance` cannot know, KL can."""
    model = random_whisper()
    with torch.no_grad():
        unheard = model.model.decoder.layers[0].self_attn
        unheard.k_proj.weight.mul_(30), unheard.v_proj.weight.mul_(30)
        unheard.q_proj.weight.mul_(1e-3), unheard.q_proj.bias.mul_(1e-3), unheard.out_proj.weight.mul_(1e-4)
    arguments = {"cross_kv_rank": 32, "cache_bytes": 32 * CROSS + 32 * SELF, "method": "covariance"}
    converted = convert(model, random_statistics(model), **arguments)
    report = converted.conversion_report
    assert report["rank_choice"]["allocation"] == "measured" and converted.config.kv_ranks == [4, 28]
    kl = report["rank_choice_kl"]
    assert kl["measured"] < kl["uniform"] / 2 < kl["greedy"]


def test_an_option_is_chosen_with_the_ranks(tiny, tiny_statistics):
    """No option that is tried gives a better conversion at the ranks that go with it."""
    arguments = {"cache_cut": 0.85, "method": "fisher"}
    report = convert(tiny, tiny_statistics, **arguments).conversion_report
    tried = {trial["floor"]: trial["kl"] for trial in report["option_search"]}
    assert list(tried) == [0.01, 0.1, 1.0]
    assert report["method_options"]["floor"] == min(tried, key=lambda floor: tried[floor])
    for floor, kl in tried.items():
        given = convert(tiny, tiny_statistics, **arguments, floor=floor).conversion_report
        assert given["option_search"] == []
        found = given["rank_choice_kl"]
        assert same_divergence(min(found["uniform"], found["greedy"]), kl)


def test_a_budget_without_calibration(tiny):
    model = from_whisper(tiny, cache_cut=0.85)
    assert model.config.kv_ranks == [model.config.cross_kv_ranks[0]] * 2
    assert "no held-out audio" in model.conversion_record["rank_choice"]["reason"]


# max_kl


def quality_of(tiny, statistics, model) -> float:
    return HeldOut(tiny, statistics.held_out).measure(model).kl


@pytest.mark.parametrize("bound", [1e-3, 0.1])
def test_max_kl_is_met(tiny, tiny_statistics, bound):
    model = convert(tiny, tiny_statistics, max_kl=bound)
    assert quality_of(tiny, tiny_statistics, model) <= bound * 1.001
    assert cache_bytes_of(model) < 0.5 * STOCK_BYTES
    assert "at most" in model.conversion_report["rank_choice"]["reason"]


@pytest.mark.parametrize("rounding", [1.0, 1.115, 3.0])
def test_a_bound_that_rounding_breaks_is_told(tiny, tiny_statistics, monkeypatch, caplog, rounding):
    class Rounded(HeldOut):
        def measure(self, model, *arguments):
            found = super().measure(model, *arguments)
            is_converted = isinstance(model, WhisperMLAForConditionalGeneration)
            return replace(found, kl=0.09 * rounding) if is_converted else found

    monkeypatch.setattr(importlib.import_module("whisper_mla.conversion.stages"), "HeldOut", Rounded)
    with caplog.at_level("WARNING"):
        convert(tiny, tiny_statistics, max_kl=0.1)
    told = "max_kl=0.1: was met before the weights were rounded to torch.float32; the model has 0.27." in caplog.text
    assert told == (rounding == 3.0)


def test_a_looser_bound_gives_a_smaller_cache(tiny, tiny_statistics):
    sizes = [cache_bytes_of(convert(tiny, tiny_statistics, max_kl=bound)) for bound in (1e-3, 0.1, 1.0, 100.0)]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) > 2
    assert sizes[-1] == 4 * (2 * SELF + CROSS)  # anything goes: the smallest ranks


@pytest.mark.parametrize("given", [{"cross_kv_rank": 20}, {"kv_rank": 24}, {"audio_kv_rank": 24}], ids=str)
def test_max_kl_counts_the_ranks_that_are_given(tiny, tiny_statistics, given):
    own = quality_of(tiny, tiny_statistics, convert(tiny, tiny_statistics, **given, floor=0.1))
    assert own > 1e-4
    model = convert(tiny, tiny_statistics, **given, max_kl=3 * own, floor=0.1)
    assert quality_of(tiny, tiny_statistics, model) <= 3 * own * 1.001
    assert model.conversion_report["cache"]["model_bytes"] < cache_bytes_of(from_whisper(tiny))
    message = refusal(tiny, tiny_statistics, **given, max_kl=own / 10, floor=0.1)
    assert f"max_kl={own / 10}: cannot be met" in message and f"The best found is {own:.3g}" in message


def test_max_kl_that_cannot_be_met_within_max_rank(tiny, tiny_statistics):
    message = refusal(tiny, tiny_statistics, max_kl=1e-9, max_rank=24, floor=0.1)
    best = quality_of(tiny, tiny_statistics, convert(tiny, tiny_statistics, kv_rank=24, cross_kv_rank=24, floor=0.1))
    assert "max_kl=1e-09: cannot be met" in message and "max_rank" in message
    shown = float(message.rsplit(" ", 1)[1].rstrip("."))
    assert shown == float(f"{shown:.3g}")
    assert abs(shown - best) <= 0.005 * best or same_divergence(shown, best)


def test_max_kl_needs_held_out_audio(tiny, tiny_statistics):
    unheard = copy.copy(tiny_statistics)
    unheard.held_out = []
    assert "needs held-out audio. Calibrate on at least two clips" in refusal(tiny, unheard, max_kl=0.1)


# Refused before the weights are read


@pytest.fixture
def no_weights(tiny, tmp_path):
    """A checkpoint of which only the configuration can be read."""
    tiny.save_pretrained(tmp_path / "source")
    (tmp_path / "source" / "model.safetensors").write_bytes(b"")
    return tmp_path / "source"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"cache_cut": 0.9, "cache_bytes": "1MB"}, "cache_cut, cache_bytes: give one of them"),
        ({"cache_cut": 0.9, "max_kl": 0.1}, "cache_cut, max_kl: give one of them"),
        ({"cache_cut": 1.0}, "cache_cut=1.0: expected a share between 0 and 1"),
        ({"cache_cut": 95}, "cache_cut=95: expected a share"),
        ({"cache_cut": float("nan")}, "cache_cut=nan: expected a share"),
        ({"cache_cut": "0.9"}, "cache_cut='0.9': expected a share"),
        ({"cache_bytes": "many"}, "cache_bytes='many': expected bytes"),
        ({"cache_bytes": 0}, "cache_bytes=0: expected at least one byte"),
        ({"max_kl": -0.1}, "max_kl=-0.1: expected a positive number"),
        ({"max_kl": float("inf")}, "max_kl=inf"),
        ({"max_kl": 0.1}, "max_kl needs calibration"),
        ({"rank_multiple": 8}, "rank_multiple=8: only with cache_cut, cache_bytes or max_kl"),
        ({"cache_cut": 0.9, "min_rank": 0}, "min_rank=0: expected an integer, at least 1"),
        ({"cache_cut": 0.9, "max_rank": True}, "max_rank=True: expected an integer"),
        ({"cache_cut": 0.9, "min_rank": 33}, "lies between min_rank=33 and max_rank=32"),
        ({"cache_cut": 0.9, "min_rank": 9, "max_rank": 11}, "No multiple of rank_multiple=4 lies between min_rank=9"),
        ({"cache_cut": 0.9, "kv_rank": 8, "cross_kv_rank": 8}, "give one of them at most"),
        ({"cache_cut": 0.9, "cross_kv_shared": False}, "needs the shared cross-attention latent"),
        ({"cache_cut": 0.9, "cross_cache": "key_value"}, "needs the shared cross-attention latent"),
        ({"cache_cut": 0.9, "preserved_key_dims": 2}, "preserved_key_dims needs given ranks"),
    ],
    ids=str,
)
def test_contradictions_and_bad_values(no_weights, arguments, expected):
    assert expected in refusal(no_weights, **arguments)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            {"cache_cut": 0.97},
            f"cache_cut=0.97: cannot be met. The smallest possible cache is {4 * (2 * SELF + CROSS):,}",
        ),
        ({"cache_bytes": "1KB"}, "cache_bytes=1KB: cannot be met. The smallest possible cache is 1,760 bytes"),
        ({"cache_cut": 0.9, "min_rank": 9}, "is 5,280 bytes (a cut of 0.8527), at rank 12; see min_rank"),
        ({"cache_cut": 0.9, "kv_rank": 32}, f"is {32 * 2 * SELF + 4 * CROSS:,} bytes"),
    ],
    ids=str,
)
def test_budgets_that_cannot_be_met_before_anything_is_calibrated(tiny, arguments, expected):
    message = refusal(tiny, [torch.ones(16_000)], processor=object(), **arguments)
    assert expected in message


def test_budget_fields_alone():
    assert not Budget().is_given and Budget(max_kl=1.0).is_given
    assert (Budget().multiple(256), Budget().multiple(768), Budget(rank_multiple=5).multiple(768)) == (4, 16, 5)


def test_the_result_exports_like_any_other(tiny, tiny_statistics):
    model = convert(tiny, tiny_statistics, cache_cut=0.85)
    stock = to_whisper(model)
    held_out = HeldOut(stock, tiny_statistics.held_out)
    assert held_out.measure(model).kl < 1e-7
