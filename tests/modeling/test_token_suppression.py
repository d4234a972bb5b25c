"""Quicker suppression of tokens: the scores of Transformers' processors, in their place in generate()."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import (
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    WhisperTimeStampLogitsProcessor,
)

from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.token_suppression import (
    SuppressTokens,
    SuppressTokensAtBegin,
    TimestampRules,
    with_quicker_suppression,
)


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


FIRST_TIME, END, VOCABULARY = 80, 70, 100  # text, <|endoftext|>, ..., <|notimestamps|>, then times
BEGIN = 3


def timestamp_rules(most: int | None, detects: bool) -> WhisperTimeStampLogitsProcessor:
    config = GenerationConfig(eos_token_id=END, no_timestamps_token_id=FIRST_TIME - 1, max_initial_timestamp_index=most)
    return WhisperTimeStampLogitsProcessor(config, BEGIN, _detect_timestamp_from_logprob=detects)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.lists(st.integers(60, VOCABULARY - 1), min_size=4, max_size=4), min_size=1, max_size=4),
    st.integers(0, 4),
    st.sampled_from([None, 0, 5, 50]),
    st.booleans(),
    st.sampled_from([0.0, 0.1, 1.0, 30.0, 1e6]),
    st.sampled_from(["random", "near", "no times", "nothing"]),
    st.integers(0, 10**6),
)
def test_timestamp_rules_are_those_of_transformers(texts, length, most, detects, scale, kind, seed):
    """Any text so far, and scores of which timestamps are as likely as the likeliest text but for rounding."""
    tokens = torch.cat([torch.zeros(len(texts), BEGIN, dtype=torch.long), torch.tensor(texts)[:, :length]], dim=1)
    scores = scale * torch.randn(len(texts), VOCABULARY, generator=torch.Generator().manual_seed(seed))
    if kind == "near":
        times, text = scores[:, FIRST_TIME:].logsumexp(1), scores[:, : FIRST_TIME - 1].amax(1)
        scores[:, :FIRST_TIME] += (times - text)[:, None]
    elif kind == "no times":
        scores[:, FIRST_TIME:] = -torch.inf
    elif kind == "nothing":
        scores[:] = -torch.inf
    before = scores.clone()
    stock = timestamp_rules(most, detects)
    quicker = with_quicker_suppression(LogitsProcessorList([stock]))[0]
    assert type(quicker) is TimestampRules and type(stock) is WhisperTimeStampLogitsProcessor
    assert torch.equal(quicker(tokens, scores), stock(tokens, scores))
    assert torch.equal(scores, before)


def test_timestamps_that_are_as_likely_as_text_but_for_rounding():
    """Here Transformers' way of computing decides, and another one would decide otherwise for some rows."""
    stock = timestamp_rules(None, True)
    quicker = with_quicker_suppression(LogitsProcessorList([stock]))[0]
    tokens = torch.zeros(500, BEGIN + 1, dtype=torch.long)
    scores = 5 * torch.randn(500, VOCABULARY, generator=torch.Generator().manual_seed(0))
    scores[:, :FIRST_TIME] -= (scores[:, : FIRST_TIME - 1].amax(1) - scores[:, FIRST_TIME:].logsumexp(1))[:, None]
    expected = stock(tokens, scores)
    assert 0 < expected[:, 0].isinf().sum() < 500
    assert torch.equal(quicker(tokens, scores), expected)


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
    with pytest.raises(Exception):  # noqa: B017
        model.generate(speech["input_features"][:1], return_timestamps=True)
    assert TimestampRules in {type(processor) for processor in used[1]}
    monkeypatch.undo()
    features = speech["input_features"][:1]
    free = model.generate(features)[0].tolist()
    word = next(token for token in free if token < model.config.eos_token_id)
    for way in ({"suppress_tokens": [word]}, {"begin_suppress_tokens": [word]}):
        ours = model.generate(features, max_length=30, **way)
        assert torch.equal(ours, digits.generate(features, max_length=30, **way))
        assert ours[0].tolist() != free
