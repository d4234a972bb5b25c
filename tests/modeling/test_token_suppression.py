"""Quicker suppression of tokens: the scores of Transformers' processors, in their place in generate()."""

import pytest
import torch
from transformers import LogitsProcessorList
from transformers.generation import SuppressTokensAtBeginLogitsProcessor, SuppressTokensLogitsProcessor

from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.token_suppression import SuppressTokens, SuppressTokensAtBegin, with_quicker_suppression


class OfAUser(SuppressTokensLogitsProcessor):
    pass


@pytest.mark.parametrize("length", [3, 4, 5])
def test_scores_are_those_of_transformers(length):
    scores = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    before = scores.clone()
    tokens = torch.zeros(2, length, dtype=torch.long)
    forbidden = [7, 0, 49, 50, 1000, -1]  # some not in the vocabulary
    stock = [SuppressTokensLogitsProcessor(forbidden), SuppressTokensAtBeginLogitsProcessor([5, 6, 99], 4)]
    quicker = with_quicker_suppression(LogitsProcessorList(stock))
    assert [type(processor) for processor in quicker] == [SuppressTokens, SuppressTokensAtBegin]
    assert type(stock[0]) is SuppressTokensLogitsProcessor
    for old, new in zip(stock, quicker, strict=True):
        assert torch.equal(new(tokens, scores), old(tokens, scores))
    nothing = SuppressTokensLogitsProcessor([])
    assert torch.equal(with_quicker_suppression(LogitsProcessorList([nothing]))[0](tokens, scores), scores)
    assert torch.equal(scores, before)
    assert quicker[1](tokens, scores).isinf().sum() == (4 if length == 4 else 0)


def test_others_are_left_alone():
    mine = OfAUser([1])
    assert with_quicker_suppression(LogitsProcessorList([mine]))[0] is mine


def test_generate_uses_them(digits, speech, monkeypatch):
    """Also with the processors that Whisper's own generate makes: tokens forbidden there do not appear."""
    model = WhisperMLAForConditionalGeneration.from_whisper(digits)
    used = []
    monkeypatch.setattr(
        WhisperMLAForConditionalGeneration, "_sample", lambda *_, logits_processor, **__: used.append(logits_processor)
    )
    with pytest.raises(Exception):  # noqa: B017  # there are no tokens to go on with
        model.generate(speech["input_features"][:1], suppress_tokens=[11], begin_suppress_tokens=[12])
    assert {SuppressTokens, SuppressTokensAtBegin} <= {type(processor) for processor in used[0]}
    monkeypatch.undo()
    features = speech["input_features"][:1]
    free = model.generate(features)[0].tolist()
    word = next(token for token in free if token < model.config.eos_token_id)
    for way in ({"suppress_tokens": [word]}, {"begin_suppress_tokens": [word]}):
        ours = model.generate(features, max_length=30, **way)
        assert torch.equal(ours, digits.generate(features, max_length=30, **way))
        assert ours[0].tolist() != free
