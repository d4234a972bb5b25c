"""Speech datasets from the Hub.

These need a network and, some of them, consent on the Hub. The names and columns below have not been run in this
project; the reading of rows is tested on datasets of the same shape.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import soxr
from transformers.utils.logging import tqdm

from whisper_mla.transcription.audio import SAMPLING_RATE, AudioError, read_audio, read_encoded_audio
from whisper_mla.transcription.audio_folder import TEXT_COLUMNS

from .utterances import Utterance, check_has_sampling_rate, check_transcripts, language_code


@dataclass(frozen=True)
class HubDataset:
    """Where a dataset is on the Hub.

    Attributes:
        repository: its id.
        configuration: the configuration; None: the user gives it after a colon.
        split: read unless another is asked for.
        text_column: of the transcripts.
        language: of all utterances; None: taken from the configuration ("de_de", "pt", "zh-CN").
    """

    repository: str
    configuration: str | None
    split: str
    text_column: str
    language: str | None = None


NAMED_DATASETS = {
    "librispeech-clean": HubDataset("openslr/librispeech_asr", "clean", "test", "text", "en"),
    "librispeech-other": HubDataset("openslr/librispeech_asr", "other", "test", "text", "en"),
    # A copy in Parquet of release 17: the original needed a loading script, which `datasets` no longer runs. Newer
    # releases come from Mozilla as folders, which `read_audio_folder` reads.
    "common-voice": HubDataset("fixie-ai/common_voice_17_0", None, "test", "sentence"),
    "fleurs": HubDataset("google/fleurs", None, "test", "transcription"),
}

# Where the language of a configuration is not Whisper's code.
_WHISPER_CODES = {"cmn": "zh", "nb": "no", "fil": "tl"}


def read_hub_dataset(
    name: str,
    split: str | None = None,
    language: str | None = None,
    text_column: str | None = None,
    limit: int | None = None,
    skip_empty: bool = False,
) -> list[Utterance]:
    """The utterances of a dataset on the Hub.

    The split is streamed, so that no other split is downloaded, and its encoded audio is held in memory (LibriSpeech's
    test sets: about 0.35 GB each).

    Args:
        name: a key of `NAMED_DATASETS` or an id on the Hub, with a configuration after a colon where there are several:
            "librispeech-clean", "fleurs:de_de", "common-voice:de", "owner/name:configuration".
        split: None: the named dataset's, else "test".
        language: None: that of the named dataset.
        text_column, limit, skip_empty: as of `read_audio_folder`.

    Returns:
        list[Utterance]: in the order of the dataset.

    Raises:
        ValueError: unknown name, configuration missing, not reachable, or rows that cannot be used.
    """
    key, _, configuration = name.partition(":")
    known = NAMED_DATASETS.get(key)
    if known is None and "/" not in key:
        raise ValueError(
            f"dataset={name!r}: neither a folder nor one of {', '.join(NAMED_DATASETS)}, nor an id on the Hub "
            "(owner/name:configuration)."
        )
    if known is None:
        known = HubDataset(key, None, "test", "", "")
    elif known.configuration is None and not configuration:
        raise ValueError(f"dataset={name!r}: say which language, as in {key}:{_example(key)}.")
    elif known.configuration is not None and configuration:
        raise ValueError(f"dataset={name!r}: {key} has no configurations to choose from.")
    chosen = known.configuration or configuration or None
    spoken = language or known.language
    if known.language is None and not language:
        spoken = configuration_language(configuration)
    try:
        stream = datasets.load_dataset(known.repository, chosen, split=split or known.split, streaming=True)
    except Exception as error:
        raise ValueError(
            f"dataset={name!r}: {known.repository} cannot be opened ({type(error).__name__}: {error}). It needs a "
            "network and perhaps consent on the Hub. Give a copy elsewhere as owner/name:configuration, or a folder."
        ) from error
    return utterances_of_dataset(
        stream,
        name + (f"/{split}" if split else ""),
        language=spoken,
        text_column=text_column or known.text_column or None,
        limit=limit,
        skip_empty=skip_empty,
    )


def configuration_language(configuration: str) -> str:
    """Whisper's code of a configuration: "de_de" is "de", "cmn_hans_cn" "zh", "sv-SE" "sv"."""
    language = configuration.replace("-", "_").split("_")[0].lower()
    return _WHISPER_CODES.get(language, language)


