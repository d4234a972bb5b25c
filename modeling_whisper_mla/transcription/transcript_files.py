"""Transcripts as text, tables, JSON and subtitles."""

import csv
import dataclasses
import html
import io
import json
from collections import Counter
from pathlib import Path

from .subtitles import Cue, SubtitleOptions, cues
from .transcript import Span, Transcript

FORMATS = {"text": "txt", "json": "json", "srt": "srt", "vtt": "vtt", "tsv": "tsv", "csv": "csv"}
# Those in which every piece of text has its times.
TIMED = ("srt", "vtt", "tsv", "csv")


def render(transcript: Transcript, file_format: str, audio: str = "", subtitles: SubtitleOptions | None = None) -> str:
    """One transcript as the content of a file.

    Args:
        transcript: with segments for the formats of `TIMED`; words take their place where there are any.
        file_format: a key of `FORMATS`. "text" is the transcript, or one line for each segment or word where there are
            times; "tsv" has milliseconds, "csv" seconds, both a line of column names.
        audio: name of the audio file, for "json".
        subtitles: how "srt" and "vtt" are laid out.

    Returns:
        str: ending in a newline.
    """
    spans: list[Span] = [*(transcript.words or transcript.segments)]
    if file_format == "json":
        content = without_unknown({"audio": audio, **dataclasses.asdict(transcript)})
        return json.dumps(content, ensure_ascii=False, indent=2) + "\n"
    if file_format == "text":
        lines = [f"[{clock(span.start)} --> {clock(span.end)}] {_speaker(span)}{span.text}" for span in spans]
        return "\n".join(lines or [transcript.text]) + "\n"
    if file_format in ("tsv", "csv"):
        return _table(spans, file_format)
    found = cues(transcript, subtitles or SubtitleOptions())
    return _srt(found) if file_format == "srt" else _vtt(found)


def without_unknown(value):
    """What is written of a transcript: no fields that are None because nobody asked. Only the language may be None."""
    if isinstance(value, dict):
        return {name: without_unknown(one) for name, one in value.items() if one is not None or name == "language"}
    return [without_unknown(one) for one in value] if isinstance(value, list) else value


def _speaker(span: Span | Cue) -> str:
    return "" if span.channel is None else f"Channel {span.channel}: "


def _table(spans: list[Span], file_format: str) -> str:
    split = any(span.channel is not None for span in spans)
    out = io.StringIO()
    if file_format == "tsv":  # times as in OpenAI's tsv; no quoting, so no tab or newline within
        rows = [[round(1000 * span.start), round(1000 * span.end), " ".join(span.text.split())] for span in spans]
        writer = csv.writer(out, dialect="excel-tab", lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None)
    else:
        rows = [[f"{span.start:.3f}", f"{span.end:.3f}", span.text] for span in spans]
        writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["start", "end", "text", *(["channel"] if split else [])])
    writer.writerows([*row, *([span.channel] if split else [])] for row, span in zip(rows, spans, strict=True))
    return out.getvalue()


def _srt(found: list[Cue]) -> str:
    # An arrow within the text would be taken for that of a line of times.
    blocks = [
        f"{number}\n{_times(cue, ',')}\n{_speaker(cue)}" + "\n".join(cue.lines).replace("-->", "->")
        for number, cue in enumerate(found, start=1)
    ]
    return "\n\n".join(blocks) + "\n"


def _vtt(found: list[Cue]) -> str:
    blocks = []
    for number, cue in enumerate(found, start=1):
        voice = "" if cue.channel is None else f"<v Channel {cue.channel}>"
        lines = [html.escape(line, quote=False) for line in cue.lines]
        if cue.marked:
            line, first, last = cue.marked
            parts = (cue.lines[line][:first], cue.lines[line][first:last], cue.lines[line][last:])
            before, word, after = (html.escape(part, quote=False) for part in parts)
            lines[line] = f"{before}<u>{word}</u>{after}"
        blocks.append(f"{number}\n{_times(cue, '.')}\n{voice}" + "\n".join(lines))
    return "\n\n".join(["WEBVTT", *blocks]) + "\n"


def _times(cue: Cue, mark: str) -> str:
    # WebVTT refuses a cue without length.
    return f"{clock(cue.start, mark)} --> {clock(max(cue.end, cue.start + 0.001), mark)}"


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
