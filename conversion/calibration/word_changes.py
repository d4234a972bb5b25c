"""How many words of one set of transcripts another changes."""

from collections.abc import Sequence
from dataclasses import dataclass

import jiwer
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

# Written without spaces between words: every letter counts as a word (Whisper, arXiv 2212.04356, appendix C).
_WITHOUT_SPACES = ("zh", "yue", "ja", "th", "lo", "my", "chinese", "cantonese", "japanese", "thai", "lao", "myanmar")


@dataclass(frozen=True)
class WordChanges:
    """Transcripts of a converted model against those of the stock model.

    Attributes:
        rate: word errors per word of the stock model; None where it found none.
        words: of the stock model.
        same_clips: clips with the same transcript.
        clips: all.
    """

    rate: float | None
    words: int
    same_clips: int
    clips: int


def count_word_changes(stock: Sequence[str], converted: Sequence[str], language: str | None = None) -> WordChanges:
    """Compare transcripts, after Whisper's basic normalisation (case, punctuation, what stands in brackets).

    Args:
        stock, converted: one of each clip.
        language: code or English name; None if unknown.
    """
    normalise = BasicTextNormalizer(split_letters=str(language).lower() in _WITHOUT_SPACES)
    expected, told = ([" ".join(normalise(text).split()) for text in side] for side in (stock, converted))
    found = jiwer.process_words(expected, told)
    words = found.hits + found.substitutions + found.deletions
    errors = found.substitutions + found.deletions + found.insertions
    same = sum(a == b for a, b in zip(expected, told, strict=True))
    return WordChanges(errors / words if words else None, words, same, len(expected))
