"""Which normaliser a language gets, and what the normalisers do to rates."""

import pytest

from whisper_mla.evaluation.normalizers import normalizer_for
from whisper_mla.evaluation.word_errors import count_word_errors

SPELLING = {"colour": "color"}


def rate(normalizer, reference, hypothesis):
    return count_word_errors([normalizer.words(reference)], [normalizer.words(hypothesis)])[0].rate


@pytest.mark.parametrize(
    ("language", "choice", "spelling", "expected"),
    [
        ("en", "auto", SPELLING, "english"),
        ("en", "auto", None, "basic"),
        ("de", "auto", SPELLING, "basic"),
        (None, "auto", SPELLING, "basic"),
        ("de", "english", SPELLING, "english"),
        ("en", "basic", SPELLING, "basic"),
        ("en", "none", SPELLING, "none"),
    ],
)
def test_choice(language, choice, spelling, expected):
    assert normalizer_for(language, choice, spelling).name == expected


def test_english_unites_spellings_contractions_and_numbers():
    english = normalizer_for("en", "english", SPELLING)
    assert english.words("The COLOUR isn't twenty-one, [noise]!") == "the color is not 21"
    assert rate(english, "the colour isn't twenty one", "The color is not 21.") == 0


def test_the_english_normaliser_makes_one_word_of_a_row_of_digits():
    english, basic = normalizer_for("en", "english", SPELLING), normalizer_for("en", "basic")
    assert english.words("one two three") == "123"
    assert rate(english, "one two three", "one two four") == 1.0
    assert rate(basic, "one two three", "one two four") == 1 / 3


def test_basic_removes_case_punctuation_and_brackets_only():
    basic = normalizer_for("fr", "basic")
    assert basic.words("  Où est-il ?  (rires) [bruit] ") == "où est il"
    assert basic.characters("Où est-il ?") == "où est il"


def test_none_only_unifies_spaces():
    assert normalizer_for("en", "none").words("  A,\tb ") == "A, b"


@pytest.mark.parametrize("choice", ["basic", "none"])
def test_languages_without_spaces_are_scored_by_letters(choice):
    chinese = normalizer_for("zh", choice)
    assert chinese.words("你好吗") == "你 好 吗"
    assert chinese.characters("你 好吗") == "你好吗"
    assert rate(chinese, "你好吗", "你好") == 1 / 3
    assert not normalizer_for("ko", choice).splits_letters


def test_errors():
    with pytest.raises(ValueError, match="normalizer='strict': expected one of auto, english, basic, none"):
        normalizer_for("en", "strict")
    with pytest.raises(ValueError, match="no spelling table"):
        normalizer_for("en", "english", None)
