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

from whisper_mla.evaluation.device_name import device_name

RESULTS = Path(__file__).parent / "results"


def environment() -> dict:
    """Where and how a benchmark ran."""
    return {
        "command": shlex.join(["python", os.path.relpath(sys.argv[0], RESULTS.parents[1]), *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "versions": {name: version(name) for name in ("whisper-mla", "torch", "transformers")},
        "python": platform.python_version(),
        "device": device_name("cuda" if torch.cuda.is_available() else "cpu"),
        "threads": torch.get_num_threads(),
    }


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
    made_on = f"{where['date']}, {versions}, {where['device']}, {where['threads']} thread(s)."
    head = [f"# {name}", "", note, "", f"`{where['command']}`, {made_on}", ""]
    (RESULTS / f"{name}.md").write_text("\n".join([*head, *lines, ""]))
    (RESULTS / f"{name}.json").write_text(json.dumps({**where, "note": note, "results": raw}, indent=1) + "\n")
