"""What became of a bulk run: how much, how fast, and every recording that failed with the reason."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from .run import Progress


@dataclass(frozen=True)
class Failure:
    """A recording without a transcript.

    Attributes:
        audio: its id.
        error: the reason.
    """

    audio: str
    error: str


@dataclass(frozen=True)
class Summary:
    """The whole output, and this run's part of it.

    Attributes:
        files: with a result, over all runs, the failed ones included.
        audio_seconds: of those that have a transcript.
        failures: of all runs.
        processes: of this run.
        new_files: done by this run.
        new_audio_seconds: transcribed by this run.
        seconds: that this run took, loading the model not counted.
        batch_sizes: of each process at its end.
    """

    files: int
    audio_seconds: float
    failures: list[Failure]
    processes: int
    new_files: int
    new_audio_seconds: float
    seconds: float
    batch_sizes: list[int]

    @property
    def files_per_second(self) -> float:
        return self.new_files / self.seconds if self.seconds else 0.0

    @property
    def audio_hours_per_hour(self) -> float:
        return self.new_audio_seconds / self.seconds if self.seconds else 0.0

    def as_json(self) -> str:
        """All of it with the speeds, as the content of a file."""
        speeds = {"files_per_second": self.files_per_second, "audio_hours_per_hour": self.audio_hours_per_hour}
        return json.dumps({**asdict(self), **speeds}, indent=1) + "\n"


def summarise(lines: Iterable[bytes], parts: list[Progress]) -> Summary:
    """Add up.

    Args:
        lines: of all results.
        parts: of this run, one for each process.
    """
    files, seconds, failures = 0, 0.0, []
    for line in lines:
        row = json.loads(line)
        files += 1
        seconds += row.get("seconds", 0.0)
        if "error" in row:
            failures.append(Failure(row["audio"], row["error"]))
    return Summary(
        files,
        round(seconds, 3),
        failures,
        processes=len(parts),
        new_files=sum(part.files for part in parts),
        new_audio_seconds=round(sum(part.audio_seconds for part in parts), 3),
        seconds=round(max((part.seconds for part in parts), default=0.0), 3),
        batch_sizes=[part.batch_size for part in parts],
    )
