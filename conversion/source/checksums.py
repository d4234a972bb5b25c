"""Check the weights of a converted folder against the checksums that were written with them."""

import json
import os
from pathlib import Path

from whisper_mla.conversion.errors import ConversionError
from whisper_mla.hub.conversion_record import RECORD_NAME, sha256_of_weights


def verify_checksums(folder: str | os.PathLike) -> None:
    """Raise unless the weight files in `folder` are those that its `conversion.json` lists.

    No format of weights notices a flipped bit; the SHA-256 does. A folder without a record, or with one that lists no
    checksums (a stock checkpoint, a model that was not converted), has nothing to verify.

    Args:
        folder: of a checkpoint on disk.

    Raises:
        ConversionError: a file is damaged, missing, or not listed although it would be loaded; or the record itself
            cannot be read.
    """
    path = Path(folder, RECORD_NAME)
    if not path.exists():
        return
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        listed = dict(record.get("weights") or {})
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ConversionError(
            f"{folder}: {RECORD_NAME} cannot be read ({error}). Download or copy the checkpoint again, or remove the "
            "file to load without checking the weights."
        ) from error
    if not listed:
        return
    try:
        found = sha256_of_weights(folder)
    except OSError as error:
        raise ConversionError(f"{folder}: the weights cannot be read ({error}).") from error
    for name, checksum in listed.items():
        if name not in found:
            raise ConversionError(f"{folder}: {name} is missing, which {RECORD_NAME} lists. {_REMEDY}")
        if found[name] != checksum:
            raise ConversionError(f"{folder}: {name} is damaged: its SHA-256 is not that in {RECORD_NAME}. {_REMEDY}")
    for name in found.keys() - listed.keys():
        if name.startswith("model"):  # what from_pretrained may prefer to the listed files
            raise ConversionError(f"{folder}: {name} is not one of the weight files that {RECORD_NAME} lists.")


_REMEDY = "Download or copy the checkpoint again."
