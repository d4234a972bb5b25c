"""Transcripts as text, JSON and subtitles."""

import dataclasses
import json
import os
import tempfile
from collections import Counter
from pathlib import Path

import pysubs2

from .transcription import Transcript

FORMATS = {"text": "txt", "json": "json", "srt": "srt", "vtt": "vtt"}


def render(transcript: Transcript, file_format: str, audio: str = "") -> str:
    """One transcript as the content of a file.

    Args:
        transcript: with segments for "srt" and "vtt"; words take their place where there are any.
        file_format: a key of `FORMATS`.
        audio: name of the audio file, for "json".

    Returns:
        str: ending in a newline.
    """
    if file_format == "text":
        return transcript.text + "\n"
    if file_format == "json":
        content = {"audio": audio, **dataclasses.asdict(transcript)}
        return json.dumps(content, ensure_ascii=False, indent=2) + "\n"
    subtitles = pysubs2.SSAFile()
    for span in transcript.words or transcript.segments:
        start, end = pysubs2.make_time(s=span.start), pysubs2.make_time(s=span.end)
        subtitles.append(pysubs2.SSAEvent(start=start, end=end, text=span.text))
    return subtitles.to_string(file_format).rstrip("\n") + "\n"


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


def write_whole(path: Path, content: str) -> None:
    """Write `content` to `path` so that the file is there whole or not at all."""
    descriptor, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
