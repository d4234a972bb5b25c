"""What a bulk run shows: a bar with its speed while it goes on, and a summary."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from whisper_mla.bulk.run import Progress
from whisper_mla.bulk.summary import Summary
from whisper_mla.evaluation.processes import Processes

from . import console

# Where there is no terminal to draw a bar on, such as in the log of a job.
SECONDS_BETWEEN_LINES = 60.0


@contextmanager
def shown_progress(total: int | None, done: int, processes: Processes) -> Iterator[Callable[[Progress], None]]:
    """Yield a function that shows the progress of the first process on standard error.

    Args:
        total: recordings of the source, if known.
        done: those of earlier runs.
        processes: that share them.
    """
    own = None if total is None else -(-max(total - done, 0) // processes.count)
    whose = "" if processes.count == 1 else f" (process 1 of {processes.count})"
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    last = time.monotonic()

    def show(progress: Progress) -> None:
        nonlocal last
        speed = f"{_speed(progress)}, {progress.failed} failed{whose}"
        bar.update(task, completed=progress.files, description=speed)
        is_due = time.monotonic() - last >= SECONDS_BETWEEN_LINES
        if is_due and processes.is_first and not console.messages.is_terminal:
            last = time.monotonic()
            console.note(f"{progress.files} of {own or 'unknown'} files, {speed}")

    with Bar(
        *columns, console=console.messages, transient=True, redirect_stdout=False, disable=not processes.is_first
    ) as bar:
        task = bar.add_task(f"Reading{whose}", total=own)
        yield show


def _speed(progress: Progress) -> str:
    seconds = max(progress.seconds, 1e-9)
    return f"{progress.files / seconds:.2f} files/s, {progress.audio_seconds / seconds:.1f} audio-hours/hour"


def show_summary(summary: Summary, path: Path) -> None:
    """A table on standard output; every failure with its reason on standard error."""
    table = Table(title=str(path), title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("files with a result", f"{summary.files:,}")
    table.add_row("failed", f"{len(summary.failures):,}")
    table.add_row("audio", f"{summary.audio_seconds / 3600:,.2f} h")
    table.add_row("done by this run", f"{summary.new_files:,} files in {summary.seconds:,.1f} s")
    table.add_row("speed", f"{summary.files_per_second:.2f} files/s")
    table.add_row("", f"{summary.audio_hours_per_hour:.1f} audio-hours/hour")
    table.add_row("processes", str(summary.processes))
    table.add_row("batch size at the end", ", ".join(map(str, summary.batch_sizes)))
    console.output.print(table)
    for failure in summary.failures:
        console.error(failure.error)
    if summary.failures:
        console.note(f"{len(summary.failures)} of {summary.files} files have no transcript.")
