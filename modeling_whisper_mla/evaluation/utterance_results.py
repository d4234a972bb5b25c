"""Transcripts of a run on disk, utterance by utterance, so that an interrupted run continues."""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass

from .result_lines import ResultLines, json_line


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


class ResultsFile(ResultLines):
    """[`ResultLines`] of `UtteranceResult`s, told apart by their index."""

    def collect(self) -> dict[int, UtteranceResult]:
        """As `collect_lines`, read: by index."""
        return {index: UtteranceResult(**json.loads(line)) for index, line in self.collect_lines().items()}

    def append(self, results: Iterable[UtteranceResult]) -> None:
        """As `append_rows`."""
        self.append_rows(dataclasses.asdict(result) for result in results)

    def write(self, results: Iterable[UtteranceResult]) -> None:
        """Replace the file by these results in order, whole or not at all."""
        ordered = sorted(results, key=lambda result: result.index)
        self.write_lines(json_line(dataclasses.asdict(result)) for result in ordered)

    def _key_of(self, row: dict) -> int:
        return UtteranceResult(**row).index
