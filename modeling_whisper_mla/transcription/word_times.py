"""From times of tokens to times of words."""

from collections.abc import Collection

from transformers import PreTrainedTokenizerBase
from transformers.models.whisper.tokenization_whisper import LANGUAGES, _combine_tokens_into_words

from .transcript import Span

# Whisper's codes of languages written without spaces, whose words here are characters.
WITHOUT_SPACES = frozenset({"zh", "ja", "th", "lo", "my", "yue"})


def word_spans(
    tokenizer: PreTrainedTokenizerBase,
    tokens: list[int],
    ends: list[float],
    first: int,
    last: int,
    not_words: Collection[int],
    language: str | None,
    offset: float,
) -> list[Span]:
    """The words among `tokens[first:last]`.

    The time of a token is its end: a word starts where the token before it ended, and ends with its last token.

    Args:
        tokenizer: of the model.
        tokens: of the whole window, because the token before the first may be in the segment before.
        ends: the time of each, in seconds from the beginning of the window.
        first, last: the range of the segment.
        not_words: special and timestamp tokens.
        language: Whisper's code; languages written without spaces are split into characters. None is English.
        offset: of the window, in seconds from the beginning of the file.

    Returns:
        list[Span]: words with their punctuation, in order.
    """
    spoken = [i for i in range(first, last) if tokens[i] not in not_words]
    name = LANGUAGES.get(language or "en")
    words, _, groups = _combine_tokens_into_words(tokenizer, [tokens[i] for i in spoken], name)
    spans = []
    for word, group in zip(words, groups, strict=True):
        before, final = spoken[group[0]] - 1, spoken[group[-1]]
        start = ends[before] if before >= 0 else 0.0
        if word.strip():
            spans.append(Span(round(offset + start, 2), round(offset + max(start, ends[final]), 2), word.strip()))
    return spans
