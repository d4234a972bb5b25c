"""Tell what kind of source a name is, and which of its recordings are whose."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .sources import Item, read_folder, read_manifest

_MANIFESTS = (".txt", ".csv", ".tsv", ".jsonl")
# What `datasets` leaves in a folder that it saved.
_SAVED_DATASET = ("dataset_info.json", "dataset_dict.json")


@dataclass(frozen=True)
class Files:
    """Files on disk.

    Attributes:
        items: in the order of the source.
    """

    items: list[Item]

    @property
    def count(self) -> int:
        return len(self.items)

    def share(self, rank: int, processes: int) -> list[Item]:
        """The items of one process: every so manieth by size, so that all get about as much."""
        return sorted(self.items, key=lambda item: -item.size)[rank::processes]

    def in_order(self, names: Iterable[str]) -> list[str]:
        """`names` in the order of the source; those that it does not have (any more) last."""
        place = {item.id: number for number, item in enumerate(self.items)}
        return sorted(names, key=lambda name: (place.get(name, len(place)), name))


@dataclass(frozen=True)
class Rows:
    """Rows of a dataset, which every process opens for itself.

    Attributes:
        name, split, streaming, audio_column: see `open_dataset`, `dataset_items`.
        count: of rows; None where they are streamed.
    """

    name: str
    split: str | None
    streaming: bool
    audio_column: str
    count: int | None

    def share(self, rank: int, processes: int) -> Iterator[Item]:
        """The items of one process: every so manieth row. Streamed, each process receives all rows."""
        from .dataset_rows import dataset_items, open_dataset

        dataset = open_dataset(self.name, self.split, self.streaming)
        for number, item in enumerate(dataset_items(dataset, self.name, self.audio_column)):
            if number % processes == rank:
                yield item

    def in_order(self, names: Iterable[str]) -> list[str]:
        """`names` in the order of the rows."""
        return sorted(names, key=lambda name: int(name.partition(":")[0]))


def open_source(
    name: str,
    split: str | None = None,
    streaming: bool = False,
    audio_column: str | None = None,
    skip_missing: bool = False,
) -> Files | Rows:
    """The recordings of a folder, a manifest or a dataset; their audio is read later.

    Args:
        name: a folder of audio, a manifest (see `read_manifest`), a folder that `save_to_disk` of `datasets` wrote, or
            an id on the Hub (owner/name:configuration).
        split, streaming: of a dataset.
        audio_column: of a dataset (None: "audio") or a manifest (None: the usual names).
        skip_missing: files that a manifest names and that are not there are recorded as failed.

    Raises:
        ValueError: there is no such source, it is empty, or it names files that are not there.
    """
    path = Path(name)
    is_saved = any((path / file).is_file() for file in _SAVED_DATASET)
    if path.is_dir() and not is_saved:
        return Files(read_folder(path))
    if path.is_file():
        if path.suffix.lower() not in _MANIFESTS:
            raise ValueError(
                f"{name}: expected a folder, a dataset or a manifest ({', '.join(_MANIFESTS)}). Single files are what "
                "`whisper-mla transcribe` is for."
            )
        return Files(read_manifest(path, audio_column, skip_missing))
    if not is_saved and ("/" not in name or path.is_absolute() or name.startswith(".")):
        raise ValueError(f"{name}: no such folder or manifest.")
    from .dataset_rows import open_dataset  # `datasets` takes a second to import, which files do not need

    dataset = open_dataset(name, split, streaming)
    count = None if streaming else len(dataset)
    if count == 0:
        raise ValueError(f"{name}: has no rows.")
    return Rows(name, split, streaming, audio_column or "audio", count)
