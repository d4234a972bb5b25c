"""One utterance of a dataset: who it is, what was said, and how to get its audio."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

# Files of bare samples: nothing in them says how many a second has.
_HEADERLESS = {".raw", ".pcm"}


@dataclass(frozen=True)
class Utterance:
    """Audio with its transcript.

    Attributes:
        id: unique within the dataset; a file name for folders.
        dataset: name of the dataset.
        language: Whisper's code, told to the model; None: the model decides.
        reference: the transcript, as the dataset writes it.
        load: gives the samples, float32 `[samples]` at 16 kHz; raises AudioError.
    """

    id: str
    dataset: str
    language: str | None
    reference: str
    load: Callable[[], np.ndarray]


def language_code(language: str | None) -> str | None:
    """Whisper's code of a language name or code: "German", "DE" and "de" are "de"."""
    if language is None or not language.strip():
        return None
    name = language.strip().lower()
    return TO_LANGUAGE_CODE.get(name, name)


def check_transcripts(dataset: str, utterances: Iterable[Utterance], skip_empty: bool = False) -> list[Utterance]:
    """Utterances that have a transcript.

    Args:
        dataset: its name, for the error.
        utterances: those of one dataset.
        skip_empty: leave out those without a transcript instead of raising.

    Returns:
        list[Utterance]: in order, references stripped.

    Raises:
        ValueError: no utterance, or one without a transcript; names the first ones.
    """
    stripped = [replace(utterance, reference=utterance.reference.strip()) for utterance in utterances]
    empty = [utterance.id for utterance in stripped if not utterance.reference]
    if empty and not skip_empty:
        raise ValueError(
            f"{dataset}: {len(empty)} of {len(stripped)} utterances have no transcript ({_first(empty)}). Fill in or "
            "remove those rows, or leave them out with --skip-empty."
        )
    kept = [utterance for utterance in stripped if utterance.reference]
    if not kept:
        raise ValueError(f"{dataset}: no utterance with a transcript.")
    return kept


def check_has_sampling_rate(dataset: str, names: Iterable[str]) -> None:
    """Raise ValueError if the sampling rate of a file cannot be known from the file."""
    unknown = [name for name in names if Path(name).suffix.lower() in _HEADERLESS]
    if unknown:
        raise ValueError(
            f"{dataset}: the sampling rate of {_first(unknown)} is unknown (samples without a header). Convert to WAV "
            "or FLAC, which state it."
        )


def _first(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")
