"""`whisper-mla convert` and `whisper-mla calibrate`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.table import Table

from whisper_mla.conversion import METHODS, ConversionError, calibrate, from_whisper, save_statistics, write_report
from whisper_mla.conversion.source.loading import load_whisper
from whisper_mla.conversion.source.processor import load_processor, save_processor
from whisper_mla.hub.checkpoint_folder import check_target, check_writable, written_aside
from whisper_mla.hub.push import shard_size
from whisper_mla.int8_weights import check_int8_weights, quantize_weights

from . import console
from .cache_table import cache_report, cache_table, describe_ranks
from .report_table import latents_table, quality_lines

Source = Annotated[str, typer.Argument(help="A Whisper checkpoint: a folder or a Hub id.", show_default=False)]
Target = Annotated[Path, typer.Argument(help="The folder to write.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint that is already in TARGET.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub checkpoint.", show_default=False)]
Dtype = Literal["float32", "float16", "bfloat16"]
Weights = Annotated[
    Literal["int8"],
    typer.Option(help="Round the weights to 8 bits, for faster decoding on CPUs. Default: as they are."),
]
Language = Annotated[
    str | None, typer.Option(help="Of the calibration audio; default: the model's, or detected.", show_default=False)
]


def ranks(text: str) -> int | list[int]:
    """Parse "192" or "192,128,64": one rank, or one for each layer."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r}: expected an integer, or one per layer separated by commas.") from None
    return numbers[0] if len(numbers) == 1 else numbers


def dtypes(text: str) -> str | list[str | None] | None:
    """Parse "int4" or "int8,none": one dtype of latents, or one for the text and one for the audio."""
    names = [None if part.strip() == "none" else part.strip() for part in text.split(",")]
    return names[0] if len(names) == 1 else names


_RANKS: dict[str, Any] = {"parser": ranks, "metavar": "TEXT"}
# Of `convert`, and not arguments of `from_whisper` by the same name.
_OWN_OPTIONS = {"source", "target", "cross_kv_per_layer", "weights", "include_code", "max_shard_size", "dtype"}
_OWN_OPTIONS |= {"revision", "overwrite"}


def convert(
    source: Source,
    target: Target,
    kv_rank: Annotated[
        Any,
        typer.Option(help="Values cached per text position: a rank, or one per decoder layer (192,128,…).", **_RANKS),
    ] = None,
    cross_kv_rank: Annotated[
        Any, typer.Option(help="Values kept per audio frame for cross-attention; default: exact.", **_RANKS)
    ] = None,
    cross_kv_per_layer: Annotated[
        bool, typer.Option("--cross-kv-per-layer", help="One cross-attention latent per layer instead of a shared one.")
    ] = False,
    audio_kv_rank: Annotated[
        Any, typer.Option(help="Rank of encoder self-attention (caches nothing); default: stock.", **_RANKS)
    ] = None,
    cross_cache: Annotated[
        Literal["latent", "key_value"],
        typer.Option(help="Cross-attention on a latent, or with stock keys and values."),
    ] = "latent",
    latent_dtype: Annotated[
        Any,
        typer.Option(
            parser=dtypes,
            metavar="TEXT",
            help="Store cached latents rounded: int8, int4, or two of int8, int4, none for text and audio "
            "(int8,int4); auto: chosen with the ranks under a budget; mixed: bits by direction, under --cache-cut or "
            "at 3.5 bits per value. Default: as the weights.",
            show_default=False,
        ),
    ] = None,
    latent_group_size: Annotated[
        int | None,
        typer.Option(
            help="Values that --latent-dtype rounds together, a power of two; default: 64 for int8, else 32.",
            show_default=False,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Instead of ranks and --latent-dtype: lossless (the same tokens), near-lossless (latents in 8 "
            "bits), small (in 4) or smallest (mixed, 3.5); what it costs is measured and printed.",
            show_default=False,
        ),
    ] = None,
    weights: Weights | None = None,
    method: Annotated[
        str | None,
        typer.Option(
            help=f"How low-rank projections are found: {', '.join(METHODS)}. Default: fisher. Named, without "
            "--calibration, the result is not measured.",
            show_default=False,
        ),
    ] = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            help="Audio like the model will hear (a folder or files), or a statistics file; repeatable. Default: two "
            "minutes of English that come with the package.",
            show_default=False,
        ),
    ] = None,
    language: Language = None,
    cache_cut: Annotated[float | None, typer.Option(help="Choose ranks: share of the cache to save, as 0.95.")] = None,
    cache_bytes: Annotated[str | None, typer.Option(help="Choose ranks: cache of one stream, as 12MB.")] = None,
    max_kl: Annotated[
        float | None, typer.Option(help="Choose ranks: KL divergence to stock per token allowed, in nats, as 0.01.")
    ] = None,
    rank_multiple: Annotated[
        int | None, typer.Option(help="Chosen ranks are multiples of it; default: 16, or 4 below d_model 512.")
    ] = None,
    min_rank: Annotated[int | None, typer.Option(help="Lower bound of chosen ranks.")] = None,
    max_rank: Annotated[int | None, typer.Option(help="Upper bound of chosen ranks.")] = None,
    preserved_key_dims: Annotated[
        int | None,
        typer.Option(help="joint_svd: key dimensions kept exactly in every head (the paper's initialisation)."),
    ] = None,
    preserved_key_selection: Annotated[
        Literal["uniform", "2-norm"] | None,
        typer.Option(help="joint_svd: which key dimensions are kept; default: uniform."),
    ] = None,
    refit: Annotated[
        bool | None,
        typer.Option(
            "--refit/--no-refit",
            help="fisher: fit all up projections together to the stock model's predictions on the calibration audio. "
            "Default: with audio, if it lowers the KL on held-out clips; it runs up to 50 times over the audio.",
            show_default=False,
        ),
    ] = None,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="Calibrate every layer on what the converted layers below deliver.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Go on with too little calibration audio, and where over 5 % of stock's words change."
        ),
    ] = False,
    include_code: Annotated[
        bool, typer.Option("--code/--no-code", help="Write the model's code beside it, for trust_remote_code.")
    ] = True,
    max_shard_size: Annotated[str, typer.Option(help="Size above which weights are split.")] = "5GB",
    dtype: Annotated[Dtype | None, typer.Option(help="Of the weights; default: the checkpoint's.")] = None,
    revision: Revision = None,
    overwrite: Overwrite = False,
):
    options = locals()
    # But for the options of this command alone they are the arguments of from_whisper, which checks them.
    arguments = {name: value for name, value in options.items() if name not in _OWN_OPTIONS and value is not None}
    arguments |= {"cross_kv_shared": not cross_kv_per_layer, "calibration": calibration_argument(calibration)}
    if weights is not None and dtype not in (None, "float32"):
        raise typer.BadParameter(f"--weights {weights} with --dtype {dtype}: int8 weights go with float32.")
    if weights is not None:
        check_int8_weights()
    check_target(target, overwrite, source)
    limit = shard_size(max_shard_size)
    hub: dict[str, Any] = {} if revision is None else {"revision": revision}
    if weights is not None:
        dtype = "float32"
    loading = {} if dtype is None else {"dtype": getattr(torch, dtype)}
    model = from_whisper(source, **arguments, **loading, **hub)
    conversion: Any = model.conversion_report
    if weights is not None:
        quantize_weights(model)
    with written_aside(target, overwrite) as folder:
        write_report(conversion, folder)
        model.save_pretrained(folder, include_code=include_code, max_shard_size=limit)
        if not save_processor(source, folder, **hub):
            console.note(f"Note: {source} has no processor; transcribing needs one.")
    report = cache_report(model.config, bytes_per_value=model.dtype.itemsize)
    console.output.print(cache_table(report, title=str(target)))
    console.output.print(describe_ranks(report), highlight=False)
    if conversion["latents"]:
        console.output.print(latents_table(conversion))
    for line in quality_lines(conversion):
        console.output.print(line, highlight=False)
    if weights is not None:
        console.output.print("Weights: int8, for CPUs; what is measured above is the model before they were rounded.")


