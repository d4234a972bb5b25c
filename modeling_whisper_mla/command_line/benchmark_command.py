"""`whisper-mla benchmark memory`: what fits, computed; and what decoding takes, measured beside it."""

import dataclasses
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import transformers
import typer
from rich.progress import track
from rich.table import Table

from whisper_mla.configuration import WHISPER_SIZES, WhisperMLAConfig, whisper_config
from whisper_mla.conversion.errors import ConversionError
from whisper_mla.conversion.source.checkpoint_checks import check_fields
from whisper_mla.conversion.source.loading import read_config_fields
from whisper_mla.evaluation.evaluation_report import environment
from whisper_mla.evaluation.memory import Setting, memory_of, parse_bytes, stock_and_latent, streams_that_fit
from whisper_mla.evaluation.memory_process import measure
from whisper_mla.hub.whole_file import write_whole

from . import console
from .cache_table import megabytes
from .convert_command import Revision

Protocol = Literal["realistic", "paper"]
MemoryDtype = Literal["float32", "float16", "bfloat16"]
Device = Literal["cpu", "cuda"]
# Batch sizes, text positions, beams. The paper (arXiv 2603.00563): batch 64, up to 4,096 positions, greedy.
PROTOCOLS: dict[str, tuple[list[int], list[int], list[int]]] = {
    "realistic": ([1, 8, 64], [448], [1, 5]),
    "paper": ([64], [32, 64, 128, 256, 512, 1024, 2048, 4096], [1]),
}


def memory(
    model: Annotated[
        str,
        typer.Argument(help=f"A checkpoint, stock or converted, or a size: {', '.join(WHISPER_SIZES)}."),
    ],
    protocol: Annotated[
        Protocol,
        typer.Option(help="realistic: 1, 8, 64 streams, 1 and 5 beams; paper: 64 streams, 32 to 4,096 positions."),
    ] = "realistic",
    batch_size: Annotated[list[int] | None, typer.Option(min=1, help="Instead; repeat for several.")] = None,
    positions: Annotated[list[int] | None, typer.Option(min=2, help="Text positions, instead; repeat.")] = None,
    num_beams: Annotated[list[int] | None, typer.Option(min=1, help="Instead; repeat.")] = None,
    dtype: Annotated[MemoryDtype, typer.Option(help="Of weights and latents that are not rounded.")] = "float16",
    what_fits: Annotated[
        str | None, typer.Option(help="An amount such as 24GB: how many streams fit into it.", show_default=False)
    ] = None,
    measured: Annotated[
        bool,
        typer.Option("--measure", help="Also decode, with random weights, in fresh processes."),
    ] = False,
    device: Annotated[Device, typer.Option(help="To measure on: on a GPU PyTorch's allocations.")] = "cpu",
    seconds: Annotated[float, typer.Option(min=1, help="That a measurement may take.")] = 600.0,
    output: Annotated[Path | None, typer.Option(help="Write the table as JSON here.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    revision: Revision = None,
):
    limit = None if what_fits is None else parse_bytes(what_fits)
    check_device(device)
    config = config_of(model, revision)
    batches, lengths, beams = PROTOCOLS[protocol]
    value = 4 if dtype == "float32" else 2
    settings = [
        Setting(*numbers, value) for numbers in product(batch_size or batches, positions or lengths, num_beams or beams)
    ]
    rows = list(_rows(config, settings, measured, seconds, device))
    report: dict[str, Any] = {"model": model, "dtype": dtype, "environment": environment(device, 1), "settings": rows}
    if limit is not None:
        report["what_fits"] = {"bytes": limit, "streams": _fitting(config, settings, limit)}
    if output:
        write_whole(output, json.dumps(report, indent=1) + "\n")
    if as_json:
        console.output.print_json(json.dumps(report))
        return
    console.output.print(_table(report))
    if limit is not None:
        console.output.print(_fitting_table(report["what_fits"]["streams"], str(what_fits)))


def check_device(device: str) -> None:
    """Raise `ValueError` unless the device is there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch finds no GPU here. Use --device cpu.")


def config_of(model: str, revision: str | None) -> transformers.WhisperConfig:
    """The configuration of a size, or of a checkpoint of either kind."""
    if model in WHISPER_SIZES:
        return whisper_config(model)
    fields = read_config_fields(model, **({} if revision is None else {"revision": revision}))
    classes = {"whisper": transformers.WhisperConfig, "whisper_mla": WhisperMLAConfig}
    config_class = classes.get(str(fields.get("model_type")))
    if config_class is None:
        raise ConversionError(f"{model}: model type {fields.get('model_type')!r} is neither Whisper nor Whisper-MLA.")
    return check_fields(model, fields, config_class)


def _rows(
    config: transformers.WhisperConfig, settings: list[Setting], measured: bool, seconds: float, device: str
) -> Iterator[dict]:
    """One row for each setting and model: what is computed, and what was measured."""
    shown = track(settings, "Measuring", console=console.messages, transient=True, disable=not measured)
    for setting in shown:
        for name, one in stock_and_latent(config, setting.positions).items():
            computed = memory_of(one, setting)
            row = {"model": name, **dataclasses.asdict(setting), "computed": dataclasses.asdict(computed)}
            row["computed"]["total"] = computed.total
            if measured:
                row["measured"] = dataclasses.asdict(measure(one, setting, seconds, device))
            yield row


def _fitting(config: transformers.WhisperConfig, settings: list[Setting], limit: int) -> list[dict]:
    found = []
    for setting in dict.fromkeys(dataclasses.replace(setting, batch_size=1) for setting in settings):
        pair = stock_and_latent(config, setting.positions)
        streams = {name: streams_that_fit(one, setting, limit) for name, one in pair.items()}
        found.append({"positions": setting.positions, "num_beams": setting.num_beams, **streams})
    return found


def _table(report: dict) -> Table:
    measured = any("measured" in row for row in report["settings"])
    table = Table(title=f"{report['model']}, {report['dtype']}", title_justify="left", caption_justify="left")
    table.add_column("streams × positions × beams")
    columns = ["model", "weights", "cache", "work (estimate)", "computed in all"]
    columns += ["measured: decoding took", "held in the end", "peak"] if measured else []
    for column in columns:
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in report["settings"]:
        computed = row["computed"]
        cells = [f"{row['batch_size']} × {row['positions']:,} × {row['num_beams']}", row["model"]]
        cells += [megabytes(computed[part]) for part in ("weights", "cache", "work", "total")]
        if measured:
            found = row["measured"]
            taken = found["reason"] or megabytes(found["peak"] - found["before"])
            cells += [taken, *(megabytes(found[part]) if found[part] else "–" for part in ("held", "peak"))]
        table.add_row(*cells)
    table.caption = "weights and cache computed from the configuration, work estimated"
    if measured:
        table.caption += (
            f"; measured: memory of a fresh process on {report['environment']['device']}, random weights, the encoder "
            "output given: its peak, Python and libraries included on a CPU, how much of it came while decoding, and "
            "what was freed when the cache and the audio's latents were let go"
        )
    return table


def _fitting_table(streams: list[dict], limit: str) -> Table:
    names = [name for name in streams[0] if name not in ("positions", "num_beams")]
    table = Table(title=f"Streams that fit into {limit}", title_justify="left", caption_justify="left")
    table.add_column("positions × beams")
    for name in names:
        table.add_column(name, justify="right")
    for row in streams:
        table.add_row(f"{row['positions']:,} × {row['num_beams']}", *(f"{row[name]:,}" for name in names))
    table.caption = "computed: weights, cache and an estimate of the work; leave room for libraries and fragmentation"
    return table
