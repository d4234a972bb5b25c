"""Read audio files: what libsndfile reads, and what ffmpeg reads where it is installed."""

import json
import logging
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from .announced_length import announced_seconds, lacks_its_end

SAMPLING_RATE = 16_000
# Encoders pad, and headers round: less missing than this is no sign of a truncated file.
TOLERANCE_SECONDS = 0.5

_BLOCK = 1 << 20
# Files of bare samples: nothing in them says how many a second has.
_HEADERLESS = {".raw", ".pcm"}

logger = logging.getLogger(__name__)


class AudioError(ValueError):
    """An audio file that cannot be transcribed. The message names the file and the cause."""


@dataclass(frozen=True)
class AudioFile:
    """What was read of a file.

    Attributes:
        channels: float32 `[channels, samples]` at 16 kHz, at least one sample, finite.
        warning: one line where the file holds less than it announces; else None.
    """

    channels: np.ndarray
    warning: str | None = None


def read_audio(path: str | Path) -> np.ndarray:
    """One channel at 16 kHz. A file that seems truncated is logged as a warning.

    Args:
        path: a file of any sampling rate, number of channels (averaged) and length.

    Returns:
        numpy.ndarray: float32 `[samples]`, at least one sample, finite.

    Raises:
        AudioError: missing, unreadable, empty, or holding values that are not finite.
    """
    file = read_channels(path, mix=True)
    if file.warning:
        logger.warning(file.warning)
    return file.channels[0]


def read_channels(path: str | Path, mix: bool) -> AudioFile:
    """The channels of a file at 16 kHz.

    Args:
        path: a file of any sampling rate, number of channels and length.
        mix: average the channels to one.

    Returns:
        AudioFile: the channels, and whether some audio is missing.

    Raises:
        AudioError: as for `read_audio`, whatever a reader raises.
    """
    path = Path(path)
    try:
        return _read_channels(path, mix)
    except AudioError:
        raise
    except Exception as error:  # readers have no class of their own for all that may be wrong with a file
        raise AudioError(f"{path}: cannot be read ({type(error).__name__}: {error}).") from error


def _read_channels(path: Path, mix: bool) -> AudioFile:
    if path.is_dir():
        raise AudioError(f"{path}: is a folder, not an audio file.")
    if not path.is_file():
        raise AudioError(f"{path}: no such file.")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: the file is empty.")
    if path.suffix.lower() in _HEADERLESS:
        raise AudioError(
            f"{path}: samples without a header, of unknown sampling rate. Convert to WAV or FLAC, which state it."
        )
    try:
        samples, rate = _read_with_libsndfile(path)
        announced = announced_seconds(path)
    except Exception as error:  # SoundFileError for most, TypeError or others for some
        samples, announced = _read_with_ffmpeg(path, mix, error)
        rate = SAMPLING_RATE
    if mix and samples.shape[1] > 1:
        samples = samples.mean(axis=1, keepdims=True)
    if rate != SAMPLING_RATE and len(samples):
        samples = soxr.resample(samples, rate, SAMPLING_RATE)
    if len(samples) == 0:
        raise AudioError(f"{path}: holds no audio (zero samples).")
    if not np.isfinite(samples).all():
        raise AudioError(f"{path}: holds NaN or infinite samples.")
    seconds = len(samples) / SAMPLING_RATE
    warning = None
    if announced is not None and seconds < announced - TOLERANCE_SECONDS:
        warning = f"{path}: seems truncated: {seconds:.1f} s could be read of the {announced:.1f} s that it announces."
    elif lacks_its_end(path):
        warning = f"{path}: seems truncated: the stream does not end; {seconds:.1f} s could be read."
    return AudioFile(np.ascontiguousarray(samples.T, dtype=np.float32), warning)


def read_encoded_audio(data: bytes, name: str) -> np.ndarray:
    """Decode the bytes of an audio file as `read_audio` decodes the file.

    Args:
        data: the content of the file.
        name: of the file or row, for errors; its suffix tells the format where the content does not.

    Returns:
        numpy.ndarray: float32 `[samples]` at 16 kHz, one channel.

    Raises:
        AudioError: not audio that can be read; names `name`.
    """
    with tempfile.NamedTemporaryFile(suffix=Path(name).suffix) as file:
        file.write(data)
        file.flush()
        try:
            read = read_channels(file.name, mix=True)
        except AudioError as error:
            raise AudioError(str(error).replace(file.name, name)) from error
    if read.warning:
        logger.warning(read.warning.replace(file.name, name))
    return read.channels[0]


def _read_with_libsndfile(path: Path) -> tuple[np.ndarray, int]:
    """Samples `[samples, channels]` up to the first damage, and their rate."""
    with soundfile.SoundFile(path) as file:
        blocks = []
        try:
            while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
                blocks.append(block)
        except soundfile.SoundFileError:
            blocks += _up_to_damage(path, _BLOCK * len(blocks))
            if not blocks:
                raise
        empty = np.zeros((0, file.channels), dtype=np.float32)
        return np.concatenate(blocks) if blocks else empty, file.samplerate


def _up_to_damage(path: Path, start: int, step: int = 4096) -> list[np.ndarray]:
    """What can be read in small steps of a block that cannot be read at once."""
    blocks = []
    try:
        with soundfile.SoundFile(path) as file:
            file.seek(start)
            while len(block := file.read(step, dtype="float32", always_2d=True)):
                blocks.append(block)
    except soundfile.SoundFileError:
        pass
    return blocks


def _read_with_ffmpeg(path: Path, mix: bool, cause: Exception) -> tuple[np.ndarray, float | None]:
    """Samples `[samples, channels]` at 16 kHz, and the seconds that the file announces."""
    if shutil.which("ffmpeg") is None:
        raise AudioError(f"{path}: libsndfile cannot read it ({cause}), and ffmpeg is not installed.") from cause
    source = f"file:{path.absolute()}"
    channels, announced = _ask_ffprobe(source)
    count = 1 if mix else channels
    command = ["ffmpeg", "-nostdin", "-v", "error", "-i", source]
    command += ["-f", "f32le", "-ac", str(count), "-ar", str(SAMPLING_RATE), "-"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode and not (done.stdout and announced):
        reason = done.stderr.decode(errors="replace").strip().splitlines()
        raise AudioError(
            f"{path}: not audio that can be read ({reason[-1] if reason else 'ffmpeg failed'})."
        ) from cause
    samples = np.frombuffer(done.stdout[: len(done.stdout) // (4 * count) * 4 * count], dtype=np.float32)
    return samples.reshape(-1, count), announced


def _ask_ffprobe(source: str) -> tuple[int, float | None]:
    """Channels and seconds of a file; 1 and None where ffprobe is not installed or does not know."""
    if shutil.which("ffprobe") is None:
        return 1, None
    command = ["ffprobe", "-v", "error", "-select_streams", "a:0", "-of", "json"]
    command += ["-show_entries", "stream=channels:format=duration", source]
    done = subprocess.run(command, capture_output=True, check=False)
    try:
        about = json.loads(done.stdout)
        seconds = about.get("format", {}).get("duration")
        return int(about["streams"][0]["channels"]), None if seconds is None else float(seconds)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return 1, None
