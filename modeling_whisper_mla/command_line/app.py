"""The command line: `whisper-mla convert | transcribe | inspect | export | demo`."""

import functools
import json
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
import transformers
import typer
from transformers import AutoProcessor

import whisper_mla
from whisper_mla.configuration import WhisperMLAConfig
from whisper_mla.conversion import METHODS, ConversionError, from_whisper, to_whisper
from whisper_mla.conversion.checkpoint_folder import check_target, written_aside
from whisper_mla.conversion.source import load_checkpoint, read_config_fields

from . import console
from .cache_table import cache_report, cache_table, describe_ranks
from .demo import run_demo
from .transcribe_command import transcribe

app = typer.Typer(
    name="whisper-mla",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Whisper with multi-head latent attention: the same tokens from a fraction of the decode cache.\n\n"
    "Start with [bold]whisper-mla demo[/bold], which needs no network.",
)
Dtype = Literal["float32", "float16", "bfloat16"]


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
        except (typer.Exit, typer.Abort, typer.BadParameter):
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


def ranks(text: str | None) -> int | list[int] | None:
    """Parse "192" or "192,128,64": one rank, or one for each layer."""
    if text is None:
        return None
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r}: expected an integer, or one per layer separated by commas.") from None
    return numbers[0] if len(numbers) == 1 else numbers


def version(wanted: bool) -> None:
    if wanted:
        console.output.print(f"whisper-mla {whisper_mla.__version__}", highlight=False)
        raise typer.Exit()


@app.callback()
def options(
    show_version: Annotated[bool, typer.Option("--version", callback=version, is_eager=True, help="Version.")] = False,
):
    pass


Source = Annotated[str, typer.Argument(help="A Whisper checkpoint: a folder or a Hub id.", show_default=False)]
Target = Annotated[Path, typer.Argument(help="The folder to write.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint that is already in TARGET.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub checkpoint.", show_default=False)]


@command(
    "Convert a Whisper checkpoint, with its processor. Without a rank the conversion is exact: the same tokens, from a "
    "smaller cache.",
    "whisper-mla convert openai/whisper-small whisper-small-mla --kv-rank 192",
)
def convert(
    source: Source,
    target: Target,
    kv_rank: Annotated[
        str | None,
        typer.Option(help="Values cached per text position: one rank, or one per decoder layer (192,128,…)."),
    ] = None,
    cross_kv_rank: Annotated[
        str | None, typer.Option(help="Values kept per audio frame for cross-attention; default: exact.")
    ] = None,
    cross_kv_per_layer: Annotated[
        bool, typer.Option("--cross-kv-per-layer", help="One cross-attention latent per layer instead of a shared one.")
    ] = False,
    audio_kv_rank: Annotated[
        str | None, typer.Option(help="Rank of encoder self-attention (caches nothing); default: stock.")
    ] = None,
    cross_cache: Annotated[
        Literal["latent", "key_value"],
        typer.Option(help="Cross-attention on a latent, or with stock keys and values."),
    ] = "latent",
    method: Annotated[
        str, typer.Option(help=f"How low-rank projections are found: {', '.join(METHODS)}.")
    ] = "joint_svd",
    dtype: Annotated[Dtype | None, typer.Option(help="Of the weights; default: the checkpoint's.")] = None,
    revision: Revision = None,
    overwrite: Overwrite = False,
):
    latent_fields: dict[str, Any] = {
        "kv_rank": ranks(kv_rank),
        "cross_kv_rank": ranks(cross_kv_rank),
        "cross_kv_shared": not cross_kv_per_layer,
        "audio_kv_rank": ranks(audio_kv_rank),
        "cross_cache": cross_cache,
    }
    check_target(target, overwrite, source)
    hub: dict[str, Any] = {} if revision is None else {"revision": revision}
    loading = {} if dtype is None else {"dtype": getattr(torch, dtype)}
    model = from_whisper(source, method=method, **latent_fields, **loading, **hub)
    with written_aside(target, overwrite) as folder:
        model.save_pretrained(folder)
        save_processor(source, folder, **hub)
    report = cache_report(model.config, bytes_per_value=model.dtype.itemsize)
    console.output.print(cache_table(report, title=str(target)))
    console.output.print(describe_ranks(report), highlight=False)


app.command(
    name="transcribe",
    help="Transcribe audio files with a Whisper-MLA or a stock Whisper checkpoint.\n\n"
    "[bold]Example:[/bold] whisper-mla transcribe whisper-small-mla talk.mp3 --timestamps segment --format srt "
    "--output-dir subtitles",
)(one_clear_line(transcribe))


@command("Show the decode cache of a model by part, beside stock Whisper's.", "whisper-mla inspect whisper-small-mla")
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
    if fields.get("model_type") not in classes:
        raise ConversionError(f"{model}: model type {fields.get('model_type')!r} is neither Whisper nor Whisper-MLA.")
    config = classes[fields["model_type"]].from_dict(fields)
    report = cache_report(
        config, batch_size, positions or config.max_target_positions, num_beams, getattr(torch, dtype).itemsize
    )
    if as_json:
        console.output.print_json(json.dumps({"model": model, **report}))
        return
    console.output.print(cache_table(report, title=model))
    console.output.print(describe_ranks(report), highlight=False)


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
        save_processor(model, folder, **hub)
    console.output.print(f"{target}: a stock Whisper checkpoint with the outputs of {model}.", highlight=False)


@command("The whole way on a bundled spoken-digits checkpoint: no network.", "whisper-mla demo")
def demo():
    transformers.utils.logging.disable_progress_bar()
    rows = run_demo(console.output)
    if not rows[1].equal_tokens:
        raise RuntimeError("the exact model's tokens differ from stock Whisper's.")


def save_processor(source: str, folder: Path, **hub) -> None:
    """Copy feature extractor and tokenizer, or say that there are none."""
    try:
        processor = AutoProcessor.from_pretrained(source, **hub)
    except (OSError, ValueError):
        console.note(f"Note: {source} has no processor; transcribing needs one.")
        return
    processor.save_pretrained(folder)
