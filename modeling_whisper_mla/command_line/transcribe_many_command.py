"""`whisper-mla transcribe-many`: many recordings on one process or several, continuing where a run stopped."""

import dataclasses
import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import transformers
import typer

from whisper_mla.bulk.batch_size import fitting_batch_size
from whisper_mla.bulk.open_source import Files, Rows, open_source
from whisper_mla.bulk.run import Progress, transcribe_many
from whisper_mla.bulk.sources import MissingFiles
from whisper_mla.bulk.summary import summarise
from whisper_mla.evaluation.checkpoint_identity import check_checkpoint, checkpoint_identity
from whisper_mla.evaluation.processes import Processes, device_of_process, launched_processes
from whisper_mla.evaluation.result_lines import ResultLines
from whisper_mla.evaluation.utterances import language_code
from whisper_mla.hub.checkpoint_folder import check_writable
from whisper_mla.hub.whole_file import write_whole
from whisper_mla.transcription.compiled_decoding import compile_decoding
from whisper_mla.transcription.loading import load_for_transcription
from whisper_mla.transcription.transcriber import Transcriber

from . import console, fallback_options
from .transcribe_command import Compiled, Dtype, Task, Timestamps
from .transcribe_many_view import show_summary, shown_progress

RESULTS, SETTINGS, SUMMARY = "transcripts.jsonl", "settings.json", "summary.json"


def transcribe_many_command(
    model: Annotated[str, typer.Argument(help="A checkpoint: a folder or a Hub id.", show_default=False)],
    source: Annotated[
        str,
        typer.Argument(
            help="A folder of audio; a manifest (.txt with a path on each line, .csv, .tsv, .jsonl); a dataset that "
            "datasets saved to disk; or one on the Hub (owner/name:configuration).",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option(help="The folder for results; an interrupted run continues.", show_default=False)
    ],
    language: Annotated[str | None, typer.Option(help="Name or code; default: the model's, or detected.")] = None,
    task: Annotated[Task | None, typer.Option(help="Default: the model's.")] = None,
    timestamps: Annotated[Timestamps, typer.Option(help="In the results.")] = "none",
    num_beams: Annotated[int, typer.Option(min=1, help="1 is greedy decoding.")] = 1,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Recordings decoded at once; default: as free memory allows.", show_default=False),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Threads that decode audio, of each process.")] = 2,
    split: Annotated[str | None, typer.Option(help="Of a dataset; default on the Hub: test.")] = None,
    streaming: Annotated[bool, typer.Option("--streaming", help="Read a dataset as it arrives.")] = False,
    audio_column: Annotated[str | None, typer.Option(help="Of a dataset or a manifest.", show_default=False)] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Record files that are not there as failed.")
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Do what failed before again.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start afresh where OUTPUT has results.")] = False,
    temperatures: fallback_options.Temperatures = fallback_options.TEMPERATURES,
    compression_ratio_threshold: fallback_options.CompressionRatioThreshold = fallback_options.COMPRESSION_RATIO,
    logprob_threshold: fallback_options.LogprobThreshold = fallback_options.LOGPROB,
    no_speech_threshold: fallback_options.NoSpeechThreshold = fallback_options.NO_SPEECH,
    condition_on_prev_tokens: fallback_options.ConditionOnPrevTokens = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; default: an accelerator if any.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Default: float32 on the CPU, else the checkpoint's.")] = None,
    compiled: Compiled = False,
    revision: Annotated[str | None, typer.Option(help="Of a Hub checkpoint.", show_default=False)] = None,
):
    fallback = fallback_options.parse(
        temperatures, compression_ratio_threshold, logprob_threshold, no_speech_threshold, condition_on_prev_tokens
    )
    transformers.utils.logging.disable_progress_bar()
    with launched_processes() as processes:
        settings = {
            "source": source,
            "split": split,
            "language": language,
            "task": task,
            "timestamps": timestamps,
            "num_beams": num_beams,
            "dtype": dtype,
            "fallback": dataclasses.asdict(fallback),
        }
        lines = ResultLines(output / RESULTS, settings, processes.rank, key="audio", settings_file=output / SETTINGS)
        read = partial(open_source, source, split, streaming, audio_column, skip_missing)
        begin = partial(_begin, model, revision, language, lines, read, overwrite, retry_failed)
        found, done = _on_the_first(processes, begin)
        loaded, processor = load_for_transcription(model, device_of_process(device), dtype, revision)
        if compiled:
            compile_decoding(loaded)

        @cache
        def transcriber_of(code: str | None) -> Transcriber:
            return Transcriber(loaded, processor, code or language, task, timestamps, num_beams, fallback)

        transcriber_of(None)  # refuses what the model does not have, before any audio is read
        size = batch_size or fitting_batch_size(loaded, num_beams)
        with shown_progress(found.count, len(done), processes) as show:
            part = transcribe_many(
                transcriber_of,
                found.share(processes.rank, processes.count),
                lines,
                done=done,
                batch_size=size,
                workers=workers,
                pool=None if found.count else 64 * size,
                show=show,
                note=partial(_note, processes),
            )
        parts = processes.gather(part)
        failed = _finish(lines, found, parts) if processes.is_first else False
    if failed:
        raise typer.Exit(1)


def _begin(
    model: str,
    revision: str | None,
    language: str | None,
    lines: ResultLines,
    read: Callable[[], Files | Rows],
    overwrite: bool,
    retry_failed: bool,
) -> tuple[Files | Rows, set[str]]:
    """The source and what is done of it. Whatever is wrong is refused here; nothing has been loaded yet."""
    output = lines.path.parent
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output}: exists and is not a folder.")
    check_writable(lines.path)
    check_checkpoint(model, {language_code(language)}, revision)
    lines.settings = {**lines.settings, **checkpoint_identity(model, revision)}
    try:
        found = read()
    except MissingFiles as error:
        for name in error.names:
            console.note(f"not there: {name}")
        raise
    output.mkdir(parents=True, exist_ok=True)
    if overwrite:
        lines.remove()
    kept = lines.collect_lines()
    lines.write_settings()
    done = {name for name, line in kept.items() if not (retry_failed and "error" in json.loads(line))}
    if done:
        console.note(f"{len(done)} recordings have a result already.")
    return found, done


def _on_the_first(processes: Processes, work: Callable[[], Any]) -> Any:
    """What `work` returns on the first process, on all; an error there ends all, and the first tells it."""
    outcome = error = None
    if processes.is_first:
        try:
            outcome = work()
        except Exception as raised:
            error = raised
    outcome, failed = processes.broadcast((outcome, error is not None))
    if error is not None:
        raise error
    if failed:
        raise typer.Exit(1)
    return outcome


def _finish(lines: ResultLines, found: Files | Rows, parts: list[Progress]) -> bool:
    """Merge the shards in the order of the source, and say how it went. Returns whether a recording failed."""
    kept = lines.collect_lines()
    ordered = [kept[name] for name in found.in_order(kept)]
    lines.write_lines(ordered)
    summary = summarise(ordered, parts)
    write_whole(lines.path.with_name(SUMMARY), summary.as_json())
    show_summary(summary, lines.path)
    return bool(summary.failures)


def _note(processes: Processes, text: str) -> None:
    console.note(text if processes.count == 1 else f"Process {processes.rank}: {text}")
