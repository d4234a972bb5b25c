"""Datasets by name: a folder, one of the named datasets, or an id on the Hub."""

from collections import Counter
from pathlib import Path

from .audio_folders import read_audio_folder
from .utterances import Utterance


def read_dataset(
    name: str,
    split: str | None = None,
    language: str | None = None,
    text_column: str | None = None,
    limit: int | None = None,
    skip_empty: bool = False,
) -> list[Utterance]:
    """The utterances of a dataset; audio is read later. A folder of that name goes before anything on the Hub.

    Args:
        name: a folder (see `read_audio_folder`) or a dataset on the Hub (see `read_hub_dataset`).
        split, language, text_column, limit, skip_empty: see there.

    Returns:
        list[Utterance]: in the order of the dataset.

    Raises:
        ValueError: a `limit` below 1, or what the reader raises: no such dataset, rows that cannot be used.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: expected at least 1.")
    if Path(name).is_dir() or Path(name).is_absolute() or name.startswith("."):
        return read_audio_folder(name, split, language, text_column, limit, skip_empty)
    from .hub_datasets import read_hub_dataset  # `datasets` takes a second to import, which folders do not need

    return read_hub_dataset(name, split, language, text_column, limit, skip_empty)


def read_datasets(names: list[str], **options) -> list[Utterance]:
    """The utterances of several datasets, one after the other.

    Args:
        names: for `read_dataset`.
        options: the other arguments of `read_dataset`, for all of them.

    Returns:
        list[Utterance]: of all.

    Raises:
        ValueError: as of `read_dataset`, or two datasets of the same name, which no table could tell apart.
    """
    found = [read_dataset(name, **options) for name in names]
    twice = [name for name, count in Counter(utterances[0].dataset for utterances in found).items() if count > 1]
    if twice:
        raise ValueError(f"dataset: two are named {twice[0]!r}, so no table could tell them apart. Rename a folder.")
    return [utterance for utterances in found for utterance in utterances]
