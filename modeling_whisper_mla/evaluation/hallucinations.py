"""Guards against invented text: transcripts far too long, and loops.

Repeated 5-grams as a sign of hallucination: Distil-Whisper (arXiv 2311.00430). The other sign used there, the insertion
rate, comes with the word errors.
"""

from collections import Counter
from dataclasses import dataclass

MAX_LENGTH_RATIO = 2.0
NGRAM = 5


@dataclass(frozen=True)
class HallucinationGuard:
    """What looks invented in one transcript.

    Attributes:
        length_ratio: words of the hypothesis per word of the reference; None without a word in the reference.
        repeated_ngrams: n-grams of the hypothesis that came before, beyond those that the reference repeats too.
        is_too_long: the ratio is above the bound, or there are words where the reference has none.
        is_looping: there is such a repeated n-gram.
    """

    length_ratio: float | None
    repeated_ngrams: int
    is_too_long: bool
    is_looping: bool

    @property
    def is_suspect(self) -> bool:
        return self.is_too_long or self.is_looping


def guard(
    reference: str, hypothesis: str, max_length_ratio: float = MAX_LENGTH_RATIO, ngram: int = NGRAM
) -> HallucinationGuard:
    """Look for signs of hallucination. They are signs: a flag asks for a look, it does not prove anything.

    Args:
        reference, hypothesis: normalised, words between spaces.
        max_length_ratio: above it a transcript is too long.
        ngram: words of an n-gram.

    Returns:
        HallucinationGuard: ratio, repeats and flags.
    """
    expected, words = reference.split(), hypothesis.split()
    ratio = len(words) / len(expected) if expected else None
    repeats = max(0, repeated_ngrams(words, ngram) - repeated_ngrams(expected, ngram))
    too_long = bool(words) if ratio is None else ratio > max_length_ratio
    return HallucinationGuard(ratio, repeats, too_long, repeats > 0)


def repeated_ngrams(words: list[str], ngram: int = NGRAM) -> int:
    """How many n-grams of `words` are the same as an earlier one: all of them minus the different ones.

    Raises:
        ValueError: `ngram` below 1.
    """
    if ngram < 1:
        raise ValueError(f"ngram={ngram}: expected at least 1.")
    counts = Counter(tuple(words[start : start + ngram]) for start in range(len(words) - ngram + 1))
    return sum(counts.values()) - len(counts)
