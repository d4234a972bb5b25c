"""Speech corpora as examples `{"audio": …, "text": …, "language": …}`, from the Hub, local datasets or audio folders.

Audio stays encoded until a batch is made (see `collator.py`), so nothing is written to disk beside the corpus.
"""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import soundfile
import soxr
from datasets import Audio, Dataset, IterableDataset
from transformers.utils.logging import tqdm

from whisper_mla.transcription.audio import SAMPLING_RATE, AudioError, read_audio, read_encoded_audio
from whisper_mla.transcription.audio_folder import TEXT_COLUMNS, find_metadata, read_rows

_KEYS = {
    "path",
    "name",
    "split",
    "audio_column",
    "text_column",
    "language",
    "language_column",
    "streaming",
    "revision",
    "limit",
}


def load_speech(source: Mapping[str, Any]) -> Dataset | IterableDataset:
    """One corpus with the columns `audio`, `text` and `language`.

    Args:
        source: a mapping with
            `path`: an audio folder (with `metadata.csv` or `metadata.jsonl`, which name `file_name` and the text), or
            anything that `datasets.load_dataset` takes: a Hub id, a folder of parquet files, …;
            `name`, `split`, `revision`, `streaming`: as for `load_dataset`; not for audio folders;
            `audio_column` (default "audio"), `text_column` (default: the first of `TEXT_COLUMNS`);
            `language`: of all utterances, or `language_column`;
            `limit`: only the first so many examples. Of a stream they are read into memory, still encoded.

    Returns:
        Dataset, or IterableDataset if streaming without a limit. `audio` is `{"path", "bytes"}` or
        `{"array", "sampling_rate"}`, `text` a string or None where there is none, `language` a string or None.

    Raises:
        ValueError: an unknown key, no such corpus, no such column.
    """
    unknown = sorted(set(source) - _KEYS)
    if unknown or not source.get("path"):
        raise ValueError(f"dataset {dict(source)!r}: expected 'path' and optionally {', '.join(sorted(_KEYS))}.")
    metadata = find_metadata(Path(str(source["path"])).expanduser())
    if metadata is not None:
        data: Dataset | IterableDataset = _audio_folder(metadata, source)
    else:
        data = _load_dataset(source)
    columns = data.column_names or list(next(iter(data)))
    audio, text = source.get("audio_column", "audio"), _text_column(columns, source)
    language_column = source.get("language_column")
    for wanted in (audio, *([language_column] if language_column else [])):
        if wanted not in columns:
            raise ValueError(f"{source['path']}: no column {wanted!r}. It has: {', '.join(columns)}.")
    if data.features is not None and isinstance(data.features[audio], Audio):
        data = data.cast_column(audio, Audio(decode=False))
    keep = {
        audio: "audio",
        **({text: "text"} if text else {}),
        **({language_column: "language"} if language_column else {}),
    }
    data = data.select_columns(list(keep))
    data = data.rename_columns({old: new for old, new in keep.items() if old != new})
    data = data if language_column else _with_language(data, source.get("language"))
    return _first(data, source.get("limit"), str(source["path"]))


def _first(data: Dataset | IterableDataset, limit: Any, name: str) -> Dataset | IterableDataset:
    if limit is None:
        return data
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ValueError(f"{name}: limit={limit!r}: expected a number of examples, 1 or more.")
    if isinstance(data, Dataset):
        return data.select(range(min(limit, len(data))))
    return Dataset.from_list(list(tqdm(data.take(limit), desc=f"Reading {name}", total=limit)))


def _with_language(data: Dataset | IterableDataset, language: str | None) -> Dataset | IterableDataset:
    if isinstance(data, Dataset):
        return data.add_column("language", [language] * len(data))
    return data.map(lambda example: {"language": language})


def _text_column(columns: list[str], source: Mapping[str, Any]) -> str | None:
    """None where no text is asked for: `text_column: null`, for audio without transcripts."""
    if "text_column" in source:
        wanted = source["text_column"]
        if wanted is not None and wanted not in columns:
            raise ValueError(f"{source['path']}: no column text_column={wanted!r}. It has: {', '.join(columns)}.")
        return wanted
    found = next((name for name in TEXT_COLUMNS if name in columns), None)
    if found is None:
        raise ValueError(
            f"{source['path']}: no transcripts (no column {' or '.join(TEXT_COLUMNS)} among {', '.join(columns)}). "
            "Name it with text_column, or set text_column to null and let the teacher transcribe."
        )
    return found


