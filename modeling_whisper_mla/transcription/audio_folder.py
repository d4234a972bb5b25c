"""The metadata of a folder of audio: which file says what. Hugging Face's audio folder, and Common Voice's tables."""

import csv
import json
from pathlib import Path

METADATA_NAMES = ("metadata.csv", "metadata.jsonl")
# Where a transcript may be; the first that is there.
TEXT_COLUMNS = ("text", "transcription", "sentence")


def find_metadata(folder: Path) -> Path | None:
    """The first of `METADATA_NAMES` that is in the folder."""
    return next((folder / name for name in METADATA_NAMES if (folder / name).is_file()), None)


def read_rows(metadata: Path) -> list[dict]:
    """The rows of a table of audio files.

    Args:
        metadata: comma-separated (.csv), JSON lines (.jsonl), or tab-separated without quoting (.tsv). UTF-8, with or
            without a byte-order mark.

    Returns:
        list[dict]: column name to value, in the order of the file.

    Raises:
        ValueError: not UTF-8, or not such a table; names the file and the line.
    """
    try:
        with open(metadata, newline="", encoding="utf-8-sig") as file:
            if metadata.suffix == ".jsonl":
                lines = [(number, line) for number, line in enumerate(file, start=1) if line.strip()]
                return [_json_row(metadata, number, line) for number, line in lines]
            if metadata.suffix == ".tsv":
                return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
            return list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{metadata}: cannot be read ({error}). Expected UTF-8 text.") from error


def _json_row(metadata: Path, number: int, line: str) -> dict:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{metadata}: line {number} is not JSON ({error}).") from error
    if not isinstance(row, dict):
        raise ValueError(f"{metadata}: line {number} is not a JSON object.")
    return row
