"""Greedy decoding with the vocabulary projection in 8 bits: stock's tokens, and only where nothing else is read."""

import copy
import pickle

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor
from transformers.modeling_outputs import BaseModelOutput

from tests.conftest import random_features, random_whisper
from whisper_mla import WhisperMLAForConditionalGeneration, greedy_decoding, quantize_weights
from whisper_mla.transformers_releases import CACHE

TIMES = {"return_timestamps": True}
LONG = {"min_new_tokens": 15}


@pytest.fixture
def used(monkeypatch) -> list:
    """The calls of it. Small matrices take part, from the first step on."""
    calls: list = []
    stock = greedy_decoding.GreedyLogits.__call__
    monkeypatch.setattr(
        greedy_decoding.GreedyLogits, "__call__", lambda self, *given: calls.append(self) or stock(self, *given)
    )
    monkeypatch.setattr(greedy_decoding, "_SMALLEST_WEIGHT", 1)
    monkeypatch.setattr(greedy_decoding, "STEPS_BEFORE_ROUNDING", 0)
    return calls


@pytest.fixture(scope="module")
def stock():
    """Its last tokens are as those of a real Whisper: end, start, one without and thirty with a time."""
    model = random_whisper(vocab_size=400, eos_token_id=366, decoder_start_token_id=367, bos_token_id=366)
    settings = {"no_timestamps_token_id": 369, "is_multilingual": False, "return_timestamps": False}
    settings |= {"suppress_tokens": [5, 17, 380], "begin_suppress_tokens": [9, 366]}
    known = {name: getattr(model.config, name) for name in ("pad_token_id", "eos_token_id", "decoder_start_token_id")}
    model.generation_config = GenerationConfig(**settings, **known)
    return model


@pytest.fixture
def ours(stock):
    return WhisperMLAForConditionalGeneration.from_whisper(stock)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("way", [{}, TIMES, {"suppress_tokens": None}, {"suppress_tokens": []}, LONG], ids=str)
def test_tokens_of_stock_whisper(stock, ours, used, batch, way):
    different = set()
    for seed in range(4):
        features = random_features(stock, batch, seed)
        expected = stock.generate(features, max_new_tokens=20, **way)
        assert torch.equal(ours.generate(features, max_new_tokens=20, **way), expected)
        different |= set(expected.flatten().tolist())
    assert len(used) > 20
    assert all(call.first_exact == (366 if way == TIMES else 400) for call in used)
    assert len(different) > 2


def test_static_cache(stock, ours, used):
    features = random_features(stock)
    expected = stock.generate(features, max_new_tokens=12)
    assert torch.equal(ours.generate(features, max_new_tokens=12, cache_implementation="static"), expected)
    assert used


def test_the_first_token_may_be_forbidden_after_a_cache(stock, ours, used):
    """A rule for the first token meets a step from a cache: what would be picked without it is forbidden."""
    features = random_features(stock, 1)

    def go_on(model, **way):
        tokens = torch.tensor([[367, 369]])
        first = model.generate(features, decoder_input_ids=tokens, max_new_tokens=3, return_dict_in_generate=True)
        return model.generate(
            features, decoder_input_ids=first.sequences, **{CACHE: first[CACHE]}, max_new_tokens=6, **way
        )

    free = go_on(stock)
    unwanted = [int(token) for token in free.flatten().unique() if token < 366]
    expected = go_on(stock, begin_suppress_tokens=unwanted)
    assert torch.equal(go_on(ours, begin_suppress_tokens=unwanted), expected)
    assert used and set(unwanted) <= set(used[-1].forbidden.tolist())
    assert not torch.equal(expected, free)


def test_real_vocabulary_of_the_demo(digits, exact, speech, used):
    assert torch.equal(exact.generate(**speech), digits.generate(**speech))
    generation = digits.generation_config
    forbidden = {*generation.suppress_tokens, *generation.begin_suppress_tokens}
    assert used and set(used[0].forbidden.tolist()) == forbidden


