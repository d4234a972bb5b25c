"""From a transcript to cues of subtitles: lines of a width, few lines at once, one word highlighted."""

import textwrap
from dataclasses import dataclass

from .transcript import Span, Transcript
from .word_times import WITHOUT_SPACES

LINES = 2


@dataclass(frozen=True)
class SubtitleOptions:
    """How subtitles are laid out.

    Attributes:
        line_width: characters in a line at most (a longer word has a line of its own); None: each segment is a cue of
            one line, and so is each word where there are words.
        lines: in a cue at most.
        highlight_words: one cue for each word, in which it is marked among the words around it; needs words.

    Raises:
        ValueError: a number below 1.
    """

    line_width: int | None = None
    lines: int = LINES
    highlight_words: bool = False

    def __post_init__(self):
        for name in ("line_width", "lines"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: expected at least 1.")


@dataclass(frozen=True)
class Cue:
    """What is shown from `start` to `end` (seconds).

    Attributes:
        lines: of text, none of them empty.
        marked: line, first and last character of the highlighted word; None: no word is.
        channel: from 1, where the channels of a file were transcribed apart.
    """

    start: float
    end: float
    lines: tuple[str, ...]
    marked: tuple[int, int, int] | None = None
    channel: int | None = None


def cues(transcript: Transcript, options: SubtitleOptions) -> list[Cue]:
    """The cues of a transcript, in order.

    Where there are words, a cue begins with its first word and ends with its last. Where there are only segments, those
    that need several cues are divided by their characters, as if all were spoken equally fast.
    """
    space = "" if transcript.language in WITHOUT_SPACES else " "
    if not transcript.words:
        return [cue for segment in transcript.segments for cue in _divided(segment, space, options)]
    if options.line_width is None and not options.highlight_words:
        return [_cue(word.start, word.end, [word.text], word.channel) for word in transcript.words]
    found = []
    for group in _words_by_segment(transcript):
        for words in _fill(group, space, options):
            lines = _wrap(space.join(word.text for word in words), space, options)
            if options.highlight_words:
                found += _highlighted(words, lines)
            else:
                found.append(_cue(words[0].start, max(word.end for word in words), lines, words[0].channel))
    return found


def _cue(start: float, end: float, lines: list[str], channel: int | None) -> Cue:
    return Cue(start, end, tuple(line for line in lines if line), channel=channel)


def _wrap(text: str, space: str, options: SubtitleOptions) -> list[str]:
    """Lines of whole words; text of a language without spaces is cut at the width."""
    text = " ".join(text.split())
    if options.line_width is None:
        return [text]
    return textwrap.wrap(text, options.line_width, break_long_words=not space, break_on_hyphens=False)


def _words_by_segment(transcript: Transcript) -> list[list[Span]]:
    """Words of each segment, by their order: a cue never crosses from one segment, or channel, to another."""
    groups = []
    for channel in dict.fromkeys(word.channel for word in transcript.words):
        words = [word for word in transcript.words if word.channel == channel]
        for segment in [segment for segment in transcript.segments if segment.channel == channel]:
            left, group = len("".join(segment.text.split())), []
            while words and left > 0:
                left -= len("".join(words[0].text.split()))
                group.append(words.pop(0))
            groups.append(group)
        groups.append(words)
    return sorted((group for group in groups if group), key=lambda group: group[0].start)


def _fill(words: list[Span], space: str, options: SubtitleOptions) -> list[list[Span]]:
    """Words divided so that each part fits the lines of a cue."""
    parts: list[list[Span]] = [[]]
    for word in words:
        text = space.join(one.text for one in [*parts[-1], word])
        if parts[-1] and len(_wrap(text, space, options)) > options.lines:
            parts.append([])
        parts[-1].append(word)
    return parts


def _highlighted(words: list[Span], lines: list[str]) -> list[Cue]:
    """The same lines for each word, the word marked, until the next one begins."""
    found, line, position = [], 0, 0
    for i, word in enumerate(words):
        first = lines[line].find(word.text, position)
        if first < 0 and line + 1 < len(lines):
            line, position = line + 1, 0
            first = lines[line].find(word.text)
        position = max(position, first + len(word.text))
        end = words[i + 1].start if i + 1 < len(words) else word.end
        marked = None if first < 0 else (line, first, first + len(word.text))
        found.append(Cue(word.start, max(end, word.start), tuple(lines), marked, word.channel))
    return found


def _divided(segment: Span, space: str, options: SubtitleOptions) -> list[Cue]:
    """A segment as one cue, or as several of the lines allowed, its time shared by their characters."""
    lines = _wrap(segment.text, space, options)
    parts = [lines[i : i + options.lines] for i in range(0, len(lines), options.lines)]
    total = max(sum(len(line) for line in lines), 1)
    found, start, done = [], segment.start, 0
    for part in parts:
        done += sum(len(line) for line in part)
        end = segment.start + (segment.end - segment.start) * done / total
        found.append(_cue(round(start, 3), round(end, 3), part, segment.channel))
        start = end
    return found
