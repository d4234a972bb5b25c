"""Write a checkpoint folder whole or not at all."""

import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..conversion.errors import ConversionError
from .whole_file import current_umask

# What a checkpoint folder may hold; a folder with anything else is not ours to replace.
_CHECKPOINT_SUFFIXES = {".json", ".safetensors", ".bin", ".py", ".md", ".html", ".png", ".jinja"}
_CHECKPOINT_NAMES = {"merges.txt", "vocab.txt", ".gitattributes"}


def check_target(target: str | os.PathLike, overwrite: bool = False, source: str | os.PathLike | None = None) -> None:
    """Raise before any work starts if `target` cannot become a checkpoint folder.

    Args:
        target: the folder to write.
        overwrite: accept a folder that already holds a checkpoint. A folder that holds anything else is never replaced.
        source: what is read; a folder is not written over itself.

    Raises:
        ConversionError: `target` is a file or the source, or is not empty and must not be replaced, or nothing can be
            written there.
    """
    if source is not None and Path(source).is_dir() and Path(source).resolve() == Path(target).resolve():
        raise ConversionError(f"{target}: is the source itself, which is never written over. Choose another target.")
    target = Path(target)
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ConversionError(f"{target}: exists and is not a folder. Choose another target.")
    check_writable(target)
    if not target.exists() or not any(target.iterdir()):
        return
    others = sorted(
        entry.name
        for entry in target.iterdir()
        if entry.is_dir() or (entry.suffix not in _CHECKPOINT_SUFFIXES and entry.name not in _CHECKPOINT_NAMES)
    )
    if others or not _holds_a_model(target):
        what = f"{others[0]}, which is no part of a checkpoint" if others else "no checkpoint"
        raise ConversionError(f"{target}: is not empty and holds {what}. Choose another target.")
    if not overwrite:
        raise ConversionError(
            f"{target}: exists and is not empty. Choose another target, or replace it with --overwrite."
        )


def check_writable(target: str | os.PathLike) -> None:
    """Raise if nothing can be written beside `target`, or beside the first of its missing parents.

    Raises:
        ConversionError: says why.
    """
    beside = next(folder for folder in Path(os.path.abspath(target)).parents if folder.exists())
    try:
        tempfile.TemporaryFile(dir=beside).close()
    except OSError as error:
        raise ConversionError(f"{target}: cannot be written ({error}). Choose another target.") from error


@contextmanager
def written_aside(target: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """A new folder beside `target` that becomes `target` when the block ends without an error.

    Whatever happens, nothing half-written appears under the target's name. An error removes what was written; a kill
    leaves a hidden folder beside the target, which the next run for the same target removes.

    Args:
        target: the folder to write.
        overwrite: as for `check_target`.

    Yields:
        Path: the folder to write into, on the same file system as `target`.

    Raises:
        ConversionError: see `check_target`; or the disk is full or not writable.
    """
    check_target(target, overwrite)
    target = Path(os.path.abspath(target))
    aside: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-{os.getpid()}-", dir=target.parent))
        yield aside
        aside.chmod(0o777 & ~current_umask())
        for file in aside.iterdir():  # safetensors makes its files private
            file.chmod(0o666 & ~current_umask())
        _replace(aside, target)
    except (OSError, SafetensorError) as error:
        raise ConversionError(f"{target}: cannot be written ({error}). Nothing half-written was left there.") from error
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def _replace(new: Path, target: Path) -> None:
    if not target.exists():
        new.rename(target)
        return
    old = target.with_name(f".{target.name}.replaced-{os.getpid()}-")
    target.rename(old)
    try:
        new.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove_leftovers(target: Path) -> None:
    """Remove what runs for the same target left behind that no longer live."""
    for kind in ("partial", "replaced"):
        for leftover in target.parent.glob(f".{glob.escape(target.name)}.{kind}-*-*"):
            process = leftover.name.removeprefix(f".{target.name}.{kind}-").split("-")[0]
            # Killed between two renames, a run leaves the old checkpoint under the second name only: keep it.
            is_only_copy = kind == "replaced" and not target.exists()
            if process.isdigit() and not _is_alive(int(process)) and not is_only_copy:
                shutil.rmtree(leftover, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _holds_a_model(folder: Path) -> bool:
    try:
        return "model_type" in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, TypeError):
        return False
