"""What comes out of transcribing: text, and spans of it with their times."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Span:
    """Text between two times: a word, for one.

    Attributes:
        start, end: seconds from the beginning of the file.
        text: without space around it.
        channel: from 1, where the channels of a file were transcribed apart.
    """

    start: float
    end: float
    text: str
    channel: int | None = None


@dataclass(frozen=True)
class Segment(Span):
    """Text that the model put between two of its time marks, with what is known of its quality.

    Attributes:
        temperature: at which it was decoded; above 0 after a fallback.
        avg_logprob: mean log probability of the window's tokens, in nats.
        compression_ratio: of the window's text; repetitions raise it.
        no_speech_prob: probability that the window holds no speech.
    """

    temperature: float = field(default=0.0, compare=False)
    avg_logprob: float | None = field(default=None, compare=False)
    compression_ratio: float | None = field(default=None, compare=False)
    no_speech_prob: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Transcript:
    """What was said in one file.

    Attributes:
        text: the whole transcript.
        language: code of the language that the model was told or detected; None for an English-only model.
        segments: as the model marked them; none if no timestamps were asked for.
        words: with word timestamps only.
        fallbacks: windows that were decoded again at a higher temperature.
        skipped_seconds: audio left out because it holds no speech.
    """

    text: str
    language: str | None = None
    segments: list[Segment] = field(default_factory=list)
    words: list[Span] = field(default_factory=list)
    fallbacks: int = 0
    skipped_seconds: float = 0.0
