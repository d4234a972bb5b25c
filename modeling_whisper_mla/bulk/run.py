"""Transcribe many recordings on this process, each once, whatever happens to single ones."""

import dataclasses
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import numpy as np

from whisper_mla.evaluation.result_lines import ResultLines
from whisper_mla.transcription.audio import SAMPLING_RATE, AudioError
from whisper_mla.transcription.transcriber import Transcriber
from whisper_mla.transcription.transcript import Transcript
from whisper_mla.transcription.transcript_files import without_unknown

from .batch_size import free_what_was_tried, is_out_of_memory
from .read_ahead import batches, by_length, read_ahead
from .sources import Item

Heard = tuple[Item, np.ndarray]

# So many recordings in a row that the model failed on are no accident of theirs.
MOST_FAILURES_IN_A_ROW = 16


@dataclass
class Progress:
    """How far this process is.

    Attributes:
        files: done, the failed ones included.
        failed: files without a transcript.
        audio_seconds: of the files that have one.
        batch_size: now.
        seconds: since the beginning.
    """

    files: int = 0
    failed: int = 0
    audio_seconds: float = 0.0
    batch_size: int = 1
    seconds: float = 0.0


class ModelFailed(RuntimeError):
    """The model failed on every recording for a while: nothing is gained by going on."""


def transcribe_many(
    transcriber_of: Callable[[str | None], Transcriber],
    items: Iterable[Item],
    lines: ResultLines,
    *,
    done: Collection[str] = frozenset(),
    batch_size: int = 8,
    workers: int = 2,
    pool: int | None = None,
    show: Callable[[Progress], None] | None = None,
    note: Callable[[str], None] = print,
) -> Progress:
    """Transcribe recordings in batches of like length, and write each batch to the disk before the next.

    What cannot be read, does not fit into memory even alone, or fails in the model is recorded with the reason.

    Args:
        transcriber_of: gives the transcriber for an item's language.
        items: of this process.
        lines: where results go: `audio` (the item's id) with a transcript's fields and `seconds`, or with `error`.
        done: ids that have a result; they are left out.
        batch_size: recordings decoded at once, halved where memory does not suffice.
        workers: threads that read and decode audio ahead of the model.
        pool: how many items are sorted by length at once; None: all, which needs a source that ends.
        show: called after each batch.
        note: called with a line where a batch did not fit.

    Returns:
        Progress: of this process, at the end.

    Raises:
        ValueError: `batch_size` or `workers` below 1, before the work.
        ModelFailed: the model failed on so many recordings in a row that the cause is not in them.
        OSError: results cannot be written.
    """
    for name, value in {"batch_size": batch_size, "workers": workers}.items():
        if value < 1:
            raise ValueError(f"{name}={value}: expected at least 1.")
    progress, start = Progress(batch_size=batch_size), time.perf_counter()
    waiting = (item for item in items if item.id not in done)
    read = read_ahead(by_length(waiting, workers, pool), workers)
    in_a_row = 0
    for batch in batches(read, lambda: progress.batch_size):
        audios = [(item, audio) for item, audio in batch if not isinstance(audio, AudioError)]
        outcomes = iter(_decode(transcriber_of(batch[0][0].language), audios, progress, note) if audios else [])
        rows = []
        for item, audio in batch:
            if isinstance(audio, AudioError):
                rows.append({"audio": item.id, "error": str(audio)})
                continue
            outcome = next(outcomes)
            in_a_row = 0 if isinstance(outcome, Transcript | DoesNotFit) else in_a_row + 1
            if isinstance(outcome, Transcript):
                rows.append(_row(item, audio, outcome))
                progress.audio_seconds += len(audio) / SAMPLING_RATE
            else:
                rows.append({"audio": item.id, "error": f"{item.id}: {outcome}"})
        if in_a_row >= MOST_FAILURES_IN_A_ROW:
            raise ModelFailed(
                f"The model failed on {in_a_row} recordings in a row, the last time on {rows[-1]['error']}. The cause "
                "is not in them: correct it, and start again with --retry-failed."
            )
        lines.append_rows(rows)
        progress.files += len(rows)
        progress.failed += sum("error" in row for row in rows)
        progress.seconds = time.perf_counter() - start
        if show:
            show(progress)
    return progress


def _row(item: Item, audio: np.ndarray, transcript: Transcript) -> dict:
    about = {"audio": item.id, "seconds": round(len(audio) / SAMPLING_RATE, 3)}
    return {**about, **without_unknown(dataclasses.asdict(transcript))}


def _decode(
    transcriber: Transcriber, batch: list[Heard], progress: Progress, note: Callable[[str], None]
) -> list[Transcript | str]:
    """Transcripts of a batch in order, or what was wrong; in smaller parts where it does not fit."""
    before = progress.batch_size
    outcomes = _in_parts(transcriber, batch, progress, note)
    if any(isinstance(outcome, DoesNotFit) for outcome in outcomes):
        progress.batch_size = before  # one recording was too large, not the batch
    return outcomes


class DoesNotFit(str):
    """Why a recording has no transcript: memory does not suffice for it alone."""


def _in_parts(
    transcriber: Transcriber, batch: list[Heard], progress: Progress, note: Callable[[str], None]
) -> list[Transcript | str]:
    try:
        return [*transcriber([audio for _, audio in batch])]
    except Exception as error:
        short, reason = is_out_of_memory(error), f"{type(error).__name__}: {' '.join(str(error).split())}"
    if short:  # outside of `except`, where the error still holds what the attempt had allocated
        free_what_was_tried()
    if len(batch) == 1:
        item, audio = batch[0]
        seconds = len(audio) / SAMPLING_RATE
        if short:
            note(f"{item.id}: {seconds:.0f} s of audio do not fit into memory even alone; recorded as failed.")
            return [DoesNotFit(f"does not fit into memory even alone ({seconds:.0f} s of audio; {reason})")]
        return [f"the model failed ({reason})"]
    half = len(batch) // 2
    if short:
        progress.batch_size = max(1, min(progress.batch_size, half))
        note(f"Out of memory with {len(batch)} recordings at once; going on with {progress.batch_size}.")
    parts = [batch[start : start + half] for start in range(0, len(batch), half)]
    return [outcome for part in parts for outcome in _in_parts(transcriber, part, progress, note)]
