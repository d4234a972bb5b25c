"""`whisper-mla evaluate`: word error rates of models on datasets, compared on the same utterances."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, cast

import transformers
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import WhisperConfig

from whisper_mla.evaluation.checkpoint_identity import check_checkpoint, checkpoint_identity
from whisper_mla.evaluation.evaluate_model import ModelRun, evaluate_model
from whisper_mla.evaluation.evaluation_report import (
    describe_model,
    environment,
    report_notes,
    report_tables,
    write_report,
)
from whisper_mla.evaluation.normalizers import normalizer_for
from whisper_mla.evaluation.processes import Processes, device_of_process, launched_processes
from whisper_mla.evaluation.scores import compare_models, score_utterances, summarise_groups
from whisper_mla.evaluation.speech_datasets import read_datasets
from whisper_mla.evaluation.utterance_results import ResultsFile
from whisper_mla.evaluation.utterances import Utterance
from whisper_mla.transcription.fallback import FallbackOptions
from whisper_mla.transcription.loading import load_for_transcription

from . import console, fallback_options

Dtype = Literal["float32", "float16", "bfloat16"]
Normalizer = Literal["auto", "english", "basic", "none"]


def evaluate(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL…", help="Checkpoints: folders or Hub ids.", show_default=False)
    ],
    dataset: Annotated[
        list[str],
        typer.Option(
            help="A folder with metadata.csv or .jsonl; librispeech-clean, librispeech-other, common-voice:de, "
            "fleurs:de_de; or a Hub id (owner/name:configuration). May be repeated.",
            show_default=False,
        ),
    ],
    split: Annotated[str | None, typer.Option(help="Default: test on the Hub, the folder itself.")] = None,
    language: Annotated[str | None, typer.Option(help="Told to the model; default: the dataset's.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Of the transcripts; default: the usual names.")] = None,
    num_beams: Annotated[int, typer.Option(min=1, help="1 is greedy decoding.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Utterances decoded at once.")] = 8,
    temperatures: fallback_options.Temperatures = fallback_options.TEMPERATURES,
    compression_ratio_threshold: fallback_options.CompressionRatioThreshold = fallback_options.COMPRESSION_RATIO,
    logprob_threshold: fallback_options.LogprobThreshold = fallback_options.LOGPROB,
    no_speech_threshold: fallback_options.NoSpeechThreshold = fallback_options.NO_SPEECH,
    condition_on_prev_tokens: fallback_options.ConditionOnPrevTokens = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first utterances of each dataset.")] = None,
    output: Annotated[Path, typer.Option(help="The folder for results; an interrupted run continues.")] = Path(
        "evaluation"
    ),
    name: Annotated[str, typer.Option(help="Of the files in OUTPUT.")] = "evaluation",
    normalizer: Annotated[Normalizer, typer.Option(help="auto: English for en, basic for others.")] = "auto",
    compare: Annotated[bool, typer.Option(help="Compare each model with the first, utterance by utterance.")] = True,
    resamples: Annotated[int, typer.Option(min=1, help="Of the bootstrap.")] = 10_000,
    confidence: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    skip_empty: Annotated[bool, typer.Option("--skip-empty", help="Leave out rows without a transcript.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start afresh where OUTPUT has results.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; default: an accelerator if any.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Default: float32 on the CPU, else the checkpoint's.")] = None,
    revision: Annotated[str | None, typer.Option(help="Of Hub checkpoints.", show_default=False)] = None,
):
    check_arguments(output, name, confidence)
    fallback = fallback_options.parse(
        temperatures, compression_ratio_threshold, logprob_threshold, no_speech_threshold, condition_on_prev_tokens
    )
    with launched_processes() as processes:
        utterances = read_datasets(
            dataset,
            split=split,
            language=language,
            text_column=text_column,
            limit=limit,
            skip_empty=skip_empty,
        )
        transformers.utils.logging.disable_progress_bar()
        languages = {utterance.language for utterance in utterances}
        tokenizers = [check_checkpoint(model, languages, revision) for model in models]
        spelling = next((found for one in tokenizers if (found := one.english_spelling_normalizer)), None)
        normalizer_of = partial(normalizer_for, choice=normalizer, spelling=spelling)
        names = {code or "unknown": normalizer_of(code).name for code in sorted(languages, key=str)}
        settings = {
            "datasets": dataset,
            "split": split,
            "language": language,
            "num_beams": num_beams,
            "batch_size": batch_size,
            "limit": limit,
            "dtype": dtype,
            "fallback": dataclasses.asdict(fallback),
        }
        files = result_files(models, output, name, {**settings, "data": digest(utterances)}, processes, revision)
        if processes.is_first:
            output.mkdir(parents=True, exist_ok=True)
            for file in files:
                file.remove() if overwrite else file.collect()

        described, scores, unreadable = [], [], []
        for model, file in zip(models, files, strict=True):
            loaded, processor = load_for_transcription(model, device_of_process(device), dtype, revision)
            run = evaluate_with_progress(
                model, loaded, processor, utterances, num_beams, batch_size, fallback, processes, file
            )
            if run is None:
                continue
            scored = score_utterances(run.results, normalizer_of)
            described.append(
                describe_model(model, cast(WhisperConfig, loaded.config), loaded.dtype, num_beams, run.peak_memory)
                | {"scores": summarise_groups(scored, confidence=confidence, resamples=resamples)}
            )
            scores.append(scored)
            again, skipped = (
                sum(getattr(one, what) for one in run.results) for what in ("fallbacks", "skipped_seconds")
            )
            if again or skipped:
                console.note(f"{model}: {again} windows decoded at higher temperatures; {skipped:.1f} s skipped.")
            unreadable = [result for result in run.results if result.error]
            where = str(loaded.device)
            del loaded, run  # before the next model takes its memory
        if not processes.is_first:
            return
        comparisons = [
            {
                "model": model,
                "against": models[0],
                **compare_models(scores[0], scored, confidence=confidence, resamples=resamples),
            }
            for model, scored in zip(models[1:], scores[1:], strict=True)
            if compare
        ]
        report = {
            "environment": environment(where, processes.count),
            "settings": {**settings, "normalizer": normalizer, "confidence": confidence, "resamples": resamples},
            "normalizers": names,
            "models": described,
            "comparisons": comparisons,
            "unreadable": [
                {"dataset": result.dataset, "id": result.id, "error": result.error} for result in unreadable
            ],
        }
        written = write_report(report, output, name)
    for table in report_tables(report):
        console.output.print(table.rich())
    for note in report_notes(report):
        console.note(note)
    console.note(f"Written: {', '.join(map(str, written))}; transcripts beside them.")
    if unreadable:
        for result in unreadable:
            console.error(f"{result.dataset}: {result.error}")
        raise typer.Exit(1)


def check_arguments(output: Path, name: str, confidence: float) -> None:
    """Raise ValueError for what the option types cannot check."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output}: exists and is not a folder.")
    if not name or Path(name).name != name:
        raise ValueError(f"--name {name!r}: expected the name of a file, without a folder.")
    if not 0 < confidence < 1:
        raise ValueError(f"--confidence {confidence}: expected a number between 0 and 1, such as 0.95.")