class Mine(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return -scores


NEEDS_ALL = {
    "scores": {"output_scores": True, "return_dict_in_generate": True},
    "logits": {"output_logits": True, "return_dict_in_generate": True},
    "beams": {"num_beams": 2},
    "samples": {"do_sample": True, "temperature": 1.0},
    "a processor of the user": {"logits_processor": [Mine()]},
    "repetition": {"repetition_penalty": 1.5},
    "n-grams": {"no_repeat_ngram_size": 2},
}


@pytest.mark.parametrize("way", NEEDS_ALL)
def test_what_reads_other_logits_gets_all(stock, ours, used, way):
    def decode(model):
        torch.manual_seed(0)
        return model.generate(random_features(stock), max_new_tokens=8, **NEEDS_ALL[way])

    found, expected = decode(ours), decode(stock)
    if "return_dict_in_generate" in NEEDS_ALL[way]:
        for step, step_expected in zip(found[way], expected[way], strict=True):
            torch.testing.assert_close(step, step_expected)
        found, expected = found.sequences, expected.sequences
    assert torch.equal(found, expected)
    assert not used


def test_forwards_of_ones_own_get_all(stock, ours, used):
    features = random_features(stock)
    ours.generate(features, max_new_tokens=4)
    assert used
    tokens = torch.tensor([[367, 369, 20]] * 2)
    encoded = ours.get_encoder()(features)
    torch.testing.assert_close(
        ours(encoder_outputs=encoded, decoder_input_ids=tokens).logits,
        stock(encoder_outputs=BaseModelOutput(encoded[0]), decoder_input_ids=tokens).logits,
    )


def test_a_loss_needs_all(stock, ours, used):
    features = random_features(stock)
    ours.generate(features, max_new_tokens=4)
    labels = torch.tensor([[367, 369, 20]] * 2)
    found, expected = ours(features, labels=labels, greedy_logits=used[-1]), stock(features, labels=labels)
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.logits, expected.logits)


def half(model):
    return model.bfloat16()


def hooked(model):
    model.proj_out.register_forward_hook(lambda module, inputs, output: output)
    return model


def quantised(model):
    return quantize_weights(model)


@pytest.mark.parametrize("change", [half, hooked, quantised])
def test_projections_that_are_more_than_a_float32_matrix(ours, used, change):
    model = change(ours)
    features = random_features(model).to(model.dtype)
    model.generate(features, max_new_tokens=4)
    assert not used


def test_under_autocast(ours, used):
    with torch.autocast("cpu", torch.bfloat16):
        ours.generate(random_features(ours), max_new_tokens=4)
    assert not used


def enlarge(model):
    with torch.no_grad():
        model.proj_out.weight[20:40] *= 3


def enlarge_unseen(model):
    """PyTorch does not count this change."""
    model.proj_out.weight.data.mul_(torch.linspace(-2, 2, 400)[:, None])


def replace(model):
    model.proj_out.weight = torch.nn.Parameter(model.proj_out.weight.detach().flip(0))


@pytest.mark.parametrize("change", [enlarge, enlarge_unseen, replace])
def test_weights_that_change_are_rounded_anew(stock, ours, used, change):
    features = random_features(stock)
    before = ours.generate(features, max_new_tokens=12)
    other = copy.deepcopy(stock)
    for model in (ours, other):
        change(model)
    after = ours.generate(features, max_new_tokens=12)
    assert torch.equal(after, other.generate(features, max_new_tokens=12))
    assert not torch.equal(after, before)
    assert len({call.number for call in used}) == 2


def test_only_after_many_steps(ours, used, monkeypatch):
    monkeypatch.setattr(greedy_decoding, "STEPS_BEFORE_ROUNDING", 25)
    features = random_features(ours, 1)
    for steps, use in ((20, False), (10, False), (7, True)):
        assert not used
        ours.generate(features, max_new_tokens=steps, min_new_tokens=steps)
        assert bool(used) == use
    assert greedy_decoding.progress_of(ours.proj_out).steps == 37


def test_small_matrices_stay_as_they_are(ours, used, monkeypatch):
    monkeypatch.setattr(greedy_decoding, "_SMALLEST_WEIGHT", ours.proj_out.weight.numel() + 1)
    ours.generate(random_features(ours), max_new_tokens=4)
    assert not used


def test_copies_and_folders_hold_nothing_of_it(ours, used, tmp_path):
    features = random_features(ours)
    expected = ours.generate(features, max_new_tokens=8)
    assert used
    ours.save_pretrained(tmp_path)
    for other in (
        copy.deepcopy(ours),
        pickle.loads(pickle.dumps(ours)),
        WhisperMLAForConditionalGeneration.from_pretrained(tmp_path),
    ):
        assert torch.equal(other.generate(features, max_new_tokens=8), expected)
        assert other.state_dict().keys() == ours.state_dict().keys()
