"""Sums of a calibration that is under way, in a file: one that was interrupted goes on from there."""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from whisper_mla.conversion.errors import ConversionError

SECONDS_BETWEEN = 30


class InterruptedGathering:
    """Where `gather_statistics` keeps its sums.

    Args:
        path: of the file; written aside, then renamed. What is there and belongs to something else is replaced.
        identity: of model, audio and options: sums of others are not continued.

    Raises:
        ConversionError: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike, identity: str):
        self.path, self.identity = Path(path), identity
        self._saved = time.monotonic()

    def read(self) -> dict[str, Any] | None:
        """The sums as they were saved, or None: nothing there, damaged, or of something else."""
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            return content["sums"] if content["identity"] == self.identity else None
        except FileNotFoundError:
            return None
        except Exception:  # whatever is wrong with a half-finished run's file, the run starts anew
            return None

    def offer(self, sums: dict[str, Any]) -> None:
        """Save, if the last time is half a minute ago.

        Args:
            sums: tensors, numbers, and lists and mappings of them.
        """
        if time.monotonic() - self._saved < SECONDS_BETWEEN:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{self.path.name}-", dir=self.path.parent) as folder:
                torch.save({"identity": self.identity, "sums": sums}, f"{folder}/new")
                os.replace(f"{folder}/new", self.path)
        except (OSError, RuntimeError) as error:
            raise ConversionError(f"{self.path}: cannot be written ({error}).") from error
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Delete the file: the statistics are whole."""
        self.path.unlink(missing_ok=True)
