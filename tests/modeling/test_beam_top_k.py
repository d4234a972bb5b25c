"""The best continuations of beams: what `torch.topk` finds, in its place in generate()."""

import pytest
import torch

from tests.conftest import random_features, random_whisper
from whisper_mla import WhisperMLAForConditionalGeneration, beam_top_k
from whisper_mla.beam_top_k import QuickTopK, top_k


@pytest.fixture
def few_are_worth_it(monkeypatch):
    """Parts of 8 scores, so that small matrices are looked through in parts."""
    monkeypatch.setattr(beam_top_k, "_PART", 8)
    monkeypatch.setattr(beam_top_k, "_WORTH_IT", 1)


@pytest.fixture
def calls(monkeypatch):
    """Sizes of what `torch.topk` is asked for."""
    sizes, topk = [], torch.topk

    def counted(scores, k, *args, **kwargs):
        sizes.append(scores.shape[-1])
        return topk(scores, k, *args, **kwargs)

    monkeypatch.setattr(torch, "topk", counted)
    return sizes


def scores(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, length, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rows", "length", "k"), [(1, 24, 1), (3, 100, 4), (2, 103, 10), (2, 96, 10), (1, 5000, 12)])
def test_values_and_places_are_those_of_pytorch(rows, length, k, few_are_worth_it, calls):
    for seed in range(20):
        given = scores(rows, length, seed)
        before = given.clone()
        found, places = top_k(given, k)
        assert calls and max(calls) < length  # the candidates alone
        calls.clear()
        expected = torch.topk(given, k)
        assert torch.equal(found, expected.values) and torch.equal(places, expected.indices)
        assert torch.equal(given, before)
        calls.clear()


def test_a_large_matrix_as_it_is(calls):
    given = scores(2, 5 * 51865)
    given[:, 7::2] = -torch.inf
    found, places = top_k(given, 10)
    assert max(calls) < 4000
    expected = torch.topk(given, 10)
    assert torch.equal(found, expected.values) and torch.equal(places, expected.indices)


@pytest.mark.parametrize("special", ["equal", "forbidden", "nan"])
def test_what_pytorch_may_order_in_any_way_is_left_to_it(special, few_are_worth_it, calls):
    given = scores(2, 100)
    if special == "equal":
        given[1, [3, 90]] = 5.0
    elif special == "forbidden":
        given[1, 2:] = -torch.inf
    else:
        given[0, 50] = torch.nan
    found, places = top_k(given, 3)
    assert calls[-1] == 100
    expected = torch.topk(given, 3)
    torch.testing.assert_close(found, expected.values, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(places, expected.indices)


def test_small_ones_and_other_calls_are_left_to_pytorch(few_are_worth_it, calls):
    top_k(scores(1, 31), 3)
    with QuickTopK():
        torch.topk(scores(1, 100)[0], k=3)
        torch.topk(scores(1, 100), k=3, largest=False)
    assert calls == [31, 100, 100]


def test_beams_use_it_and_stay_those_of_stock(few_are_worth_it, monkeypatch):
    stock = random_whisper()
    model = WhisperMLAForConditionalGeneration.from_whisper(stock)
    sizes = []
    monkeypatch.setattr(beam_top_k, "top_k", lambda given, k: sizes.append(given.shape) or top_k(given, k))
    features = random_features(stock, 2)
    for beams in (2, 3):
        sizes.clear()
        found = model.generate(features, num_beams=beams, num_return_sequences=2, max_new_tokens=12)
        assert {size[1] for size in sizes} == {beams * stock.config.vocab_size}
        assert torch.equal(found, stock.generate(features, num_beams=beams, num_return_sequences=2, max_new_tokens=12))
    assert len(found.unique()) > 3
