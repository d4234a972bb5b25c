"""Transcripts of a run on disk, utterance by utterance, so that an interrupted run continues."""

import dataclasses
import glob
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from whisper_mla.hub.whole_file import write_whole

_HEADER = "settings"


@dataclass(frozen=True)
class UtteranceResult:
    """One transcript.

    Attributes:
        index: of the utterance in the run, from 0.
        id, dataset, language, reference: of the utterance.
        hypothesis: the transcript; None if the audio could not be read.
        audio_seconds: length of the audio.
        processing_seconds: this utterance's share of its batch's time.
        error: why the audio could not be read.
        fallbacks: windows that were decoded again at a higher temperature.
        skipped_seconds: audio left out because it seemed to hold no speech.
    """

    index: int
    id: str
    dataset: str
    language: str | None
    reference: str
    hypothesis: str | None
    audio_seconds: float
    processing_seconds: float
    error: str | None = None
    fallbacks: int = 0
    skipped_seconds: float = 0.0


class ResultsFile:
    """JSON lines: the settings of the run first, then one result each.

    While a run goes on, every process appends to a file of its own beside it, `NAME.partRANK.jsonl`, and forces each
    batch to the disk; a line that a kill cut short is dropped. The file itself is replaced whole, never changed.

    Args:
        path: of the whole file, ending in `.jsonl`.
        settings: whatever decides the transcripts, as JSON values. Results of other settings are not continued.
        rank: of this process.
    """

    def __init__(self, path: str | Path, settings: dict, rank: int = 0):
        self.path, self.settings = Path(path), json.loads(json.dumps(settings))
        self._part = self._part_of(rank)

    def collect(self) -> dict[int, UtteranceResult]:
        """Unite what there is in the file and its parts, and remove the parts. For one process, while none appends.

        Returns:
            dict: by index.

        Raises:
            ValueError: the file is not of this kind, or holds results of other settings.
        """
        parts = [Path(name) for name in sorted(glob.glob(glob.escape(str(self._part_of("RANK"))).replace("RANK", "*")))]
        found: dict[int, UtteranceResult] = {}
        for path in [self.path, *parts]:
            if path.exists():
                found.update((result.index, result) for result in self._read(path))
        if parts:
            self.write(found.values())
        for path in parts:
            path.unlink()
        return found

    def append(self, results: Iterable[UtteranceResult]) -> None:
        """Add results to this process's part, on the disk when this returns."""
        lines = [_line(dataclasses.asdict(result)) for result in results]
        if not self._part.exists():
            lines.insert(0, _line({_HEADER: self.settings}))
        with open(self._part, "a", encoding="utf-8") as file:
            file.write("".join(lines))
            file.flush()
            os.fsync(file.fileno())

    def write(self, results: Iterable[UtteranceResult]) -> None:
        """Replace the file by these results in order, whole or not at all."""
        lines = [_line(dataclasses.asdict(result)) for result in sorted(results, key=lambda result: result.index)]
        write_whole(self.path, _line({_HEADER: self.settings}) + "".join(lines))

    def remove(self) -> None:
        """Forget all results, to start afresh."""
        for name in glob.glob(glob.escape(str(self._part_of("RANK"))).replace("RANK", "*")):
            Path(name).unlink()
        self.path.unlink(missing_ok=True)

    def _part_of(self, rank: int | str) -> Path:
        return self.path.with_name(f"{self.path.stem}.part{rank}.jsonl")

    def _read(self, path: Path) -> list[UtteranceResult]:
        lines = path.read_bytes().split(b"\n")[:-1]  # what comes after the last line end was cut short
        if not lines:
            return []
        try:
            settings = json.loads(lines[0])[_HEADER]
            results = [UtteranceResult(**json.loads(line)) for line in lines[1:]]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path}: not a file of results ({error}). Choose another output, or --overwrite."
            ) from error
        if settings != self.settings:
            names = sorted(key for key in {*settings, *self.settings} if settings.get(key) != self.settings.get(key))
            raise ValueError(
                f"{path}: holds results of other settings ({', '.join(names)}). Continue with the same settings, "
                "choose another output, or start afresh with --overwrite."
            )
        return results


def _line(content: dict) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"
