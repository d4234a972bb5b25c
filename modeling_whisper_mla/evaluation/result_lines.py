"""Results of a run on disk as JSON lines, one each, so that an interrupted run continues where it stopped."""

import glob
import json
import os
from collections.abc import Iterable
from pathlib import Path

from whisper_mla.hub.whole_file import write_whole

_HEADER = "settings"


class ResultLines:
    """JSON lines of results, and the settings that they were made with.

    While a run goes on, every process appends to a file of its own beside it, `NAME.partRANK.jsonl`, and forces each
    append to the disk; a line that a kill cut short is dropped when the parts are united. A disk that is full leaves
    the part as it was before. The file itself is replaced whole, never changed.

    Args:
        path: of the whole file, ending in `.jsonl`.
        settings: whatever decides the results, as JSON values. Results of other settings are not continued.
        rank: of this process.
        key: the field by which a result is told from others.
        settings_file: where the settings are; None: in the first line of every file.
    """

    def __init__(
        self, path: str | Path, settings: dict, rank: int = 0, key: str = "index", settings_file: Path | None = None
    ):
        self.path, self.settings = Path(path), json.loads(json.dumps(settings))
        self.key, self.settings_file = key, settings_file
        self._part = self._part_of(rank)

    def collect_lines(self) -> dict:
        """Unite what there is in the file and its parts, and remove the parts. For one process, while none appends.

        Returns:
            dict: from the key of a result to its line, bytes of JSON.

        Raises:
            ValueError: the file is not of this kind, or holds results of other settings.
        """
        parts = self._parts()
        known = [path for path in [self.path, *parts] if path.exists()]
        if self.settings_file and (known or self.settings_file.exists()):
            self._check_settings_file(known)
        found: dict = {}
        for path in known:
            found.update(self._read(path))
        if parts:
            self.write_lines(found[key] for key in sorted(found))
        for path in parts:
            path.unlink()
        return found

    def write_settings(self) -> None:
        """Write the settings file, where there is one, before the first result."""
        if self.settings_file:
            write_whole(self.settings_file, json.dumps(self.settings, ensure_ascii=False, indent=1) + "\n")

    def append_rows(self, rows: Iterable[dict]) -> None:
        """Add results to this process's part, on the disk when this returns.

        Raises:
            OSError: they cannot be written, for want of space for one; the part is then as it was before.
        """
        lines = [json_line(row) for row in rows]
        if self.settings_file is None and not self._part.exists():
            lines.insert(0, json_line({_HEADER: self.settings}))
        append_whole(self._part, b"".join(lines))

    def write_lines(self, lines: Iterable[bytes]) -> None:
        """Replace the file by these lines, whole or not at all."""
        head = [json_line({_HEADER: self.settings})] if self.settings_file is None else []
        write_whole(self.path, b"".join([*head, *lines]).decode())

    def remove(self) -> None:
        """Forget all results, to start afresh."""
        for path in self._parts():
            path.unlink()
        self.path.unlink(missing_ok=True)
        if self.settings_file:
            self.settings_file.unlink(missing_ok=True)

    def _parts(self) -> list[Path]:
        pattern = glob.escape(str(self._part_of("RANK"))).replace("RANK", "*")
        return [Path(name) for name in sorted(glob.glob(pattern))]

    def _part_of(self, rank: int | str) -> Path:
        return self.path.with_name(f"{self.path.stem}.part{rank}.jsonl")

    def _read(self, path: Path) -> dict:
        with open(path, "rb") as file:
            lines = [line for line in file if line.endswith(b"\n")]  # the last may have been cut short
        if not lines:
            return {}
        try:
            if self.settings_file is None:
                settings = json.loads(lines.pop(0))[_HEADER]
                self._check_settings(path, settings)
            return {self._key_of(json.loads(line)): line for line in lines}
        except (ValueError, TypeError, KeyError) as error:
            if isinstance(error, OtherSettings):
                raise
            raise ValueError(
                f"{path}: not a file of results ({error}). Choose another output, or --overwrite."
            ) from error

    def _key_of(self, row: dict):
        return row[self.key]

    def _check_settings_file(self, known: list[Path]) -> None:
        path = self.settings_file
        assert path is not None
        try:
            settings = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise ValueError(
                f"{known[0]}: is there, but {path.name}, which says how its results were made, is not. Choose another "
                "output, or start afresh with --overwrite."
            ) from None
        except ValueError as error:
            raise ValueError(f"{path}: not a file of settings ({error}). Choose another output.") from error
        self._check_settings(path, settings)

    def _check_settings(self, path: Path, settings: dict) -> None:
        if settings != self.settings:
            names = sorted(key for key in {*settings, *self.settings} if settings.get(key) != self.settings.get(key))
            raise OtherSettings(
                f"{path}: holds results of other settings ({', '.join(names)}). Continue with the same settings, "
                "choose another output, or start afresh with --overwrite."
            )


class OtherSettings(ValueError):
    """Results that were made with other settings."""


def json_line(content: dict) -> bytes:
    """One line of JSON lines, UTF-8; a file name that is none is written in escapes."""
    try:
        return (json.dumps(content, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(content) + "\n").encode()


def append_whole(path: Path, content: bytes) -> None:
    """Append to a file, all on the disk when this returns, or the file as it was before.

    Raises:
        OSError: it cannot be written.
    """
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        before = os.fstat(file).st_size
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(file, rest) :]
            os.fsync(file)
        except OSError as error:
            os.ftruncate(file, before)  # takes no space
            raise OSError(
                error.errno,
                f"{error.strerror}: nothing of what did not fit has been left in the file. What was there before is "
                "whole: free some space and start again with the same arguments to go on",
                str(path),
            ) from error
    finally:
        os.close(file)
