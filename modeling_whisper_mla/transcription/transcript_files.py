"""Transcripts as text, JSON and subtitles."""

import dataclasses
import html
import json
from collections import Counter
from pathlib import Path

from .transcriber import Transcript

FORMATS = {"text": "txt", "json": "json", "srt": "srt", "vtt": "vtt"}


def render(transcript: Transcript, file_format: str, audio: str = "") -> str:
    """One transcript as the content of a file.

    Args:
        transcript: with segments for "srt" and "vtt"; words take their place where there are any. "text" is the
            transcript, or one line for each segment or word where there are times.
        file_format: a key of `FORMATS`.
        audio: name of the audio file, for "json".

    Returns:
        str: ending in a newline.
    """
    spans = transcript.words or transcript.segments
    if file_format == "json":
        content = {"audio": audio, **dataclasses.asdict(transcript)}
        return json.dumps(content, ensure_ascii=False, indent=2) + "\n"
    if file_format == "text":
        lines = [f"[{clock(span.start)} --> {clock(span.end)}] {span.text}" for span in spans]
        return "\n".join(lines or [transcript.text]) + "\n"
    mark = "," if file_format == "srt" else "."
    cues = [  # WebVTT refuses a cue without length
        f"{number}\n{clock(span.start, mark)} --> {clock(max(span.end, span.start + 0.001), mark)}\n"
        + (span.text if file_format == "srt" else html.escape(span.text, quote=False))
        for number, span in enumerate(spans, start=1)
    ]
    return "\n\n".join(cues if file_format == "srt" else ["WEBVTT", *cues]) + "\n"


def clock(seconds: float, mark: str = ".") -> str:
    """Seconds as hours:minutes:seconds with milliseconds after `mark`, as subtitles write them."""
    milliseconds = round(seconds * 1000)
    minutes, hours = milliseconds // 60_000, milliseconds // 3_600_000
    return f"{hours:02}:{minutes % 60:02}:{milliseconds // 1000 % 60:02}{mark}{milliseconds % 1000:03}"


def output_names(audios: list[Path], file_format: str) -> list[str]:
    """A file name for each audio: its stem, or its whole name where two stems are the same.

    Raises:
        ValueError: two audios have the same name.
    """
    stems = Counter(audio.stem for audio in audios)
    names = [audio.stem if stems[audio.stem] == 1 else audio.name for audio in audios]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{len(names)} audio files, but two are named {twice[0]}: their outputs would be one file.")
    return [f"{name}.{FORMATS[file_format]}" for name in names]
