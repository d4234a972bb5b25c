"""What a calibration that is under way has found, in a file: one that was interrupted goes on from there."""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from whisper_mla.conversion.errors import ConversionError

SECONDS_BETWEEN = 30


class InterruptedGathering:
    """Where a calibration keeps transcripts and sums.

    Args:
        path: of the file; written aside, then renamed. What is there and belongs to something else is replaced.
        identity: of model, audio and options: sums of others are not continued.

    Attributes:
        transcripts: tokens by number of the utterance, those of the file and what is added to them.
        done: batches of each pass that the sums of the file are of.

    Raises:
        ConversionError: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike, identity: str):
        self.path, self.identity = Path(path), identity
        self._saved = time.monotonic()
        found = self._content()  # whose sums, which may be large, are read when they are needed
        self.transcripts: dict[int, list[int]] = found.get("transcripts", {})
        self.done: list[int] = (found.get("sums") or {}).get("done", [])

    def _content(self) -> dict[str, Any]:
        """What was saved; nothing if there is no file, or one that is damaged or of something else."""
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            return content if content["identity"] == self.identity else {}
        except Exception:  # whatever is wrong with a half-finished run's file, the run starts anew
            return {}

    def read(self) -> dict[str, Any] | None:
        """The sums as they were saved; None if there are none."""
        return self._content().get("sums")

    def offer(self, sums: dict[str, Any] | None = None) -> None:
        """Save, if the last time is half a minute ago.

        Args:
            sums: tensors, numbers, and lists and mappings of them; None: there are only transcripts yet.
        """
        if time.monotonic() - self._saved < SECONDS_BETWEEN:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{self.path.name}-", dir=self.path.parent) as folder:
                content = {"identity": self.identity, "transcripts": self.transcripts, "sums": sums}
                torch.save(content, f"{folder}/new")
                os.replace(f"{folder}/new", self.path)
        except (OSError, RuntimeError) as error:
            raise ConversionError(f"{self.path}: cannot be written ({error}).") from error
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Delete the file: the statistics are whole."""
        self.path.unlink(missing_ok=True)
