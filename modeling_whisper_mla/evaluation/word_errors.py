"""Word and character errors of transcripts, utterance by utterance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jiwer


@dataclass(frozen=True)
class ErrorCounts:
    """How a hypothesis differs from its reference along a shortest edit path.

    Attributes:
        hits: tokens (words or characters) that are the same.
        substitutions: reference tokens replaced by another.
        deletions: reference tokens that are missing.
        insertions: tokens of the hypothesis that the reference does not have.
    """

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def reference_length(self) -> int:
        return self.hits + self.substitutions + self.deletions

    @property
    def hypothesis_length(self) -> int:
        return self.hits + self.substitutions + self.insertions

    @property
    def rate(self) -> float | None:
        """Errors per reference token (WER or CER); above 1 with many insertions, None without a reference token."""
        return self.errors / self.reference_length if self.reference_length else None

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(
            self.hits + other.hits,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )


def count_word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> list[ErrorCounts]:
    """Word errors of every utterance.

    Args:
        references: normalised transcripts, words between spaces. An empty one makes every word of its hypothesis an
            insertion.
        hypotheses: as many, in the same order.

    Returns:
        list[ErrorCounts]: one for each utterance. The word error rate of all is `total(...).rate`: errors and words are
        summed over utterances first, as Whisper's and NIST's scoring do, so that long utterances weigh more.

    Raises:
        ValueError: not as many hypotheses as references.
    """
    _check_lengths(references, hypotheses)
    return [_counts(jiwer.process_words(*pair)) for pair in zip(references, hypotheses, strict=True)]


def count_character_errors(references: Sequence[str], hypotheses: Sequence[str]) -> list[ErrorCounts]:
    """Character errors of every utterance, spaces included. Arguments, result and errors as of `count_word_errors`."""
    _check_lengths(references, hypotheses)
    return [_counts(jiwer.process_characters(*pair)) for pair in zip(references, hypotheses, strict=True)]


def total(counts: Iterable[ErrorCounts]) -> ErrorCounts:
    """The sum over utterances."""
    return sum(counts, start=ErrorCounts())


def _check_lengths(references: Sequence[str], hypotheses: Sequence[str]) -> None:
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references, but {len(hypotheses)} hypotheses: give one for each.")


def _counts(output: jiwer.WordOutput | jiwer.CharacterOutput) -> ErrorCounts:
    return ErrorCounts(output.hits, output.substitutions, output.deletions, output.insertions)
