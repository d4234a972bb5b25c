"""Calibration audio: clips from files, folders, arrays or a dataset."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging
from transformers.utils.logging import tqdm

from whisper_mla.conversion.errors import ConversionError
from whisper_mla.transcription.audio import SAMPLING_RATE, AudioError, read_audio, read_encoded_audio
from whisper_mla.transcription.audio_folder import TEXT_COLUMNS, find_metadata, read_rows

logger = logging.get_logger(__name__)
_AUDIO_SUFFIXES = {".flac", ".wav", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".wma", ".webm", ".mp4", ".aiff", ".aif"}

# Peaks below it, -80 dB of full scale, are the noise of 16-bit samples.
_SILENCE = 1e-4
# Seconds.
_LITTLE = 10


@dataclass(frozen=True)
class Clip:
    """Audio for calibration.

    Attributes:
        name: for messages.
        samples: float32 `[samples]` at 16 kHz.
        text: its transcript; None to let the stock model transcribe.
    """

    name: str
    samples: np.ndarray
    text: str | None = None


def read_clips(calibration: Any) -> list[Clip]:
    """Read calibration audio.

    Args:
        calibration: a folder of audio (with the transcripts of its metadata.csv or metadata.jsonl, if there is one), a
            file, a list of files or of 16 kHz float arrays, or a `datasets` dataset with an "audio" column (and
            "text", "sentence" or "transcription").

    Returns:
        list[Clip]: in a fixed order. What cannot be read or is silent is named in a warning and left out; less
            than ten seconds in all is warned of.

    Raises:
        ConversionError: nothing to read, or nothing that can be read.
    """
    if isinstance(calibration, (str, os.PathLike, dict)) or getattr(calibration, "ndim", None) == 1:
        calibration = [calibration]
    if not isinstance(calibration, Iterable):
        raise ConversionError(f"calibration={calibration!r}: expected audio files, folders, arrays or a dataset.")
    calibration = _undecoded(calibration)
    clips: list[Clip] = []
    failures: list[str] = []
    for read in tqdm(list(_readers(calibration)), desc="Reading calibration audio", unit="clip"):
        try:
            clips.append(_audible(read()))
        except AudioError as error:
            failures.append(str(error))
            logger.warning(f"Left out of the calibration: {error}")
    if not clips:
        reason = f": {failures[0].rstrip('.')}" if failures else ""
        raise ConversionError(f"calibration: no audio that can be read{reason}. Give audio files or a folder of them.")
    seconds = sum(len(clip.samples) for clip in clips) / SAMPLING_RATE
    if seconds < _LITTLE:
        logger.warning(f"calibration: {seconds:.1f} s of audio tell little of what a conversion costs. Give minutes.")
    return clips


def _audible(clip: Clip) -> Clip:
    if not np.abs(clip.samples).max(initial=0) > _SILENCE:
        raise AudioError(f"{clip.name}: holds nothing but silence.")
    return clip


def _undecoded(calibration: Iterable) -> Iterable:
    """A dataset whose audio comes as it is stored, so that no further decoder has to be installed."""
    features = getattr(calibration, "features", None)
    if not features:
        return calibration
    import datasets  # slow to import, and rarely needed

    if isinstance(features.get("audio"), datasets.Audio):
        return calibration.cast_column("audio", datasets.Audio(decode=False))  # type: ignore[attr-defined]
    return calibration


def _readers(calibration: Iterable) -> Iterator:
    for number, item in enumerate(calibration):
        if isinstance(item, (str, os.PathLike)):
            path = Path(item)
            transcripts = _transcripts(path) if path.is_dir() else {}
            for file in _files(path):
                text = transcripts.get(file.relative_to(path).as_posix()) if path.is_dir() else None
                yield lambda file=file, text=text: Clip(str(file), read_audio(file), text)
        elif isinstance(item, dict):
            yield lambda item=item, number=number: _from_row(item, number)
        else:
            yield lambda item=item, number=number: _from_array(item, f"clip {number}")


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _AUDIO_SUFFIXES and file.is_file())
    if not files:
        raise ConversionError(f"{path}: no audio files in this folder ({', '.join(sorted(_AUDIO_SUFFIXES))}).")
    return files


def _transcripts(folder: Path) -> dict[str, str]:
    """File name, relative to the folder, to transcript, from an audio folder's metadata."""
    metadata = find_metadata(folder)
    if metadata is None:
        return {}
    try:
        texts = {str(row.get("file_name")): _text(row) for row in read_rows(metadata)}
    except (OSError, ValueError) as error:
        reason = str(error).removeprefix(f"{metadata}: ")
        raise ConversionError(f"{metadata}: cannot be read ({reason}). Repair or remove it.") from error
    return {Path(name).as_posix(): text for name, text in texts.items() if text}


def _text(row: dict) -> str | None:
    return next((row[key] for key in TEXT_COLUMNS if row.get(key)), None)


def _from_array(item: Any, name: str, text: str | None = None) -> Clip:
    samples = np.asarray(item)
    if samples.ndim != 1 or samples.size == 0 or samples.dtype.kind != "f" or not np.isfinite(samples).all():
        raise AudioError(
            f"{name}: expected a finite float array [samples] at 16 kHz, not {samples.dtype} {list(samples.shape)}."
        )
    return Clip(name, samples.astype(np.float32), text)


def _from_row(row: dict, number: int) -> Clip:
    audio, name, text = row.get("audio"), f"row {number}", _text(row)
    if isinstance(audio, dict) and audio.get("array") is not None:
        if audio.get("sampling_rate") != SAMPLING_RATE:
            raise AudioError(
                f"{name}: sampling rate {audio.get('sampling_rate')}, expected {SAMPLING_RATE}. Cast the column with "
                "dataset.cast_column('audio', Audio(sampling_rate=16000))."
            )
        return _from_array(audio["array"], name, text)
    if isinstance(audio, dict) and audio.get("bytes"):
        return Clip(name, read_encoded_audio(audio["bytes"], audio.get("path") or name), text)
    path = audio.get("path") if isinstance(audio, dict) else audio
    if isinstance(path, (str, os.PathLike)):
        return Clip(name, read_audio(Path(path)), text)
    raise AudioError(f"{name}: no audio. A dataset needs an 'audio' column of files or of arrays.")
