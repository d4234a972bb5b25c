"""Run a model over utterances: in batches, on one process or several, continuing where an interrupted run stopped."""

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils.logging import tqdm

from whisper_mla.transcription.audio import SAMPLING_RATE, AudioError
from whisper_mla.transcription.fallback import FallbackOptions
from whisper_mla.transcription.transcriber import Transcriber

from .processes import Processes
from .utterance_results import ResultsFile, UtteranceResult
from .utterances import Utterance


@dataclass(frozen=True)
class PeakMemory:
    """The most memory that was in use.

    Attributes:
        bytes: of the process that used most.
        what: what was counted; the kinds cannot be compared.
    """

    bytes: int
    what: str


@dataclass(frozen=True)
class ModelRun:
    """What a model made of the utterances.

    Attributes:
        results: in the order of the utterances.
        peak_memory: None if everything had been transcribed before.
    """

    results: list[UtteranceResult]
    peak_memory: PeakMemory | None


def evaluate_model(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    utterances: Sequence[Utterance],
    *,
    num_beams: int = 1,
    batch_size: int = 8,
    fallback: FallbackOptions | None = None,
    processes: Processes | None = None,
    results_file: ResultsFile | None = None,
    progress: Callable[[float], None] | None = None,
) -> ModelRun | None:
    """Transcribe all utterances. Audio that cannot be read is skipped, and its result says so.

    Audio that fits the model's window (30 s) is decoded at once and without timestamps, longer audio window by window
    (sequential long form).
    Batches are the same however many processes share them, and an interrupted batch is repeated as a whole: transcripts
    depend neither on the number of processes nor on interruptions.

    Args:
        model: a stock Whisper or a Whisper-MLA model in evaluation mode; the same on every process.
        processor: its processor.
        utterances: of any datasets and languages. Those without a language get the model's own choice.
        num_beams: 1 for greedy decoding.
        batch_size: utterances decoded at once.
        fallback: temperatures and thresholds; None: OpenAI's.
        processes: that share the work; None: this one alone.
        results_file: where results are kept as they come; those of earlier runs are not made again.
        progress: called on every process with the number of utterances done of its own share, within a batch too;
            None: a progress bar on the first process.

    Returns:
        ModelRun: on the first process; None on the others.

    Raises:
        ValueError: no utterances, `batch_size` below 1, a language that the model does not have, or a results file of
            other settings. Raised before anything is transcribed.
    """
    processes = processes or Processes()
    batches = make_batches(utterances, batch_size)
    languages = {utterance.language for utterance in utterances}
    transcribers = {
        code: Transcriber(model, processor, code, num_beams=num_beams, fallback=fallback) for code in languages
    }
    done: dict[int, UtteranceResult] = {}
    if results_file and processes.is_first:
        done = results_file.collect()
    done = processes.broadcast(done)
    waiting = [batch for batch in batches if any(index not in done for index in batch)]
    own = waiting[processes.rank :: processes.count]

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats(model.device if model.device.type == "cuda" else None)
    made: list[UtteranceResult] = []

    def show(finished: float) -> None:
        if progress:
            progress(len(made) + finished)

    size = sum(map(len, own))
    with tqdm(total=size, desc="Transcribing", disable=bool(progress) or not processes.is_first) as bar:
        for batch in own:
            new = _transcribe(transcribers, utterances, batch, show)
            if results_file:
                results_file.append(new)
            made += new
            show(0)
            bar.update(len(batch))
    gathered = processes.gather((made, _peak_memory(model) if own else None))
    if not processes.is_first:
        return None
    for results, _ in gathered:
        done.update((result.index, result) for result in results)
    if results_file and waiting:
        results_file.write(done.values())
        results_file.collect()
    peaks = [peak for _, peak in gathered if peak]
    results = [done[index] for index in range(len(utterances))]
    return ModelRun(results, max(peaks, key=lambda peak: peak.bytes) if peaks else None)


def make_batches(utterances: Sequence[Utterance], batch_size: int) -> list[list[int]]:
    """Indices of utterances decoded together: of one dataset and language, long transcripts first.

    A batch is decoded until its longest transcript ends, so similar lengths waste least; the longest first shows at
    once whether memory suffices. Order and content of the result depend on the arguments only.

    Raises:
        ValueError: no utterances, or `batch_size` below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1.")
    if not utterances:
        raise ValueError("utterances: there is none.")
    groups: dict[tuple[str, str | None], list[int]] = {}
    for index, utterance in enumerate(utterances):
        groups.setdefault((utterance.dataset, utterance.language), []).append(index)
    batches = []
    for group in groups.values():
        ordered = sorted(group, key=lambda index: -len(utterances[index].reference))
        batches += [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
    return batches


def _transcribe(
    transcribers: dict[str | None, Transcriber],
    utterances: Sequence[Utterance],
    batch: list[int],
    show: Callable[[float], None],
) -> list[UtteranceResult]:
    audios: list[np.ndarray] = []
    errors: dict[int, str] = {}
    for index in batch:
        try:
            audios.append(utterances[index].load())
        except AudioError as error:
            errors[index] = str(error)

    def windows(frames: torch.Tensor) -> None:
        finished, total = (column.sum().item() for column in frames.T)
        show(len(audios) * finished / max(total, 1))

    transcriber = transcribers[utterances[batch[0]].language]
    start = time.perf_counter()
    transcripts = iter(transcriber(audios, windows) if audios else [])  # its tokens are on the CPU: nothing still runs
    seconds = time.perf_counter() - start
    lengths = iter(len(samples) / SAMPLING_RATE for samples in audios)
    results = []
    for index in batch:
        utterance = utterances[index]
        about: dict[str, Any] = {
            "index": index,
            "id": utterance.id,
            "dataset": utterance.dataset,
            "language": utterance.language,
            "reference": utterance.reference,
        }
        if index in errors:
            about |= {"hypothesis": None, "audio_seconds": 0.0, "processing_seconds": 0.0, "error": errors[index]}
        else:
            transcript = next(transcripts)
            about |= {
                "hypothesis": transcript.text,
                "fallbacks": transcript.fallbacks,
                "skipped_seconds": transcript.skipped_seconds,
                "audio_seconds": next(lengths),
                "processing_seconds": seconds / len(audios),
            }
        results.append(UtteranceResult(**about))
    return results


def _peak_memory(model: PreTrainedModel) -> PeakMemory:
    if model.device.type == "cuda":
        return PeakMemory(torch.cuda.max_memory_allocated(model.device), "allocated on the GPU, weights included")
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return PeakMemory(peak, "resident memory of the process since its start, earlier models included")
