"""The command line: `whisper-mla convert | transcribe | transcribe-many | evaluate | inspect | benchmark | …`."""

import functools
import json
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import transformers
import typer

import whisper_mla
from whisper_mla.configuration import WhisperMLAConfig
from whisper_mla.conversion import ConversionError, to_whisper
from whisper_mla.conversion.report.report import REPORT_NAME
from whisper_mla.conversion.source.checkpoint_checks import check_fields
from whisper_mla.conversion.source.loading import load_checkpoint, read_config_fields
from whisper_mla.conversion.source.processor import save_processor
from whisper_mla.hub.checkpoint_folder import check_target, written_aside
from whisper_mla.hub.conversion_record import RECORD_NAME, read_conversion_record

from . import console
from .benchmark_command import memory
from .benchmark_speed_command import speed
from .cache_table import cache_report, cache_table, describe_ranks
from .convert_command import Dtype, Overwrite, Revision, Source, Target, calibrate_command, convert
from .demo import run_demo
from .evaluate_command import evaluate
from .push_command import push
from .report_table import latents_table, quality_lines, record_lines
from .transcribe_command import transcribe
from .transcribe_many_command import transcribe_many_command

app = typer.Typer(
    name="whisper-mla",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Whisper with multi-head latent attention: the same tokens from a fraction of the decode cache.\n\n"
    "Start with [bold]whisper-mla demo[/bold], which needs no network.",
)


def main() -> None:
    """Entry point of the console script. Exit codes: 0 done, 1 failed with one clear line, 2 wrong usage."""
    transformers.logging.set_verbosity_error()
    app()


def one_clear_line(command):
    """Turn an error of `command` into one line on standard error and exit code 1."""

    @functools.wraps(command)
    def run(*args, **kwargs):
        try:
            return command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):  # typer's own; `| head` is one
            raise
        except Exception as error:  # whatever it is, a user gets a line, not a traceback
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            console.error(f"{kind}{error}")
            raise typer.Exit(1) from error

    return run


def command(help_text: str, example: str):
    """Register a function as a subcommand whose help ends with an example."""

    def register(function):
        return app.command(help=f"{help_text}\n\n[bold]Example:[/bold] {example}")(one_clear_line(function))

    return register


def version(wanted: bool) -> None:
    if wanted:
        console.output.print(f"whisper-mla {whisper_mla.__version__}", highlight=False)
        raise typer.Exit()


@app.callback()
def options(
    show_version: Annotated[bool, typer.Option("--version", callback=version, is_eager=True, help="Version.")] = False,
):
    pass


command(
    "Convert a Whisper checkpoint, with its processor. Without a rank or a budget the conversion is exact: the same "
    "tokens, from a smaller cache.",
    "whisper-mla convert openai/whisper-small whisper-small-mla --cache-cut 0.95 --calibration my-audio",
)(convert)

app.command(
    name="calibrate",
    help="Gather statistics of a Whisper checkpoint on audio, once for many conversions. Transcripts are optional: "
    "what the model itself would write keeps the converted model closest to it.\n\n"
    "[bold]Example:[/bold] whisper-mla calibrate openai/whisper-small my-audio --output small.safetensors",
)(one_clear_line(calibrate_command))

app.command(
    name="transcribe",
    help="Transcribe audio files with a Whisper-MLA or a stock Whisper checkpoint.\n\n"
    "[bold]Example:[/bold] whisper-mla transcribe whisper-small-mla talk.mp3 --timestamps segment --format srt "
    "--output-dir subtitles",
)(one_clear_line(transcribe))

app.command(
    name="transcribe-many",
    help="Transcribe many recordings, on one process or several (`accelerate launch -m whisper_mla transcribe-many`), "
    "into one file of JSON lines. A run that was killed continues, and neither loses nor repeats a file.\n\n"
    "[bold]Example:[/bold] whisper-mla transcribe-many whisper-small-mla recordings/ --output transcripts",
)(one_clear_line(transcribe_many_command))

command(
    "Upload a converted checkpoint to the Hub, with all that its folder holds, in one commit.",
    "whisper-mla push whisper-small-mla org/whisper-small-mla --private",
)(push)


command(
    "Word error rates of models on datasets, with confidence intervals; several models are compared with the first on "
    "the same utterances.",
    "whisper-mla evaluate openai/whisper-small whisper-small-mla --dataset librispeech-clean --output results",
)(evaluate)


