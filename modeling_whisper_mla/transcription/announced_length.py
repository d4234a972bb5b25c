"""How long a file says that it is, to notice that some of it is missing."""

import struct
from pathlib import Path

import soundfile


def announced_seconds(path: Path) -> float | None:
    """The length that the headers of a file announce; None where they announce none that can be relied upon.

    Raises:
        OSError: the file cannot be read.
        soundfile.SoundFileError: libsndfile does not know it.
    """
    with open(path, "rb") as file:
        head = file.read(12)
    if head[:4] in (b"RIFF", b"RF64") and head[8:] == b"WAVE":
        return _wav_seconds(path)
    if head[:4] == b"OggS":
        return None  # Ogg announces no length
    info = soundfile.info(path)
    if info.format == "MP3" and not _has_length_header(path):
        return None  # an estimate from the size
    return info.frames / info.samplerate


def lacks_its_end(path: Path) -> bool:
    """Whether an Ogg stream (Opus, Vorbis) has no page that is marked as its last (RFC 3533)."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        if file.read(4) != b"OggS":
            return False
        file.seek(max(0, size - 131_072))  # two of the largest pages
        tail = file.read()
    last = tail.rfind(b"OggS")
    return last < 0 or last + 5 >= len(tail) or not tail[last + 5] & 4


def _wav_seconds(path: Path) -> float | None:
    """From the size of the data chunk, which libsndfile corrects silently. Writers to a pipe leave it open."""
    with open(path, "rb") as file:
        file.seek(12)
        rate = 0
        while len(head := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", head)
            if name == b"fmt ":
                rate = struct.unpack("<I", file.read(size)[8:12])[0]
            elif name == b"data":
                return size / rate if rate and 0 < size < 0xFFFFFF00 else None
            else:
                file.seek(size, 1)
            file.seek(size % 2, 1)
    return None


def _has_length_header(path: Path) -> bool:
    """Whether the first frame of an MP3 file states how many there are."""
    with open(path, "rb") as file:
        head = file.read(10)
        start = 0
        if head[:3] == b"ID3":
            start = 10 + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        file.seek(start)
        frame = file.read(2048)
    return any(mark in frame for mark in (b"Xing", b"Info", b"VBRI"))
