"""Local folders of audio with transcripts."""

from functools import partial
from pathlib import Path

from whisper_mla.transcription.audio import read_audio
from whisper_mla.transcription.audio_folder import METADATA_NAMES, TEXT_COLUMNS, read_rows

from .utterances import Utterance, check_has_sampling_rate, check_transcripts, language_code


def read_audio_folder(
    folder: str | Path,
    split: str | None = None,
    language: str | None = None,
    text_column: str | None = None,
    limit: int | None = None,
    skip_empty: bool = False,
) -> list[Utterance]:
    """The utterances of a folder. Audio is read later, file by file.

    Two layouts: Hugging Face's audio folder (`metadata.csv` or `metadata.jsonl` with `file_name`, a text column and
    possibly `language`; a split is a sub-folder), and Common Voice as it is downloaded (`test.tsv`, `dev.tsv`, … with
    `path` and `sentence`, audio in `clips/`).

    Args:
        folder: of either layout.
        split: a sub-folder, or the name of a `.tsv` file.
        language: name or code, for rows that have no `language` (Common Voice: `locale`) of their own.
        text_column: None: the first of `TEXT_COLUMNS` that is there.
        limit: only the first so many rows.
        skip_empty: leave out rows without a transcript instead of raising.

    Returns:
        list[Utterance]: in the order of the rows. `id` is the file name, `dataset` the folder's name with its split.

    Raises:
        ValueError: no such folder or split, no metadata or two, a column missing, a row without a file name or (unless
            skipped) without a transcript, or files whose sampling rate is unknown.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"{folder}: no such folder.")
    name = root.resolve().name + (f"/{split}" if split else "")
    metadata, audio = _find_metadata(root, split)
    rows = read_rows(metadata)
    if not rows:
        raise ValueError(f"{metadata}: has no row.")
    columns = list(rows[0])
    is_common_voice = metadata.suffix == ".tsv"
    file_column = _column(metadata, columns, ("path",) if is_common_voice else ("file_name",))
    text = _column(metadata, columns, (text_column,) if text_column else TEXT_COLUMNS)
    utterances = []
    for number, row in enumerate(rows[:limit], start=1):
        file_name = row.get(file_column)
        if not isinstance(file_name, str) or not file_name.strip():
            raise ValueError(f"{metadata}: row {number} has no {file_column}.")
        spoken = row.get("language") or (_language_of_locale(row.get("locale")) if is_common_voice else None)
        utterances.append(
            Utterance(
                id=file_name,
                dataset=name,
                language=language_code(spoken or language),
                reference=str(row.get(text) or ""),
                load=partial(read_audio, audio / file_name),
            )
        )
    check_has_sampling_rate(name, (utterance.id for utterance in utterances))
    return check_transcripts(name, utterances, skip_empty)


def _find_metadata(root: Path, split: str | None) -> tuple[Path, Path]:
    """The metadata file, and the folder that its file names are relative to."""
    if split and (root / f"{split}.tsv").is_file():
        return root / f"{split}.tsv", root / "clips"
    place = root / split if split else root
    if not place.is_dir():
        raise ValueError(f"split={split!r}: {root} has neither a folder {split}/ nor a file {split}.tsv.")
    found = [place / name for name in METADATA_NAMES if (place / name).is_file()]
    if len(found) == 2:
        raise ValueError(f"{place}: holds both {' and '.join(METADATA_NAMES)}. Keep one.")
    if not found:
        splits = sorted(path.parent.name for name in METADATA_NAMES for path in place.glob(f"*/{name}"))
        splits += sorted(path.stem for path in place.glob("*.tsv"))
        remedy = f"Choose one with --split: {', '.join(splits)}." if splits and not split else "Write one."
        raise ValueError(f"{place}: no {' or '.join(METADATA_NAMES)} in this folder. {remedy}")
    return found[0], place


def _column(metadata: Path, columns: list[str], wanted: tuple[str, ...]) -> str:
    for name in wanted:
        if name in columns:
            return name
    raise ValueError(f"{metadata}: no column {' or '.join(wanted)}. It has: {', '.join(map(str, columns))}.")


def _language_of_locale(locale: str | None) -> str | None:
    return locale.split("-")[0] if locale else None