benchmark = typer.Typer(no_args_is_help=True, help="Measure and compute what a model takes, stock beside converted.")
app.add_typer(benchmark, name="benchmark")
benchmark.command(
    name="memory",
    help="Memory of decoding, stock beside converted: computed, and measured in fresh processes.\n\n"
    "[bold]Example:[/bold] whisper-mla benchmark memory small --what-fits 24GB",
)(one_clear_line(memory))
benchmark.command(
    name="speed",
    help="Time per decoded token, stock beside converted, in fresh processes and in turns.\n\n"
    "[bold]Example:[/bold] whisper-mla benchmark speed base --batch-size 1 --batch-size 8 --plot speed.png",
)(one_clear_line(speed))


@command(
    "Show the decode cache of a model by part, beside stock Whisper's, and how it was converted.",
    "whisper-mla inspect whisper-small-mla",
)
def inspect(
    model: Annotated[str, typer.Argument(help="A checkpoint: a folder or a Hub id.", show_default=False)],
    positions: Annotated[int | None, typer.Option(min=1, help="Text positions; default: the model's maximum.")] = None,
    num_beams: Annotated[int, typer.Option(min=1, help="Hypotheses per audio.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Audios decoded at once.")] = 1,
    dtype: Annotated[Dtype, typer.Option(help="Of the cache.")] = "float16",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    revision: Revision = None,
):
    fields = read_config_fields(model, **({} if revision is None else {"revision": revision}))
    classes = {"whisper": transformers.WhisperConfig, "whisper_mla": WhisperMLAConfig}
    config_class = classes.get(str(fields.get("model_type")))
    if config_class is None:
        raise ConversionError(f"{model}: model type {fields.get('model_type')!r} is neither Whisper nor Whisper-MLA.")
    config = check_fields(model, fields, config_class)
    if positions is not None and positions > config.max_target_positions:
        raise typer.BadParameter(f"--positions {positions}: the model has {config.max_target_positions}.")
    report = cache_report(
        config, batch_size, positions or config.max_target_positions, num_beams, getattr(torch, dtype).itemsize
    )
    record, conversion = (read_strictly(model, revision, name) for name in (RECORD_NAME, REPORT_NAME))
    if as_json:
        console.output.print_json(json.dumps({"model": model, **report, "record": record, "report": conversion}))
        return
    console.output.print(cache_table(report, title=model))
    console.output.print(describe_ranks(report), highlight=False)
    for line in record_lines(record) if record else []:
        console.output.print(line, highlight=False)
    if conversion and conversion["latents"]:
        console.output.print(latents_table(conversion))
    for line in quality_lines(conversion) if conversion else []:
        console.output.print(line, highlight=False)


def read_strictly(model: str, revision: str | None, name: str) -> dict | None:
    """A record beside the weights, or None if there is none; one that is damaged is an error here."""
    record = read_conversion_record(model, revision, name)
    if record is None and Path(model, name).exists():
        raise ConversionError(f"{model}: {name} cannot be read. Copy the checkpoint again, or remove the file.")
    return record


@command(
    "Export a Whisper-MLA checkpoint to a stock Whisper checkpoint with the same outputs, for any engine.",
    "whisper-mla export whisper-small-mla whisper-small-exported",
)
def export(model: Source, target: Target, revision: Revision = None, overwrite: Overwrite = False):
    check_target(target, overwrite, model)
    hub: dict[str, Any] = {} if revision is None else {"revision": revision}
    if read_config_fields(model, **hub).get("model_type") != WhisperMLAConfig.model_type:
        raise ConversionError(f"{model}: not a Whisper-MLA model, so there is nothing to export.")
    loaded = load_checkpoint(whisper_mla.WhisperMLAForConditionalGeneration, model, dtype="auto", **hub)
    stock = to_whisper(cast(whisper_mla.WhisperMLAForConditionalGeneration, loaded))
    with written_aside(target, overwrite) as folder:
        stock.save_pretrained(folder)
        if not save_processor(model, folder, **hub):
            console.note(f"Note: {model} has no processor; transcribing needs one.")
    console.output.print(f"{target}: a stock Whisper checkpoint with the outputs of {model}.", highlight=False)


@command("The whole way on a bundled spoken-digits checkpoint: no network.", "whisper-mla demo")
def demo():
    transformers.utils.logging.disable_progress_bar()
    rows = run_demo(console.output)
    if not rows[1].equal_tokens:
        raise RuntimeError("the exact model's tokens differ from stock Whisper's.")
