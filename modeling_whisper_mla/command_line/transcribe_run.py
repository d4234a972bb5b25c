"""The work of `whisper-mla transcribe`: read, transcribe and hand over, batch by batch, with progress."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from whisper_mla.transcription.audio import SAMPLING_RATE, AudioError, AudioFile, read_channels
from whisper_mla.transcription.channels import merge_channels
from whisper_mla.transcription.transcriber import Transcriber
from whisper_mla.transcription.transcript import Transcript
from whisper_mla.transcription.voice_activity import VoiceActivityDetector

from . import console


@dataclass(frozen=True)
class Job:
    """An audio file, and the name of the file its transcript goes to."""

    audio: Path
    name: str


def run_batches(
    transcriber: Transcriber,
    jobs: list[Job],
    batch_size: int,
    split_channels: bool = False,
    detector: VoiceActivityDetector | None = None,
) -> Iterator[tuple[Job, Transcript | AudioError]]:
    """Transcribe and yield in order, with a progress bar of files on standard error.

    What is wrong with one file does not keep the others from being transcribed.
    """
    transformers.utils.logging.disable_progress_bar()
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console.messages, transient=True, redirect_stdout=False) as progress:
        bar = progress.add_task("Transcribing", total=len(jobs))
        finished = 0
        for start in range(0, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            read = [_read(job.audio, split_channels) for job in batch]
            audios = [channel for file in read if isinstance(file, AudioFile) for channel in file.channels]
            for file in read:
                if isinstance(file, AudioFile) and file.warning:
                    console.note(f"Warning: {file.warning}")

            def show(frames: torch.Tensor, batch=batch, finished=finished):
                done, total = (column.sum().item() for column in frames.T)
                progress.update(bar, completed=finished + len(batch) * done / max(total, 1))

            seconds = sum(len(samples) for samples in audios) / SAMPLING_RATE
            progress.update(bar, description=f"Transcribing {len(batch)} files, {seconds:.0f} s of audio")
            stretches = [detector(samples) for samples in audios] if detector else None
            transcripts = iter(transcriber(audios, show, stretches) if audios else [])
            finished += len(batch)
            progress.update(bar, completed=finished)
            for job, file in zip(batch, read, strict=True):
                if isinstance(file, AudioError):
                    yield job, file
                else:
                    parts = [next(transcripts) for _ in file.channels]
                    yield job, merge_channels(parts) if split_channels and len(parts) > 1 else parts[0]


def _read(path: Path, split_channels: bool) -> AudioFile | AudioError:
    try:
        return read_channels(path, mix=not split_channels)
    except AudioError as error:
        return error
