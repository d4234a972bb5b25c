"""Whisper's text normalisers, and which one a language gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

NORMALIZERS = ("auto", "english", "basic", "none")

# Written without spaces between words: Whisper scores every letter as a word (arXiv 2212.04356, appendix C).
LANGUAGES_WITHOUT_SPACES = frozenset({"zh", "yue", "ja", "th", "lo", "my"})


@dataclass(frozen=True)
class Normalizer:
    """Turns a transcript into what is scored.

    Attributes:
        name: "english", "basic" or "none".
        splits_letters: whether every letter counts as a word, for languages written without spaces.
    """

    name: str
    splits_letters: bool
    _function: Callable[[str], str]

    def words(self, text: str) -> str:
        """The text whose words are compared, single spaces between them."""
        return " ".join(self._function(text).split())

    def characters(self, text: str) -> str:
        """The text whose characters are compared: `words`, without the spaces that only split letters."""
        words = self.words(text)
        return words.replace(" ", "") if self.splits_letters else words


def normalizer_for(language: str | None, choice: str = "auto", spelling: dict[str, str] | None = None) -> Normalizer:
    """The normaliser of a language.

    The English normaliser (arXiv 2212.04356, appendix C) unites spellings, contractions and numbers. It writes a row of
    spoken digits as ONE number ("one two three" becomes "123"), so that a single wrong digit makes the whole row one
    wrong word out of one: for digit strings use "basic". The basic one removes punctuation and what stands in brackets
    and lowers the case; in scripts with combining vowel signs (Hindi, Thai, …) it also breaks words at those signs, as
    Whisper's own evaluation does.

    Args:
        language: Whisper's code; None if unknown.
        choice: "auto": English for "en" if there is a spelling table, else basic; or "english", "basic", "none" (only
            spaces are unified).
        spelling: British to American spelling, the tokenizer's `english_spelling_normalizer` (normalizer.json of the
            checkpoints from OpenAI).

    Returns:
        Normalizer: basic and none split the letters of languages written without spaces.

    Raises:
        ValueError: an unknown choice, or "english" without a spelling table.
    """
    if choice not in NORMALIZERS:
        raise ValueError(f"normalizer={choice!r}: expected one of {', '.join(NORMALIZERS)}.")
    if choice == "auto":
        choice = "english" if language == "en" and spelling else "basic"
    if choice == "english":
        if not spelling:
            raise ValueError(
                "normalizer='english': the tokenizer has no spelling table (normalizer.json), so the rates would not "
                "be those of the field. Use 'basic', or copy normalizer.json of an OpenAI checkpoint to the model."
            )
        return Normalizer("english", False, EnglishTextNormalizer(spelling))
    splits = language in LANGUAGES_WITHOUT_SPACES
    if choice == "basic":
        return Normalizer("basic", splits, BasicTextNormalizer(split_letters=splits))
    return Normalizer("none", splits, " ".join if splits else str)