def _audio_folder(metadata: Path, source: Mapping[str, Any]) -> Dataset:
    folder = metadata.parent
    given = sorted({"name", "split", "streaming", "revision", "audio_column"} & set(source))
    if given:
        raise ValueError(f"{folder}: {', '.join(given)}: not for an audio folder.")
    rows = read_rows(metadata)
    if not rows or "file_name" not in rows[0]:
        raise ValueError(f"{folder}: its metadata has no rows with a file_name.")
    for row in rows:
        if not (folder / row["file_name"]).is_file():
            raise ValueError(f"{folder / row['file_name']}: named in the metadata, but there is no such file.")
    columns = {name: [row.get(name) for row in rows] for name in rows[0] if name != "file_name"}
    audio = [{"path": str(folder / row["file_name"]), "bytes": None} for row in rows]
    return Dataset.from_dict({"audio": audio, **columns})


def _load_dataset(source: Mapping[str, Any]) -> Dataset | IterableDataset:
    if not source.get("split"):
        raise ValueError(
            f"{source['path']}: which split? Give 'split' (or a folder with metadata.csv, which has none)."
        )
    options = {key: source[key] for key in ("name", "split", "revision", "streaming") if source.get(key) is not None}
    try:
        return datasets.load_dataset(str(source["path"]), **options)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{source['path']}: cannot be loaded ({reason}).") from error


def decode_audio(audio: Mapping[str, Any]) -> np.ndarray:
    """One channel at 16 kHz.

    Args:
        audio: `{"path", "bytes"}` of an audio file (bytes first, if there are any), or samples
            `{"array": [samples], "sampling_rate"}`.

    Returns:
        numpy.ndarray: float32 `[samples]`.

    Raises:
        AudioError: unreadable, empty, not finite, or samples of which the sampling rate is not said.
    """
    _check_audio(audio)
    if audio.get("array") is not None:
        if not audio.get("sampling_rate"):
            raise AudioError("audio given as an array: its sampling_rate is unknown. Give it beside the array.")
        samples, rate = np.asarray(audio["array"], dtype=np.float32), int(audio["sampling_rate"])
        if samples.ndim != 1 or not samples.size or not np.isfinite(samples).all():
            raise AudioError(
                f"audio given as an array of shape {samples.shape}: expected finite samples of one channel."
            )
        return samples if rate == SAMPLING_RATE else soxr.resample(samples, rate, SAMPLING_RATE)
    if audio.get("bytes") is not None:
        return read_encoded_audio(audio["bytes"], audio.get("path") or "audio")
    return read_audio(audio["path"])


def _check_audio(audio: Any) -> None:
    if not isinstance(audio, Mapping):
        raise AudioError(
            f"audio of type {type(audio).__name__}: the sampling rate is unknown. Give an audio file, or "
            "{'array': samples, 'sampling_rate': rate}."
        )
    if all(audio.get(key) is None for key in ("path", "bytes", "array")):
        raise AudioError("audio: neither path, bytes nor array is given.")


def audio_seconds(audio: Mapping[str, Any]) -> float:
    """Duration in seconds, from the file's header where there is one.

    Raises:
        AudioError: as `decode_audio`.
    """
    _check_audio(audio)
    if audio.get("array") is None:
        try:
            encoded = audio.get("bytes")
            return soundfile.info(io.BytesIO(encoded) if encoded is not None else audio["path"]).duration
        except soundfile.SoundFileError:
            pass
    return len(decode_audio(audio)) / SAMPLING_RATE


def mix(
    corpora: list[Any], probabilities: list[float] | None, seed: int, combine: Callable = datasets.interleave_datasets
):
    """Several corpora in one, drawn from at random until every utterance has been drawn once.

    Args:
        corpora: of one kind, all streaming or none.
        probabilities: of drawing from each; None: equal.
        seed: of the draws.
        combine: `datasets.interleave_datasets`.

    Raises:
        ValueError: a mixture of streaming and other corpora, or probabilities of another number or sum.
    """
    if len(corpora) == 1:
        return corpora[0]
    if len({isinstance(corpus, IterableDataset) for corpus in corpora}) > 1:
        raise ValueError("streaming: some datasets stream and others do not; they cannot be mixed.")
    if probabilities and (len(probabilities) != len(corpora) or abs(sum(probabilities) - 1) > 1e-6):
        raise ValueError(
            f"probabilities={probabilities!r}: expected {len(corpora)} numbers, one for each dataset, with sum 1."
        )
    return combine(corpora, probabilities=probabilities, seed=seed, stopping_strategy="all_exhausted")
