"""From the tokens of one window to segments: where the model marked a beginning and an end."""

from dataclasses import dataclass

from .timestamp_tokens import SECONDS, TimestampTokens


@dataclass(frozen=True)
class TokenRange:
    """A segment of a window.

    Attributes:
        start, end: seconds from the beginning of the window, within its audio.
        first, last: its tokens are `tokens[first:last]`.
    """

    start: float
    end: float
    first: int
    last: int


def split_window(
    tokens: list[int], times: TimestampTokens | None, seconds: float
) -> tuple[list[TokenRange], float | None]:
    """Split at every pair of timestamp tokens, as Whisper's sequential long form does (arXiv 2212.04356, section 3.8).

    Args:
        tokens: generated for the window, without the end token.
        times: the timestamp tokens; None if the model has none.
        seconds: of audio in the window. No segment reaches beyond.

    Returns:
        tuple: the segments, and the seconds after which the next window begins; None: after all of this one. A window
        that ends in two timestamps was cut in the middle of something said, which the next window begins with.
    """
    marks = [times is not None and token in times for token in tokens]
    pairs = [i + 1 for i in range(len(tokens) - 1) if marks[i] and marks[i + 1]]
    if times is None or not pairs:
        last = next((token for token, mark in zip(reversed(tokens), reversed(marks), strict=True) if mark), None)
        end = seconds if times is None or last in (None, times.first) else times.seconds(last)
        return [_within(0.0, end, 0, len(tokens), seconds)], None
    ends_in_one = marks[-2:] == [False, True]
    cuts = [*pairs, len(tokens)] if ends_in_one else pairs
    found, first = [], 0
    for cut in cuts:
        found.append(_within(times.seconds(tokens[first]), times.seconds(tokens[cut - 1]), first, cut, seconds))
        first = cut
    return found, None if ends_in_one else times.seconds(tokens[cuts[-1] - 1])


def _within(start: float, end: float, first: int, last: int, seconds: float) -> TokenRange:
    """Times moved into the audio; what would have no length gets that of one frame."""
    end = min(end, seconds)
    start = min(start, end)
    if end - start < SECONDS:
        end = min(start + SECONDS, seconds)
        start = max(0.0, min(start, end - SECONDS))
    return TokenRange(start, end, first, last)