def utterances_of_dataset(
    dataset: datasets.Dataset | datasets.IterableDataset,
    name: str,
    language: str | None = None,
    text_column: str | None = None,
    audio_column: str = "audio",
    limit: int | None = None,
    skip_empty: bool = False,
) -> list[Utterance]:
    """The utterances of a loaded `datasets` dataset, one split of it.

    Args:
        dataset: with transcripts and an audio column (encoded, or dictionaries of `array` `[samples]` and
            `sampling_rate`).
        name: for reports.
        language, text_column, limit, skip_empty: as of `read_audio_folder`.
        audio_column: of the audio.

    Returns:
        list[Utterance]: `id` is the row's `id` or file name with the row's number before it.

    Raises:
        ValueError: a column missing, audio without sampling rate, a row without audio or (unless skipped) transcript.
    """
    features = dataset.features
    if features is not None and isinstance(features.get(audio_column), datasets.Audio):
        dataset = dataset.cast_column(audio_column, datasets.Audio(decode=False))  # read_audio decodes
    rows: Iterable[dict] = itertools.islice(dataset, limit)
    utterances = []
    for number, row in enumerate(tqdm(rows, desc=f"Reading {name}", leave=False)):
        if number == 0:
            text = next((column for column in ([text_column] if text_column else TEXT_COLUMNS) if column in row), None)
            if text is None or audio_column not in row:
                missing = audio_column if text else text_column or " or ".join(TEXT_COLUMNS)
                raise ValueError(f"{name}: no column {missing}. It has: {', '.join(row)}.")
        audio = row[audio_column]
        label = f"{number}:{row.get('id') or _file_name(audio) or number}"
        utterances.append(
            Utterance(
                id=label,
                dataset=name,
                language=language_code(row.get("language_code") or language),
                reference=str(row[text] or ""),
                load=_loader(name, label, audio),
            )
        )
    return check_transcripts(name, utterances, skip_empty)


def _loader(dataset: str, label: str, audio):
    if isinstance(audio, dict) and audio.get("bytes"):
        file_name = audio.get("path") or ""
        check_has_sampling_rate(dataset, [file_name])
        return partial(read_encoded_audio, audio["bytes"], f"{dataset} {label}")
    if isinstance(audio, dict) and audio.get("array") is not None:
        rate = audio.get("sampling_rate")
        if not rate:
            raise ValueError(f"{dataset}: row {label} has samples, but its sampling_rate is unknown.")
        return partial(_resample, np.asarray(audio["array"], dtype=np.float32), rate, f"{dataset} {label}")
    path = audio.get("path") if isinstance(audio, dict) else audio
    if isinstance(path, str) and path:
        check_has_sampling_rate(dataset, [path])
        return partial(read_audio, path)
    raise ValueError(f"{dataset}: row {label} has no audio that can be read ({type(audio).__name__}).")


def load_row_audio(dataset: str, label: str, audio) -> np.ndarray:
    """The samples of one value of an audio column: encoded bytes, an array with its rate, or a path.

    Args:
        dataset, label: names of the dataset and the row, for errors.
        audio: the value.

    Returns:
        numpy.ndarray: float32 `[samples]` at 16 kHz, one channel.

    Raises:
        AudioError: not audio that can be read.
    """
    try:
        return _loader(dataset, label, audio)()
    except AudioError:
        raise
    except ValueError as error:  # nothing there to read, or of an unknown rate
        raise AudioError(str(error)) from error


def _resample(samples: np.ndarray, rate: float, name: str) -> np.ndarray:
    if samples.ndim != 1 or not len(samples) or not np.isfinite(samples).all():
        raise AudioError(f"{name}: expected one channel of finite samples, at least one.")
    return samples if rate == SAMPLING_RATE else soxr.resample(samples, rate, SAMPLING_RATE)


def _file_name(audio) -> str | None:
    path = audio.get("path") if isinstance(audio, dict) else None
    return Path(path).name if path else None


def _example(key: str) -> str:
    return "de_de" if key == "fleurs" else "de"
