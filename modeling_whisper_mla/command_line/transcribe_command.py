"""`whisper-mla transcribe`: files in, transcripts out, in batches, with progress."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import transformers
import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from whisper_mla.hub.checkpoint_folder import check_writable
from whisper_mla.hub.whole_file import write_whole
from whisper_mla.transcription.audio import SAMPLING_RATE, AudioError, read_audio
from whisper_mla.transcription.transcriber import Transcriber, Transcript, load_for_transcription
from whisper_mla.transcription.transcript_files import output_names, render

from . import console

Timestamps = Literal["none", "segment", "word"]
Format = Literal["text", "json", "srt", "vtt"]
Task = Literal["transcribe", "translate"]
Dtype = Literal["float32", "float16", "bfloat16"]


def transcribe(
    model: Annotated[str, typer.Argument(help="A checkpoint: a folder or a Hub id.", show_default=False)],
    audio: Annotated[list[Path], typer.Argument(help="Audio files of any length and rate.", show_default=False)],
    language: Annotated[str | None, typer.Option(help="Name or code; default: the model's, or detected.")] = None,
    task: Annotated[Task | None, typer.Option(help="Default: the model's.")] = None,
    timestamps: Annotated[
        Timestamps | None, typer.Option(help="Default: segment for srt and vtt, else none.", show_default=False)
    ] = None,
    num_beams: Annotated[int, typer.Option(min=1, help="1 is greedy decoding.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Files decoded at once.")] = 8,
    file_format: Annotated[Format, typer.Option("--format", help="Of the transcripts.")] = "text",
    output_dir: Annotated[
        Path | None, typer.Option(help="Write one file per audio here instead of printing.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Skip audio whose transcript is in OUTPUT_DIR.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; default: an accelerator if any.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Default: float32 on the CPU, else the checkpoint's.")] = None,
    revision: Annotated[str | None, typer.Option(help="Of a Hub checkpoint.", show_default=False)] = None,
):
    needs_times = file_format in ("srt", "vtt")
    if timestamps is None:
        timestamps = "segment" if needs_times else "none"
    if needs_times and timestamps == "none":
        raise typer.BadParameter(f"--format {file_format} needs --timestamps segment or word.")
    if needs_times and output_dir is None and len(audio) > 1:
        raise typer.BadParameter(f"--format {file_format} with several files needs --output-dir.")
    if resume and output_dir is None:
        raise typer.BadParameter("--resume needs --output-dir.")

    names = output_names(audio, file_format) if output_dir else [""] * len(audio)
    if output_dir:
        if output_dir.exists() and not output_dir.is_dir():
            raise ValueError(f"--output-dir {output_dir}: exists and is not a folder.")
        check_writable(output_dir / names[0])
    work = list(zip(audio, names, strict=True))
    if resume and output_dir:
        work = [(path, name) for path, name in work if not (output_dir / name).exists()]
    if resume and len(work) < len(audio):
        console.note(f"{len(audio) - len(work)} of {len(audio)} already transcribed.")
    if not work:
        return
    loaded, processor = load_for_transcription(model, device, dtype, revision)
    if loaded.config.model_type == "whisper":
        console.note(f"Note: {model} is a stock Whisper; its cache is not latent.")
    transcriber = Transcriber(loaded, processor, language, task, timestamps, num_beams)

    if output_dir:
        output_dir.mkdir(parents=True, exist_ok=True)
    failures = 0
    results = []
    for path, name, result in run_batches(transcriber, work, batch_size):
        if isinstance(result, AudioError):
            failures += 1
            console.error(str(result))
        elif output_dir:
            write_whole(output_dir / name, render(result, file_format, str(path)))
        elif file_format == "json":
            results.append(render(result, file_format, str(path)))
        else:
            heading = f"{path}: " if len(audio) > 1 else ""
            print(heading + render(result, file_format), end="", flush=True)
    if results:
        print("[\n" + ",\n".join(text.rstrip() for text in results) + "\n]" if len(audio) > 1 else results[0].rstrip())
    if output_dir:
        console.note(f"{len(work) - failures} transcripts written to {output_dir}")
    if failures:
        console.note(f"{failures} of {len(audio)} files could not be read.")
        raise typer.Exit(1)


def run_batches(
    transcriber: Transcriber, work: list[tuple[Path, str]], batch_size: int
) -> Iterator[tuple[Path, str, Transcript | AudioError]]:
    """Read, transcribe and yield in order, with a progress bar of files on standard error."""
    transformers.utils.logging.disable_progress_bar()
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console.messages, transient=True, redirect_stdout=False) as progress:
        bar = progress.add_task("Transcribing", total=len(work))
        finished = 0
        for start in range(0, len(work), batch_size):
            batch = work[start : start + batch_size]
            audios: list[np.ndarray] = []
            results: list[AudioError | None] = []
            for path, _ in batch:
                try:
                    audios.append(read_audio(path))
                    results.append(None)
                except AudioError as error:
                    results.append(error)

            def show(frames: torch.Tensor, audios=audios, finished=finished):
                done, total = (column.sum().item() for column in frames.T)
                progress.update(bar, completed=finished + len(audios) * done / max(total, 1))

            seconds = sum(len(samples) for samples in audios) / SAMPLING_RATE
            progress.update(bar, description=f"Transcribing {len(audios)} files, {seconds:.0f} s of audio")
            transcripts = iter(transcriber(audios, show) if audios else [])
            finished += len(batch)
            progress.update(bar, completed=finished)
            for (path, name), result in zip(batch, results, strict=True):
                yield path, name, next(transcripts) if result is None else result