def digest(utterances: list[Utterance]) -> str:
    """A fingerprint of the utterances: which, in which order, with which transcripts."""
    rows = [[one.dataset, one.id, one.language, one.reference] for one in utterances]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def result_files(
    models: list[str], output: Path, name: str, settings: dict, processes: Processes, revision: str | None
) -> list[ResultsFile]:
    """Where the transcripts of each model are kept: NAME.MODEL.jsonl, numbered where two models have one name."""
    files, taken = [], set()
    for model in models:
        stem = base = re.sub(r"[^\w.-]+", "-", Path(model).name or model)
        number = 1
        while stem in taken:
            number += 1
            stem = f"{base}-{number}"
        taken.add(stem)
        about = {**checkpoint_identity(model, revision), **settings}
        files.append(ResultsFile(output / f"{name}.{stem}.jsonl", about, processes.rank))
    return files


def evaluate_with_progress(
    name: str,
    model,
    processor,
    utterances,
    num_beams: int,
    batch_size: int,
    fallback: FallbackOptions,
    processes: Processes,
    file: ResultsFile,
) -> ModelRun | None:
    """`evaluate_model` under a progress bar on standard error, on the first process only."""
    with progress_bar(f"Transcribing with {name}", len(utterances), processes) as progress:
        return evaluate_model(
            model,
            processor,
            utterances,
            num_beams=num_beams,
            batch_size=batch_size,
            fallback=fallback,
            processes=processes,
            results_file=file,
            progress=progress,
        )


@contextmanager
def progress_bar(text: str, total: int, processes: Processes) -> Iterator:
    """Yield a function that shows how many utterances are done."""
    if processes.count > 1:
        text += f" on {processes.count} processes (the bar is the first's)"
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}"), TimeRemainingColumn())
    with Progress(
        *columns, console=console.messages, transient=True, redirect_stdout=False, disable=not processes.is_first
    ) as bar:
        task = bar.add_task(text, total=-(-total // processes.count))
        yield lambda done: bar.update(task, completed=done)