def calibrate_command(
    source: Source,
    audio: Annotated[
        list[Path], typer.Argument(help="Audio files, or folders of them (with metadata.csv if there are transcripts).")
    ],
    output: Annotated[Path, typer.Option(help="The statistics file to write, *.safetensors.", show_default=False)],
    language: Language = None,
    held_out: Annotated[float, typer.Option(help="Share of the clips kept apart to measure conversions.")] = 0.25,
    fisher: Annotated[
        bool, typer.Option("--fisher/--no-fisher", help="Gather gradients too, for --method fisher.")
    ] = True,
    encoder: Annotated[
        bool,
        typer.Option(
            "--encoder/--no-encoder",
            help="Gather for encoder self-attention too, for --audio-kv-rank; takes several times as long.",
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT.")] = False,
    revision: Revision = None,
):
    if output.suffix != ".safetensors":
        raise typer.BadParameter(f"--output {output}: the name must end in .safetensors.")
    if output.exists() and not overwrite:
        raise ConversionError(f"{output}: exists. Choose another name, or replace it with --overwrite.")
    check_writable(output)
    hub: dict[str, Any] = {} if revision is None else {"revision": revision}
    stock = load_whisper(source, **hub)
    statistics = calibrate(
        stock,
        audio,
        load_processor(source, **hub),
        language=language,
        held_out=held_out,
        gradients=fisher,
        encoder=encoder,
        interrupted=output.with_name(f"{output.name}.interrupted"),
    )
    save_statistics(statistics, output)
    table = Table(title=str(output), title_justify="left")
    for column in ("read by", "vectors", "enough for rank"):
        table.add_column(column, justify="left" if column == "read by" else "right")
    for name, found in statistics.inputs.items():
        shown = "cross-attention" if name.endswith("encoder.layer_norm") else name.removeprefix("model.")
        table.add_row(shown, f"{found.count:,}", str(min(found.count // 128, stock.config.d_model)))
    table.caption = "at 128 vectors per unit of rank; fewer work too, and are warned of"
    console.output.print(table)
    facts = statistics.source
    console.output.print(
        f"{facts['clips']} clips, {facts['seconds']:,} s, of which {facts['held_out_windows']} windows are held out.",
        highlight=False,
    )


def calibration_argument(paths: list[Path] | None) -> list[Path] | Path | None:
    """One statistics file alone, or a list of audio files and folders."""
    if not paths:
        return None
    statistics = [path for path in paths if path.suffix == ".safetensors"]
    if statistics and len(paths) > 1:
        raise typer.BadParameter(f"--calibration {statistics[0]}: a statistics file stands alone.")
    return paths[0] if statistics else paths
