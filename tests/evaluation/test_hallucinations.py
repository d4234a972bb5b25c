"""Guards against invented text, on hand-made transcripts."""

import pytest

from whisper_mla.evaluation.hallucinations import guard, repeated_ngrams

LOOP = "thank you for watching this " * 4


def test_a_good_transcript_is_not_suspect():
    found = guard("one two three", "one two three")
    assert (found.length_ratio, found.repeated_ngrams, found.is_suspect) == (1.0, 0, False)


def test_length_ratio():
    assert not guard("one two", "one two three four").is_too_long
    found = guard("one two", "one two three four five")
    assert found.is_too_long and found.is_suspect and found.length_ratio == 2.5
    assert not guard("one two", "").is_suspect


def test_words_where_there_are_none():
    assert guard("", "you").is_too_long and guard("", "you").length_ratio is None
    assert not guard("", "").is_suspect


def test_repeated_ngrams_hand_counted():
    assert repeated_ngrams(["a", "b", "a", "b", "a", "b"], 2) == 3  # ab ba ab ba ab: two different ones
    assert repeated_ngrams(["a"] * 6, 5) == 1
    assert repeated_ngrams(["a"] * 4, 5) == 0
    assert repeated_ngrams(LOOP.split(), 5) == 16 - 5


def test_a_loop_is_flagged_and_one_that_was_spoken_is_not():
    assert guard("thank you for watching this", LOOP, max_length_ratio=10).is_looping
    assert not guard(LOOP, LOOP).is_suspect
    assert guard(LOOP, LOOP + LOOP, max_length_ratio=10).repeated_ngrams == (36 - 5) - (16 - 5)


def test_ngram_of_nothing():
    with pytest.raises(ValueError, match="ngram=0"):
        repeated_ngrams(["a"], 0)
