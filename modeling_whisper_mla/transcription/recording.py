"""One recording on its way through the model, window by window."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .decoding import FRAMES_PER_SECOND, Decoding, Window
from .segments import split_window
from .timestamp_tokens import TimestampTokens
from .transcript import Segment, Span, Transcript
from .word_times import word_spans

# What is left of a recording is not decoded if it is shorter than any word.
LEAST_FRAMES = 10
# Text that took a higher temperature is no prompt for the next window (as in OpenAI's `transcribe`).
MOST_RELIABLE_TEMPERATURE = 0.5


@dataclass(frozen=True)
class Prompt:
    """How a window is conditioned on the text before it.

    Attributes:
        start: the id of `<|startofprev|>`.
        most: tokens of text at most, the last ones.
    """

    start: int
    most: int

    def tokens(self, history: list[int]) -> tuple[int, ...]:
        """What comes before the start token; nothing where there is no text."""
        return (self.start, *history[-self.most :]) if history else ()


class Recording:
    """What has been decoded of a recording, and where its next window begins.

    Args:
        stretches: `(features, frames, offset)` of each stretch to transcribe: log-mel `[mel bins, ≥ frames]`, how many
            frames are audio, and where it begins in the recording, in seconds.
        window_frames: that the model takes.
        language: Whisper's code; None: detected in the first window.
        with_timestamps: whether times are asked for; stretches longer than a window need them in any case.
        times: the model's timestamp tokens; None if it has none: long stretches are then cut blindly.
        prompt: how windows are conditioned on the text before them; None: they are not.
        skipped_seconds: of the recording that are in no stretch.
    """

    def __init__(
        self,
        stretches: list[tuple[Tensor, int, float]],
        window_frames: int,
        language: str | None,
        with_timestamps: bool,
        times: TimestampTokens | None,
        prompt: Prompt | None = None,
        skipped_seconds: float = 0.0,
    ):
        self.stretches, self.window_frames = stretches, window_frames
        self.language, self.with_timestamps = language, with_timestamps
        self.times, self.prompt = times, prompt
        self.number = self.seek = 0
        self.texts = [""] * len(stretches)
        self.history: list[int] = []
        self.segments: list[Segment] = []
        self.words: list[Span] = []
        self.fallbacks = 0
        self.skipped_seconds = skipped_seconds

    @property
    def is_done(self) -> bool:
        return self.number >= len(self.stretches)

    @property
    def frames(self) -> tuple[int, int]:
        """Done, and in all."""
        lengths = [frames for _, frames, _ in self.stretches]
        return sum(lengths[: self.number]) + self.seek, sum(lengths)

    def next_window(self) -> Window:
        """The window to decode next."""
        features, frames, _ = self.stretches[self.number]
        cut = features[:, self.seek : self.seek + self.window_frames]
        cut = torch.nn.functional.pad(cut, (0, self.window_frames - cut.shape[-1]))
        length = min(frames - self.seek, self.window_frames)
        # Whisper finds its way through long audio by the times that it marks.
        marks = self.times is not None and (self.with_timestamps or frames > self.window_frames)
        previous = self.prompt.tokens(self.history) if self.prompt else ()
        return Window(cut, length / FRAMES_PER_SECOND, self.language, marks, previous)

    def take(self, window: Window, decoding: Decoding, tokenizer: PreTrainedTokenizerBase, not_words: set[int]) -> None:
        """Add what the model made of a window, and move on."""
        offset = self.stretches[self.number][2] + self.seek / FRAMES_PER_SECOND
        self.language = decoding.language
        self.fallbacks += decoding.fell_back
        advance = None
        if decoding.is_silence:
            self.skipped_seconds += window.seconds
        else:
            ranges, advance = split_window(decoding.tokens, self.times, window.seconds)
            self.history += decoding.tokens[: ranges[-1].last]
            for part in ranges:
                spoken = [token for token in decoding.tokens[part.first : part.last] if token not in not_words]
                text = str(tokenizer.decode(spoken))  # one text for one list of tokens
                self.texts[self.number] += text
                words = []
                if decoding.ends:
                    ends = list(decoding.ends)
                    words = word_spans(
                        tokenizer, decoding.tokens, ends, part.first, part.last, not_words, decoding.language, offset
                    )
                if self.with_timestamps and text.strip():
                    self.segments.append(_segment(part.start + offset, part.end + offset, text, words, decoding))
                self.words += words
        if decoding.quality.temperature > MOST_RELIABLE_TEMPERATURE:
            self.history = []
        self._advance(window, advance)

    def _advance(self, window: Window, seconds: float | None) -> None:
        whole = round(window.seconds * FRAMES_PER_SECOND)
        step = whole if seconds is None else round(seconds * FRAMES_PER_SECOND)
        # A mark at the very beginning would go nowhere for ever.
        self.seek += step if 0 < step <= whole else whole
        if self.seek > self.stretches[self.number][1] - LEAST_FRAMES:
            self.number, self.seek = self.number + 1, 0

    def transcript(self) -> Transcript:
        """All of it."""
        text = " ".join(part.strip() for part in self.texts if part.strip())
        return Transcript(
            text, self.language, self.segments, self.words, self.fallbacks, round(self.skipped_seconds, 2)
        )


def _segment(start: float, end: float, text: str, words: list[Span], decoding: Decoding) -> Segment:
    """A segment that holds its words: where marks and alignment disagree, as wide as both."""
    quality = decoding.quality
    return Segment(
        start=round(min([start, *(word.start for word in words)]), 2),
        end=round(max([end, *(word.end for word in words)]), 2),
        text=text.strip(),
        temperature=quality.temperature,
        avg_logprob=round(quality.avg_logprob, 4),
        compression_ratio=round(quality.compression_ratio, 4),
        no_speech_prob=None if quality.no_speech_prob is None else round(quality.no_speech_prob, 4),
    )
