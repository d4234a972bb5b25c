"""Transcripts of the channels of one file, put together."""

from dataclasses import replace

from .transcript import Transcript


def merge_channels(transcripts: list[Transcript]) -> Transcript:
    """One transcript of a file whose channels were transcribed apart.

    Args:
        transcripts: of channel 1, 2, ….

    Returns:
        Transcript: segments and words in the order of their beginnings, with their channels; the text of each channel
        on a line of its own; skipped seconds are the sum over the channels.
    """
    segments = [replace(span, channel=i) for i, one in enumerate(transcripts, start=1) for span in one.segments]
    words = [replace(span, channel=i) for i, one in enumerate(transcripts, start=1) for span in one.words]
    return Transcript(
        text="\n".join(f"Channel {i}: {one.text}" for i, one in enumerate(transcripts, start=1)),
        language=next((one.language for one in transcripts if one.text), transcripts[0].language),
        segments=sorted(segments, key=lambda span: (span.start, span.end)),
        words=sorted(words, key=lambda span: (span.start, span.end)),
        fallbacks=sum(one.fallbacks for one in transcripts),
        skipped_seconds=round(sum(one.skipped_seconds for one in transcripts), 2),
    )
