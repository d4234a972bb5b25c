"""`whisper-mla benchmark speed`: time per decoded token, stock beside converted, measured."""

import json
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
import typer
from rich.progress import track
from rich.table import Table

from whisper_mla.configuration import WHISPER_SIZES
from whisper_mla.evaluation.evaluation_report import environment
from whisper_mla.evaluation.speed import SpeedSetting, candidates, measure_speed, speed_ups
from whisper_mla.evaluation.speed_plot import write_speed_plot
from whisper_mla.hub.whole_file import write_whole

from . import console
from .benchmark_command import Device, MemoryDtype, check_device, config_of
from .convert_command import Revision


def speed(
    model: Annotated[
        str,
        typer.Argument(help=f"A checkpoint, stock or converted, or a size: {', '.join(WHISPER_SIZES)}."),
    ],
    batch_size: Annotated[list[int] | None, typer.Option(min=1, help="Audios at once; repeat. [1, 8]")] = None,
    tokens: Annotated[list[int] | None, typer.Option(min=2, help="Decoded by each; repeat. [64]")] = None,
    num_beams: Annotated[list[int] | None, typer.Option(min=1, help="Repeat for several. [1, 5]")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, float16, bfloat16; repeat. [float32]")] = None,
    int8_weights: Annotated[bool, typer.Option(help="Also with int8 weights (CPU, float32).")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Also with compiled steps.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Alternations; medians are shown.")] = 3,
    device: Annotated[Device, typer.Option(help="To measure on.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default=False)] = None,
    seconds: Annotated[float, typer.Option(min=1, help="That a process may take for all settings.")] = 600.0,
    output: Annotated[Path | None, typer.Option(help="Write the table as JSON here.", show_default=False)] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture (PNG) here.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    revision: Revision = None,
):
    check_device(device)
    dtypes, known = dtype or ["float32"], get_args(MemoryDtype)
    unknown = [one for one in dtypes if one not in known]
    if unknown:
        raise ValueError(f"--dtype {unknown[0]}: expected one of {', '.join(known)}.")
    if int8_weights and (device != "cpu" or "float32" not in dtypes):
        raise ValueError("--int8-weights: they go with --device cpu and --dtype float32.")
    for path in (output, plot):
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"{path}: there is no folder {path.parent}. Make it before.")
    config = config_of(model, revision)
    if threads:
        torch.set_num_threads(threads)
    settings = [
        SpeedSetting(*numbers) for numbers in product(batch_size or [1, 8], tokens or [64], num_beams or [1, 5])
    ]
    rows: list[dict[str, Any]] = []
    for kind in dtypes:
        positions = max(setting.tokens for setting in settings) + 1
        models = candidates(config, positions, int8_weights and kind == "float32", compiled)
        shown = partial(track, description=kind, console=console.messages, transient=True)
        table = measure_speed(models, settings, kind, rounds, device, seconds, shown)
        rows += report_rows(table, settings, kind)
    report = {"model": model, "rounds": rounds, "environment": environment(device, 1), "settings": rows}
    if output:
        write_whole(output, json.dumps(report, indent=1) + "\n")
    if plot:
        write_speed_plot(report, plot)
    if as_json:
        console.output.print_json(json.dumps(report))
    else:
        console.output.print(speed_table(report))


def report_rows(table, settings: list[SpeedSetting], dtype: str) -> list[dict[str, Any]]:
    """What was measured, as JSON can hold it: a row for each setting."""
    ratios, rows = speed_ups(table), []
    for setting in settings:
        ways = "greedy" if setting.num_beams == 1 else f"{setting.num_beams} beams"
        models = {
            name: {
                "milliseconds_per_token": answers[setting].median,
                "speed_up": ratios[name][setting],
                "reason": answers[setting].reason,
                "rounds": answers[setting].milliseconds,
            }
            for name, answers in table.items()
        }
        label = f"{dtype}, batch {setting.batch_size}, {setting.tokens} tokens, {ways}"
        numbers = {"batch_size": setting.batch_size, "tokens": setting.tokens, "num_beams": setting.num_beams}
        rows.append({"label": label, "dtype": dtype, **numbers, "models": models})
    return rows


def speed_table(report: dict) -> Table:
    """The report as a table: a row for each setting, a column for each model."""
    names = list(dict.fromkeys(name for row in report["settings"] for name in row["models"]))
    table = Table(title=f"{report['model']}: ms per token", title_justify="left", caption_justify="left")
    table.add_column("setting")
    for name in names:
        table.add_column(name, justify="right")
    for row in report["settings"]:
        table.add_row(row["label"], *(_cell(row["models"].get(name)) for name in names))
    table.caption = (
        f"medians of {report['rounds']} rounds, each in a fresh process, in turns; in brackets stock's time by this "
        "one's, the median of the rounds' ratios. Random weights, encoder output given, first step included; "
        f"{report['environment']['device']}, {report['environment']['threads']} thread(s)"
    )
    return table


def _cell(found: dict | None) -> str:
    if found is None:
        return "–"
    if found["milliseconds_per_token"] is None:
        return str(found["reason"])
    ratio = "" if found["speed_up"] is None else f" ({found['speed_up']:.2f}×)"
    return f"{found['milliseconds_per_token']:.1f}{ratio}"
