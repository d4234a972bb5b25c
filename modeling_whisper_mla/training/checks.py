"""Look at a corpus before the first step: what is wrong raises, what does not fit is counted and left out."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset
from transformers.utils import logging

from whisper_mla.transcription.audio import AudioError

from .labels import LabelMaker
from .speech_data import audio_seconds

logger = logging.get_logger(__name__)

_STREAM_SAMPLE = 16
EMPTY, LONG_LABELS, LONG_AUDIO = "a transcript that is missing or empty", "labels that are too long", "long audio"


def check_corpus(
    data: Any,
    label_maker: LabelMaker,
    max_labels: int,
    max_seconds: float,
    name: str = "dataset",
    long_audio: str = "drop",
    empty_text: str = "error",
    needs_text: bool = True,
    num_proc: int | None = None,
):
    """The usable examples of a corpus.

    Every example of a `Dataset` is looked at (audio by its header only), with a progress bar; the result is cached by
    `datasets`. Of a stream the first 16 examples are, before anything else, and the others when their turn comes:
    wrong ones raise then, those that do not fit are skipped. Any other indexable data set is taken as it is.

    Args:
        data: examples `{"audio", "text", "language"}`.
        label_maker: makes labels; knows the languages.
        max_labels: `max_target_positions` of the model. Examples with more labels are left out.
        max_seconds: of the model's window, 30 for every published Whisper.
        name: for messages.
        long_audio: "drop" or "error", for audio over `max_seconds`.
        empty_text: "error" or "drop", for transcripts that are missing or empty.
        needs_text: False for audio that a teacher will transcribe.
        num_proc: processes that look.

    Returns:
        The same kind of data, without what does not fit.

    Raises:
        ValueError: an unknown option, a language that the tokenizer does not have, an empty transcript, long audio
            (where that is an error), or nothing left.
        AudioError: audio that cannot be read, or of an unknown sampling rate.
    """
    for option, value in (("long_audio", long_audio), ("empty_text", empty_text)):
        if value not in ("drop", "error"):
            raise ValueError(f"{option}={value!r}: expected 'drop' or 'error'.")
    fatal = {EMPTY: empty_text == "error", LONG_AUDIO: long_audio == "error", LONG_LABELS: False}
    remedy = {EMPTY: "empty_text: drop", LONG_AUDIO: "long_audio: drop"}

    def problem(example: Mapping[str, Any], index: int) -> str:
        where = f"{name}, example {index}"
        try:
            found = _problem(example, label_maker, max_labels, max_seconds, needs_text)
        except AudioError as error:
            raise AudioError(f"{where}: {error}") from error
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if fatal.get(found):
            raise ValueError(
                f"{where}: {_describe(found, max_labels, max_seconds)}. To leave such out: {remedy[found]}."
            )
        return found

    if isinstance(data, IterableDataset):
        first = [problem(example, index) for index, example in enumerate(data.take(_STREAM_SAMPLE))]
        if all(first):
            raise ValueError(f"{name}: none of its first {len(first)} examples can be used.")
        return data.filter(lambda example, index: problem(example, index) == "", with_indices=True)
    if not isinstance(data, Dataset):
        return data

    problems = [
        row["problem"]
        for row in data.map(
            lambda example, index: {"problem": problem(example, index)},
            with_indices=True,
            remove_columns=data.column_names,
            num_proc=num_proc,
            desc=f"Looking at {name}",
        )
    ]
    counts = Counter(found for found in problems if found)
    for found, count in sorted(counts.items()):
        logger.warning(
            f"{name}: {count} of {len(data)} examples left out: {_describe(found, max_labels, max_seconds)}."
        )
    kept = np.flatnonzero([not found for found in problems])
    if not len(kept):
        raise ValueError(f"{name}: no example can be used ({len(data)} left out).")
    return data.select(kept) if counts else data


def _problem(
    example: Mapping[str, Any], label_maker: LabelMaker, max_labels: int, max_seconds: float, needs_text: bool
) -> str:
    """Why an example cannot be used; empty if it can."""
    language = example.get("language")
    label_maker.language_code(language)
    if needs_text:
        text = example.get("text")
        if text is None or not text.strip():
            return EMPTY
        if len(label_maker(text, language)) > max_labels:
            return LONG_LABELS
    return LONG_AUDIO if audio_seconds(example["audio"]) > max_seconds else ""


def _describe(found: str, max_labels: int, max_seconds: float) -> str:
    limit = {LONG_LABELS: f" (more than {max_labels} tokens)", LONG_AUDIO: f" (more than {max_seconds:g} s)"}
    return found + limit.get(found, "")
