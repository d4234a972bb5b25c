"""What every result file records beside its numbers: command, versions, device, date."""

import datetime
import json
import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


def environment() -> dict:
    """Where and how a benchmark ran."""
    return {
        "command": shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "versions": {name: version(name) for name in ("whisper-mla", "torch", "transformers")},
        "python": platform.python_version(),
        "device": _device(),
        "threads": torch.get_num_threads(),
    }


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"CPU: {name}, {os.cpu_count()} cores"


def write_results(name: str, note: str, columns: list[str], rows: list[list[str]], raw: object) -> None:
    """Print a table and write it as Markdown and, with the raw numbers, as JSON under `results/`.

    Args:
        name: of the files, without suffix.
        note: what the numbers are, and what they are not.
        columns: headings.
        rows: cells, as text.
        raw: anything JSON can hold.
    """
    where = environment()
    table = Table(title=name, caption=note, title_justify="left", caption_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    RESULTS.mkdir(exist_ok=True)
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows)]
    versions = ", ".join(f"{package} {number}" for package, number in where["versions"].items())
    head = [f"# {name}", "", note, "", f"`{where['command']}`, {where['date']}, {versions}, {where['device']}.", ""]
    (RESULTS / f"{name}.md").write_text("\n".join([*head, *lines, ""]))
    (RESULTS / f"{name}.json").write_text(json.dumps({**where, "note": note, "results": raw}, indent=1) + "\n")
