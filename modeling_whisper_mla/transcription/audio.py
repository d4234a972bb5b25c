"""Read audio files: what libsndfile reads, and what ffmpeg reads where it is installed."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import soxr

SAMPLING_RATE = 16_000


class AudioError(ValueError):
    """An audio file that cannot be transcribed. The message names the file and the cause."""


def read_audio(path: str | Path) -> np.ndarray:
    """One channel at 16 kHz.

    Args:
        path: a file of any sampling rate, number of channels (averaged) and length.

    Returns:
        numpy.ndarray: float32 `[samples]`, at least one sample, finite.

    Raises:
        AudioError: missing, unreadable, empty, or holding values that are not finite.
    """
    path = Path(path)
    if path.is_dir():
        raise AudioError(f"{path}: is a folder, not an audio file.")
    if not path.is_file():
        raise AudioError(f"{path}: no such file.")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: the file is empty.")
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        audio = samples.mean(axis=1)
        if rate != SAMPLING_RATE and len(audio):
            audio = soxr.resample(audio, rate, SAMPLING_RATE)
    except (soundfile.SoundFileError, ValueError) as error:
        audio = _read_with_ffmpeg(path, error)
    if len(audio) == 0:
        raise AudioError(f"{path}: holds no audio (zero samples).")
    if not np.isfinite(audio).all():
        raise AudioError(f"{path}: holds NaN or infinite samples.")
    return np.ascontiguousarray(audio, dtype=np.float32)


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
            return read_audio(file.name)
        except AudioError as error:
            raise AudioError(str(error).replace(file.name, name)) from error


def _read_with_ffmpeg(path: Path, cause: Exception) -> np.ndarray:
    if shutil.which("ffmpeg") is None:
        raise AudioError(f"{path}: libsndfile cannot read it ({cause}), and ffmpeg is not installed.") from cause
    command = ["ffmpeg", "-nostdin", "-v", "error", "-i", f"file:{path.absolute()}"]
    command += ["-f", "f32le", "-ac", "1", "-ar", str(SAMPLING_RATE), "-"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines()
        raise AudioError(
            f"{path}: not audio that can be read ({reason[-1] if reason else 'ffmpeg failed'})."
        ) from cause
    return np.frombuffer(done.stdout, dtype=np.float32)
