"""What is to be transcribed: a folder, a manifest, or a dataset of the `datasets` library."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from whisper_mla.evaluation.utterances import language_code
from whisper_mla.transcription.announced_length import announced_seconds
from whisper_mla.transcription.audio import read_audio
from whisper_mla.transcription.audio_folder import read_rows

AUDIO_SUFFIXES = {
    *(".aac", ".aif", ".aiff", ".amr", ".au", ".caf", ".flac", ".m4a", ".mkv", ".mov", ".mp3", ".mp4"),
    *(".oga", ".ogg", ".opus", ".wav", ".weba", ".webm", ".wma"),
}
# Where a manifest may name its files; the first that is there.
FILE_COLUMNS = ("file_name", "audio", "path", "audio_filepath", "audio_path", "wav")


@dataclass(frozen=True)
class Item:
    """One recording.

    Attributes:
        id: by which its result is known: the name in the manifest or within the folder, or the number of a row.
        load: gives the samples, float32 `[samples]` at 16 kHz; raises AudioError.
        size: of the file in bytes, 0 if unknown.
        language: Whisper's code; None: as for the whole run.
        length: gives the seconds without reading the audio, or None.
    """

    id: str
    load: Callable[[], np.ndarray] = field(compare=False)
    size: int = 0
    language: str | None = None
    length: Callable[[], float | None] = field(compare=False, default=lambda: None)


@dataclass(frozen=True)
class AudioPath:
    """A file on disk, ready to be read; can be sent to another process."""

    path: str

    def load(self) -> np.ndarray:
        return read_audio(self.path)

    def length(self) -> float | None:
        """The seconds that its headers announce; None where they cannot be read."""
        try:
            return announced_seconds(Path(self.path))
        except Exception:  # whatever is wrong with the file is told when it is read
            return None


def file_item(name: str, path: Path, language: str | None = None) -> Item:
    """An item of a file, whether it is there or not."""
    audio = AudioPath(str(path))
    try:
        size = path.stat().st_size
    except OSError:
        size = 0
    return Item(name, audio.load, size, language_code(language), audio.length)


def read_folder(folder: Path) -> list[Item]:
    """All audio in a folder and those below it, by name.

    Raises:
        ValueError: there is none.
    """
    names = []
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [
            Path(where, name).relative_to(folder)
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in AUDIO_SUFFIXES
        ]
    if not names:
        raise ValueError(f"{folder}: no audio in this folder or below it ({', '.join(sorted(AUDIO_SUFFIXES))}).")
    return [file_item(name.as_posix(), folder / name) for name in sorted(names)]


def read_manifest(manifest: Path, column: str | None = None, skip_missing: bool = False) -> list[Item]:
    """The files that a manifest names, in its order, each once.

    Args:
        manifest: .txt with a path on each line; or .csv, .tsv, .jsonl with a column of paths and possibly `language`.
            Paths are relative to the manifest's folder.
        column: of the paths; None: the first of `FILE_COLUMNS` that is there.
        skip_missing: keep files that are not there, to be recorded as failed, instead of raising.

    Raises:
        ValueError: no path, no such column, a row without a path, or files that are not there, all of which it names.
    """
    if manifest.suffix.lower() in (".csv", ".tsv", ".jsonl"):
        pairs = list(_rows(manifest, column))
    else:
        pairs = [(line, None) for line in _lines(manifest)]
    if not pairs:
        raise ValueError(f"{manifest}: names no file.")
    languages = dict(reversed(pairs))  # the first where one is named twice
    items = [file_item(name, manifest.parent / name, languages[name]) for name in dict.fromkeys(n for n, _ in pairs)]
    missing = [item.id for item in items if not (manifest.parent / item.id).is_file()]
    if missing and not skip_missing:
        raise MissingFiles(
            f"{manifest}: {len(missing)} of {len(items)} files are not there. Correct the manifest, or leave them out "
            "with --skip-missing, which records them as failed.",
            missing,
        )
    return items


class MissingFiles(ValueError):
    """Files that a manifest names and that are not there.

    Args:
        message: for the user.
        names: all of them.
    """

    def __init__(self, message: str, names: list[str]):
        super().__init__(message)
        self.names = names


def _lines(manifest: Path) -> Iterator[str]:
    try:
        yield from (line.strip() for line in manifest.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise ValueError(f"{manifest}: cannot be read ({error}). Expected UTF-8 text, a path on each line.") from error


def _rows(manifest: Path, column: str | None) -> Iterator[tuple[str, str | None]]:
    rows = read_rows(manifest)
    wanted: Iterable[str] = (column,) if column else FILE_COLUMNS
    found = next((name for name in wanted if rows and name in rows[0]), None)
    if rows and found is None:
        raise ValueError(
            f"{manifest}: no column {' or '.join(wanted)}. It has: {', '.join(map(str, rows[0]))}. Name one with "
            "--audio-column."
        )
    for number, row in enumerate(rows, start=1):
        name = row.get(found)
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{manifest}: row {number} has no {found}.")
        yield name.strip(), row.get("language") or None
