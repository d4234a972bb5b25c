"""Rows of the `datasets` library: loaded from disk or the Hub, whole or streamed."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import datasets
import numpy as np

from whisper_mla.evaluation.hub_datasets import load_row_audio
from whisper_mla.evaluation.utterances import language_code

from .sources import Item


def open_dataset(name: str, split: str | None, streaming: bool):
    """A dataset saved by `save_to_disk`, or one on the Hub.

    Args:
        name: a folder, or an id on the Hub, with a configuration after a colon where there are several.
        split: None: "test" on the Hub; on disk the only one.
        streaming: read row by row as they arrive, rather than downloading all of it first.

    Raises:
        ValueError: cannot be opened, or has several splits and none was named.
    """
    try:
        if Path(name).is_dir():
            found = datasets.load_from_disk(name)
        else:
            key, _, configuration = name.partition(":")
            found = datasets.load_dataset(key, configuration or None, split=split or "test", streaming=streaming)
    except Exception as error:
        raise ValueError(f"{name}: cannot be opened as a dataset ({type(error).__name__}: {error}).") from error
    if isinstance(found, dict):
        if split not in found:
            raise ValueError(f"{name}: has the splits {', '.join(found)}. Choose one with --split.")
        found = found[split]
    return found.to_iterable_dataset() if streaming and isinstance(found, datasets.Dataset) else found


def dataset_items(dataset, name: str, audio_column: str = "audio") -> Iterator[Item]:
    """Items of the rows, known by the number of the row and, where it has one, its `id`.

    Args:
        dataset: one split; a row is read when its item is loaded, or, streamed, when it arrives.
        name: for errors.
        audio_column: encoded audio, paths, or dictionaries of `array` `[samples]` and `sampling_rate`.

    Raises:
        ValueError: no such column.
    """
    features = dataset.features
    if features is not None and audio_column not in features:
        raise ValueError(f"{name}: no column {audio_column}. It has: {', '.join(features)}. Name one: --audio-column.")
    if features is not None and isinstance(features[audio_column], datasets.Audio):
        dataset = dataset.cast_column(audio_column, datasets.Audio(decode=False))  # our own reader decodes
    if not isinstance(dataset, datasets.Dataset):
        for number, row in enumerate(dataset):
            yield _item(name, number, row, partial(load_row_audio, name, str(number), row.get(audio_column)))
        return
    about = dataset.select_columns([column for column in ("id", "language") if column in (features or ())])
    columns = about[:] if about.column_names else {}
    for number in range(len(dataset)):
        row = {column: values[number] for column, values in columns.items()}
        yield _item(name, number, row, partial(_load, dataset, number, name, audio_column))


def _item(name: str, number: int, row: dict, load: Callable[[], np.ndarray]) -> Item:
    label = f"{number}:{row['id']}" if row.get("id") is not None else str(number)
    return Item(label, load, language=language_code(row.get("language")))


def _load(dataset: datasets.Dataset, number: int, name: str, audio_column: str) -> np.ndarray:
    return load_row_audio(name, str(number), dataset[number][audio_column])
