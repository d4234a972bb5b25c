"""Pull a checkpoint from the Hub whole: every file of one commit, with checksums, or one clear error.

`from_pretrained` asks for file after file and goes on without those that it takes for optional: a failing request for
the tokenizer or the generation config does not raise but changes the transcripts. And it looks at no checksum.
"""

import functools
import hashlib
import os
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError
from transformers.utils import logging

from ..conversion.errors import ConversionError
from .errors import explain_hub_error
from .retries import retried

CONFIG_FILES = ("config.json",)
# Of a repository's weights those that `from_pretrained` reads, not their variants (model.fp32-00001-of-00002.…).
CHECKPOINT_FILES = ("*.json", "*.txt", "*.jinja", "*.py", "*.safetensors", "README.md")
_PICKLED_WEIGHTS = ("pytorch_model*.bin",)
_IGNORED = ("*/*", "model.?*.safetensors")

logger = logging.get_logger(__name__)


def pull_folder(
    repo_id: str,
    *,
    revision: str | None = None,
    files: tuple[str, ...] = CHECKPOINT_FILES,
    cache_dir: str | os.PathLike | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """The folder in the cache that holds a checkpoint, downloaded as far as it is not there yet.

    Files that this call downloads are read once to compare their checksum with the one that the Hub names (SHA-256, or
    Git's SHA-1 of small files); one that differs is downloaded again once. Files that were in the cache before are
    trusted. Offline, or while the Hub is down, what is in the cache is returned as it is. Where the cache cannot hold
    symbolic links (Windows without developer mode), no checksum is known.

    Args:
        repo_id: "organisation/name".
        revision: branch, tag or commit; None: the main branch.
        files: patterns of file names. Pickled weights are added if `*.safetensors` is wanted and there are none.
        cache_dir, token, local_files_only, force_download: as everywhere in huggingface_hub.

    Returns:
        Path: `<cache>/models--organisation--name/snapshots/<commit>`.

    Raises:
        ConversionError: the repository or revision cannot be had, or the disk is full. No broken file stays behind.
    """

    def download(patterns: tuple[str, ...], force: bool) -> Path:
        once = functools.partial(
            snapshot_download,
            repo_id,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            force_download=force,
            allow_patterns=list(patterns),
            ignore_patterns=list(_IGNORED),
        )
        return Path(retried(once, retries=2))

    try:
        before = _blobs(download(CONFIG_FILES, False))
        folder = download(files, force_download)
        if "*.safetensors" in files and not any(folder.glob("*.safetensors")):
            folder = download((*files, *_PICKLED_WEIGHTS), False)
        damaged = _remove_damaged(folder, before)
        if damaged:
            logger.warning(f"{repo_id}: {', '.join(damaged)} arrived damaged; downloading again.")
            folder = download((*files, *damaged), False)
            damaged = _remove_damaged(folder, before)
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise ConversionError(explain_hub_error(error, repo_id, revision)) from error
    if damaged:
        raise ConversionError(
            f"{repo_id}: {', '.join(damaged)} arrived damaged twice (wrong checksum) and was removed. Try again later."
        )
    return folder


def _blobs(folder: Path) -> set[str]:
    """Names of the files that the cache holds of a repository, given one of its snapshots."""
    blobs = folder.parents[1] / "blobs"
    return set(os.listdir(blobs)) if blobs.is_dir() else set()


def _remove_damaged(folder: Path, trusted: set[str]) -> list[str]:
    """Remove files whose content is not what the cache names them after, and return their names."""
    damaged = []
    for link in sorted(path for path in folder.iterdir() if path.is_symlink()):
        blob = link.resolve()
        if blob.name not in trusted and blob.name != _checksum(blob):
            link.unlink()
            blob.unlink()
            damaged.append(link.name)
    return damaged


def _checksum(blob: Path) -> str:
    """What the cache names a file after: the object id of Git LFS or, if its name is shorter, of Git."""
    in_lfs = len(blob.name) == 64
    digest = hashlib.sha256() if in_lfs else hashlib.sha1(b"blob %d\0" % blob.stat().st_size)
    with open(blob, "rb") as file:
        while chunk := file.read(1 << 24):
            digest.update(chunk)
    return digest.hexdigest()
