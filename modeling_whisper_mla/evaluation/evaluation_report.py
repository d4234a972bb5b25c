"""The report of an evaluation: JSON for machines, Markdown and tables for people."""

import datetime
import json
import os
import platform
import shlex
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from rich import box
from rich.table import Table
from transformers import WhisperConfig

from whisper_mla.configuration import WhisperMLAConfig, cache_size
from whisper_mla.hub.whole_file import write_whole

from .device_name import device_name
from .evaluate_model import PeakMemory
from .wer_plot import write_wer_plot


@dataclass(frozen=True)
class ReportTable:
    """Cells as text; the first column is a name, the others are numbers."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    def rich(self) -> Table:
        table = Table(title=self.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for column in self.columns:
            is_name = column in ("model", "data")
            longest = max(map(len, column.split()))
            table.add_column(column, justify="left" if is_name else "right", overflow="fold", min_width=longest)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        lines = ["| " + " | ".join(cells) + " |" for cells in (self.columns, ["---"] * len(self.columns), *self.rows)]
        return "\n".join([f"## {self.title}", "", *lines, ""])


def describe_model(
    name: str, config: WhisperConfig, dtype: torch.dtype, num_beams: int, peak_memory: PeakMemory | None
) -> dict:
    """What a report says of a model beside its scores, as JSON values.

    Args:
        name: as the user gave it.
        config: of a stock or converted model.
        dtype: of its weights and cache.
        num_beams: hypotheses per audio.
        peak_memory: of its run.

    Returns:
        dict: name, type, ranks, dtype, peak memory, and the bytes of the decode cache of one audio with all text
        positions: computed, not measured.
    """
    size = cache_size(
        config, positions=config.max_target_positions, num_beams=num_beams, bytes_per_value=dtype.itemsize
    )
    ranks = None
    if isinstance(config, WhisperMLAConfig):
        ranks = {
            "kv": config.kv_ranks,
            "cross_kv": config.cross_kv_ranks,
            "cross_kv_shared": config.cross_kv_shared,
            "audio_kv": config.audio_kv_ranks,
            "cross_cache": config.cross_cache,
        }
    return {
        "model": name,
        "model_type": config.model_type,
        "ranks": ranks,
        "dtype": str(dtype).removeprefix("torch."),
        "cache_bytes": {
            "self_attention": size.self_attention,
            "cross_attention": size.cross_attention,
            "total": size.total,
        },
        "peak_memory": None if peak_memory is None else {"bytes": peak_memory.bytes, "what": peak_memory.what},
    }


def environment(device: str, processes: int) -> dict:
    """Where and how the evaluation ran: command, date, versions, device, threads."""
    script = sys.argv[0]
    is_command = Path(script).name == "whisper-mla"
    start = ["whisper-mla"] if is_command else ["python", os.path.relpath(script)]
    return {
        "command": shlex.join([*start, *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "versions": {name: version(name) for name in ("whisper-mla", "torch", "transformers", "jiwer")},
        "python": platform.python_version(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "processes": processes,
    }


def report_tables(report: dict) -> list[ReportTable]:
    """The report as tables: error rates, paired comparisons where there are several models, and costs.

    Args:
        report: `models` (`describe_model` with `scores` of `summarise_groups`), `comparisons` (`compare_models` with
            `model` and `against`) and `settings` with the bootstrap's `confidence`.

    Returns:
        list[ReportTable]: ready to print.
    """
    tables = [_error_table(report)]
    if report["comparisons"]:
        tables.append(_comparison_table(report))
    return [*tables, _cost_table(report)]


def report_notes(report: dict) -> list[str]:
    """What the numbers are, in sentences."""
    level = f"{report['settings']['confidence']:.0%}"
    languages = {code: "language not given" if code == "unknown" else code for code in report["normalizers"]}
    normalizers = ", ".join(f"{name} ({languages[code]})" for code, name in report["normalizers"].items())
    notes = [
        f"WER and CER: errors summed over utterances, divided by reference words and characters; Whisper's normaliser: "
        f"{normalizers}. Intervals: {level} percentile bootstrap over utterances, {report['settings']['resamples']:,} "
        "resamples.",
        "Suspect: transcripts over twice as long as the reference, or with 5-grams that repeat more often than the "
        "reference's.",
        "Cache: computed, for one audio and all text positions. Real-time factor: seconds of processing per second of "
        "audio, reading of files apart.",
    ]
    notes += sorted({f"Memory: {m['peak_memory']['what']}." for m in report["models"] if m["peak_memory"]})
    if report["settings"]["normalizer"] == "auto" and report["normalizers"].get("en") == "basic":
        notes.append(
            "English got the basic normaliser, because no tokenizer here has a spelling table (normalizer.json): do "
            "not compare with rates of the English one."
        )
    if report["unreadable"]:
        names = ", ".join(f"{one['dataset']}: {one['id']}" for one in report["unreadable"][:5])
        more = ", …" if len(report["unreadable"]) > 5 else ""
        notes.append(f"{len(report['unreadable'])} audio files could not be read and are left out ({names}{more}).")
    return notes


def write_report(report: dict, folder: Path, name: str) -> list[Path]:
    """Write `NAME.json`, `NAME.md` and the plot `NAME.png`, each whole or not at all.

    Args:
        report: as of `report_tables`, with `environment` and `unreadable`.
        folder: exists.
        name: of the files, without suffix.

    Returns:
        list[Path]: what was written.
    """
    where = report["environment"]
    versions = ", ".join(f"{package} {number}" for package, number in where["versions"].items())
    lines = [f"# {name}", "", f"`{where['command']}`", ""]
    lines += [f"{where['date']}, {versions}, {where['device']}, {where['processes']} process(es).", ""]
    lines += [table.markdown() for table in report_tables(report)]
    lines += [f"- {note}" for note in report_notes(report)]
    paths = [folder / f"{name}.{suffix}" for suffix in ("json", "md", "png")]
    write_whole(paths[0], json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
    write_whole(paths[1], "\n".join(lines) + "\n")
    write_wer_plot(report, paths[2])
    return paths


def _error_table(report: dict) -> ReportTable:
    level = f"{report['settings']['confidence']:.0%} interval"
    columns = ["model", "data", "utterances", "WER %", level, "CER %", "sub / del / ins", "suspect"]
    rows = []
    for model in report["models"]:
        for data, score in _groups(model["scores"]):
            bounds = " to ".join(map(percent, score["wer_interval"] or []))
            edits = " / ".join(str(score[kind]) for kind in ("substitutions", "deletions", "insertions"))
            rates = [percent(score["wer"]), bounds, percent(score["cer"])]
            rows.append([model["model"], data, str(score["utterances"]), *rates, edits, str(score["suspect"])])
    return ReportTable("Error rates", columns, rows)


def _groups(scores: dict) -> list[tuple[str, dict]]:
    """Rows of one model: datasets, their languages where they have several, languages and all where that is more."""
    rows = []
    for name, dataset in scores["datasets"].items():
        rows.append((name, dataset))
        if len(dataset["languages"]) > 1:
            rows += [(f"{name}, {code}", score) for code, score in dataset["languages"].items()]
    if len(scores["datasets"]) > 1:
        if len(scores["languages"]) > 1:
            rows += [(f"all, {code}", score) for code, score in scores["languages"].items()]
        rows.append(("all", scores["overall"]))
    return rows


def _comparison_table(report: dict) -> ReportTable:
    against = report["comparisons"][0]["against"]
    level = f"{report['settings']['confidence']:.0%} interval"
    columns = ["model", "data", "WER points", level, "p", "better / worse on", "same transcript"]
    rows = []
    for comparison in report["comparisons"]:
        parts = list(comparison["datasets"].items())
        parts += [("all", comparison["overall"])] if len(parts) > 1 else []
        for data, part in parts:
            if "difference" not in part:
                continue
            numbers = [
                f"{part['difference'] * 100:+.2f}",
                f"{part['low'] * 100:+.2f} to {part['high'] * 100:+.2f}",
                f"{part['p_value']:.3f}" if part["p_value"] >= 0.001 else "< 0.001",
                f"{part['better']} / {part['worse']}",
                f"{part['same_transcripts']} of {part['utterances']}",
            ]
            rows.append([comparison["model"], data, *numbers])
    return ReportTable(f"Paired comparison with {against}", columns, rows)


def _cost_table(report: dict) -> ReportTable:
    first = report["models"][0]["cache_bytes"]["total"]
    rows = []
    for model in report["models"]:
        size, peak = model["cache_bytes"]["total"], model["peak_memory"]
        change = f"{size / first - 1:+.1%}" if size != first else "0 %"
        memory = "not measured" if peak is None else f"{peak['bytes'] / 1e6:,.0f} MB"
        factor = f"{model['scores']['overall']['real_time_factor']:.3f}"
        rows.append([model["model"], model["dtype"], f"{size / 1e6:,.2f} MB", change, factor, memory])
    columns = ["model", "dtype", "cache", "to first", "real-time factor", "peak memory"]
    return ReportTable("Cost", columns, rows)


def percent(ratio: float | None) -> str:
    """A ratio as a percentage with two decimals, without the sign."""
    return "" if ratio is None else f"{ratio * 100:.2f}"
