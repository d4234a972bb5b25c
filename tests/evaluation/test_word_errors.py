"""Error counts against hand-counted cases, and what must hold for any text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_mla.evaluation.word_errors import ErrorCounts, count_character_errors, count_word_errors, total

WORDS = st.lists(st.sampled_from(["one", "two", "three", "four"]), max_size=8)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("one two three", "one two three", ErrorCounts(hits=3)),
        ("one two three", "one four three", ErrorCounts(hits=2, substitutions=1)),
        ("one two three", "one three", ErrorCounts(hits=2, deletions=1)),
        ("one two three", "one two two three", ErrorCounts(hits=3, insertions=1)),
        ("one two three four", "two three four one one", ErrorCounts(hits=3, deletions=1, insertions=2)),
        ("one", "", ErrorCounts(deletions=1)),
        ("", "one two", ErrorCounts(insertions=2)),
        ("", "", ErrorCounts()),
    ],
)
def test_hand_counted_words(reference, hypothesis, expected):
    assert count_word_errors([reference], [hypothesis]) == [expected]


def test_rates_are_pooled_over_utterances():
    counts = count_word_errors(["one", "one two three four"], ["two", "one two three four"])
    assert [one.rate for one in counts] == [1.0, 0.0]
    assert total(counts).rate == 1 / 5
    assert (total(counts).errors, total(counts).reference_length) == (1, 5)


def test_rate_without_reference_and_above_one():
    assert count_word_errors([""], ["one"])[0].rate is None
    assert count_word_errors(["one"], ["one two three"])[0].rate == 2.0
    assert total([]) == ErrorCounts()


def test_characters_count_spaces():
    assert count_character_errors(["ab c"], ["abc"]) == [ErrorCounts(hits=3, deletions=1)]
    assert count_character_errors(["kitten"], ["sitting"]) == [ErrorCounts(hits=4, substitutions=2, insertions=1)]


@given(WORDS, WORDS)
def test_lengths_add_up(reference, hypothesis):
    counts = count_word_errors([" ".join(reference)], [" ".join(hypothesis)])[0]
    assert counts.reference_length == len(reference)
    assert counts.hypothesis_length == len(hypothesis)
    assert counts.errors == levenshtein(reference, hypothesis)
    assert (counts.errors == 0) == (reference == hypothesis)


@given(WORDS, WORDS)
def test_exchanging_the_sides_exchanges_insertions_and_deletions(reference, hypothesis):
    one = count_word_errors([" ".join(reference)], [" ".join(hypothesis)])[0]
    other = count_word_errors([" ".join(hypothesis)], [" ".join(reference)])[0]
    assert one.errors == other.errors
    assert one.insertions - one.deletions == other.deletions - other.insertions


def levenshtein(one: list, other: list) -> int:
    """An independent edit distance, row by row."""
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, start=1):
        new = [i]
        for j, right in enumerate(other, start=1):
            new.append(min(row[j] + 1, new[j - 1] + 1, row[j - 1] + (left != right)))
        row = new
    return row[-1]


def test_one_hypothesis_for_each_reference():
    with pytest.raises(ValueError, match="2 references, but 1 hypotheses"):
        count_word_errors(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="1 references, but 0 hypotheses"):
        count_character_errors(["a"], [])
