"""The conversion record `conversion.json`: where a converted checkpoint comes from, and checksums of its weights."""

import hashlib
import json
import os
from pathlib import Path

from transformers.utils import cached_file, logging
from transformers.utils.logging import tqdm

RECORD_NAME = "conversion.json"
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "subfolder", "proxies")
_CHUNK = 1 << 24

logger = logging.get_logger(__name__)


def read_conversion_record(
    source: str | os.PathLike, revision: str | None = None, name: str = RECORD_NAME, **kwargs
) -> dict | None:
    """The conversion record of a checkpoint.

    Args:
        source: a folder or a Hub id.
        name: of the file; "report.json" for the report of the conversion.
        revision: branch, tag or commit on the Hub.
        kwargs: those of `from_pretrained`; only the ones that concern the Hub are used.

    Returns:
        dict, or None where there is none, or none that can be read (which a warning says).
    """
    hub = {key: value for key, value in kwargs.items() if key in _HUB_ARGUMENTS and value is not None}
    path = cached_file(
        source,
        name,
        revision=revision,
        **hub,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return None
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        logger.warning(f"{source}: {name} cannot be read ({error}); going on without it.")
        return None
    return record


def write_conversion_record(folder: str | os.PathLike, record: dict) -> None:
    """Write `conversion.json` beside the weights in `folder`, with their checksums under `weights`."""
    content = {**record, "weights": sha256_of_weights(folder)}
    Path(folder, RECORD_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def sha256_of_weights(folder: str | os.PathLike) -> dict[str, str]:
    """Checksums of the weight files in `folder`: file name to hexadecimal SHA-256, sorted by name."""
    files = sorted(path for path in Path(folder).iterdir() if path.suffix in (".safetensors", ".bin"))
    total = sum(path.stat().st_size for path in files)
    checksums = {}
    with tqdm(total=total, desc="Checksums", unit="B", unit_scale=True, disable=total < 1 << 28) as bar:
        for path in files:
            digest = hashlib.sha256()
            with open(path, "rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
                    bar.update(len(chunk))
            checksums[path.name] = digest.hexdigest()
    return checksums
