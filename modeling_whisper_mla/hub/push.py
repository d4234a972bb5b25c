"""Push a checkpoint folder to the Hub: checked first, in one commit, with nothing left of an earlier push's weights."""

import functools
import json
import os
import re
import tempfile
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, save_torch_state_dict
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers.utils.hub import convert_file_size_to_int

from ..configuration.configuration_whisper_mla import WhisperMLAConfig
from ..conversion.errors import ConversionError
from ..conversion.source.checksums import verify_checksums
from ..conversion.source.loading import load_checkpoint, read_config_fields
from ..version import __version__
from .conversion_record import read_conversion_record, write_conversion_record
from .errors import explain_hub_error
from .retries import retried

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_ANY_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")
_PROCESSOR = ("tokenizer_config.json", ("processor_config.json", "preprocessor_config.json"))


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = "5GB",
    token: str | bool | None = None,
    commit_message: str | None = None,
) -> CommitInfo:
    """Upload a Whisper-MLA checkpoint, and whatever else its folder holds but hidden files, in one commit.

    The folder is checked before anything is sent, and never written to. Weight files that an earlier push left in the
    repository and that this one does not replace (another number of shards) are deleted in the same commit, so that no
    revision mixes two checkpoints. Interrupted at any moment, the repository holds the old state or the new one; a
    second call sends only what is missing. Requests that the Hub answers with 429 or 5xx are repeated up to five times,
    after the time that it asks for (up to five minutes) or 1, 2, 4, 8 and 8 seconds.

    Args:
        folder: as `save_pretrained` or `whisper-mla convert` wrote it.
        repo_id: "organisation/name"; made if there is no such repository.
        private: of a new repository; None: what the account's settings say. True refuses a public one that exists.
        revision: the branch to commit to, made from the main one if missing; None: the main one.
        create_pr: open a pull request to the main branch instead of committing to it.
        max_shard_size: weight files above it (bytes, or like "5GB") are split, in a temporary folder (which only a kill
            leaves behind). A shard with a larger tensor is larger. Quantised weights are not split.
        token: as everywhere in huggingface_hub; None: that of `hf auth login` or HF_TOKEN.
        commit_message: None: "Upload Whisper-MLA model".

    Returns:
        CommitInfo: `oid`, `commit_url`, `pr_url`. If nothing differs from the repository there is no new commit, and it
        names the last one.

    Raises:
        ConversionError: an argument or the folder is not as above, the temporary folder is full, or the Hub refuses or
            cannot be reached.
    """
    limit = shard_size(max_shard_size)
    _check_names(repo_id, revision, create_pr)
    folder = Path(folder)
    weights = check_folder(folder)
    files = visible_files(folder)
    files = {name: path for name, path in files.items() if not _ANY_WEIGHTS.fullmatch(name) or path in weights}
    with tempfile.TemporaryDirectory(prefix="whisper-mla-push-") as aside:
        if any(path.stat().st_size > limit for path in weights) and not _is_quantized(folder):
            shards = _reshard(folder, weights, limit, Path(aside))
            files = {name: path for name, path in files.items() if path not in weights} | shards
        return commit_files(
            files,
            repo_id,
            private=private,
            revision=revision,
            create_pr=create_pr,
            token=token,
            commit_message=commit_message,
        )


def commit_files(
    files: dict[str, Path],
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    commit_message: str | None = None,
) -> CommitInfo:
    """Upload files in one commit, which makes the repository and the branch if they are missing.

    Args:
        files: names in the repository to files on disk. If there are weights among them, it deletes all others.
        repo_id, private, revision, create_pr, token, commit_message: as of `push_folder`.

    Raises:
        ConversionError: the Hub refuses or cannot be reached, or a repository to be private exists and is public.
    """
    api = HfApi(token=token, library_name="whisper-mla", library_version=__version__)
    try:
        _prepare_repository(api, repo_id, private, revision)
        return _commit(api, repo_id, files, revision, create_pr, commit_message or "Upload Whisper-MLA model")
    except ConversionError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise ConversionError(explain_hub_error(error, repo_id, revision, writing=True)) from error


def visible_files(folder: str | os.PathLike) -> dict[str, Path]:
    """All files in a folder and its folders but hidden ones and `__pycache__`: relative names to paths."""
    paths = {path.relative_to(folder): path for path in sorted(Path(folder).rglob("*")) if path.is_file()}
    return {
        name.as_posix(): path
        for name, path in paths.items()
        if not any(part.startswith((".", "__pycache__")) for part in name.parts)
    }


def check_folder(folder: str | os.PathLike) -> list[Path]:
    """Raise unless `folder` is a complete Whisper-MLA checkpoint. Reads headers, and checksums where there are any.

    Args:
        folder: a folder; a Hub id is not taken.

    Returns:
        list[Path]: its weight files, with the index if they are sharded.

    Raises:
        ConversionError: no folder, no or another model's config.json, or weights that are missing, damaged, not those
            that config.json implies or not those that conversion.json has the checksums of.
    """
    import whisper_mla

    folder = Path(folder)
    if not folder.is_dir():
        raise ConversionError(f"{folder}: no such folder. Give the folder of a converted checkpoint.")
    fields = read_config_fields(folder)
    kind = fields.get("model_type")
    if kind != WhisperMLAConfig.model_type:
        raise ConversionError(f"{folder}: model type {kind!r} is not Whisper-MLA. Convert it first.")
    weights = _weight_files(folder)
    model_class = getattr(whisper_mla, (fields.get("architectures") or ["WhisperMLAForConditionalGeneration"])[0], None)
    if model_class is None:
        raise ConversionError(f"{folder}: config.json names an unknown architecture, {fields['architectures'][0]!r}.")
    if _is_quantized(folder):  # to be loaded they need their backend
        verify_checksums(folder)
    else:
        load_checkpoint(model_class, folder, device_map="meta")
    return weights


def has_processor(folder: str | os.PathLike) -> bool:
    """Whether the files of tokenizer and feature extractor are there, without which nothing can be transcribed."""
    tokenizer, extractors = _PROCESSOR
    return Path(folder, tokenizer).is_file() and any(Path(folder, name).is_file() for name in extractors)


def _check_names(repo_id: str, revision: str | None, create_pr: bool) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConversionError(f"{repo_id!r} is no repository name ({str(error).split(':')[0]}).") from error
    if repo_id.count("/") != 1:
        raise ConversionError(f"{repo_id!r} is no repository name. Give it as organisation/name.")
    if revision is not None and create_pr:
        raise ConversionError(f"revision={revision!r} with create_pr: a pull request is made to the main branch only.")
    if revision is not None and (not revision or re.search(r"[\s~^:?*\[\\]|\.\.|^[-/]|/$|\.lock$", revision)):
        raise ConversionError(f"revision={revision!r} is no branch name.")


def shard_size(size: int | str) -> int:
    """Bytes of a `max_shard_size` such as 500 or "5GB".

    Raises:
        ConversionError: it is no such size.
    """
    try:
        limit = convert_file_size_to_int(int(size) if str(size).isdigit() else size)
    except ValueError:
        limit = 0
    if limit <= 0:
        raise ConversionError(f"max_shard_size={size!r}: expected a positive whole number with a unit, such as 5GB.")
    return limit


def _is_quantized(folder: Path) -> bool:
    return bool(read_config_fields(folder).get("quantization_config"))


def _weight_files(folder: Path) -> list[Path]:
    single, index = folder / WEIGHTS, folder / INDEX
    if single.is_file():
        return [single]
    if not index.is_file():
        raise ConversionError(f"{folder}: no weights ({WEIGHTS}, or {INDEX} with its shards). Save the model again.")
    try:
        listed = {str(name): str(file) for name, file in json.loads(index.read_text())["weight_map"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConversionError(f"{index}: cannot be read as an index of shards. Save the model again.") from error
    shards = sorted({folder / file for file in listed.values()})
    found = {}
    for shard in shards:
        if not _ANY_WEIGHTS.fullmatch(shard.name) or shard.parent != folder or not shard.is_file():
            raise ConversionError(f"{folder}: shard {shard.name} of {INDEX} is missing. Save or copy the model again.")
        try:
            with safe_open(shard, "pt") as tensors:
                found.update(dict.fromkeys(tensors.keys(), shard.name))
        except SafetensorError as error:
            raise ConversionError(f"{shard}: damaged safetensors file ({error}). Save the model again.") from error
    if found != listed:
        name = min(set(found.items()) ^ set(listed.items()))[0]
        raise ConversionError(f"{folder}: tensor {name} is not in the shard that {INDEX} names. Save the model again.")
    return [index, *shards]


def _reshard(folder: Path, weights: list[Path], limit: int, aside: Path) -> dict[str, Path]:
    """Write the weights to `aside` in shards of up to `limit` bytes, with the record of their checksums."""
    try:
        tensors = {}
        for path in weights:
            if path.suffix == ".safetensors":
                tensors.update(load_file(path))
        save_torch_state_dict(tensors, aside, max_shard_size=limit)
        if record := read_conversion_record(folder):
            write_conversion_record(aside, record)
    except (OSError, SafetensorError) as error:
        raise ConversionError(
            f"{aside}: the shards cannot be written ({error}). Set TMPDIR to a folder with room for the weights, or "
            "max_shard_size above their size."
        ) from error
    return {path.name: path for path in aside.iterdir()}


def _prepare_repository(api: HfApi, repo_id: str, private: bool | None, revision: str | None) -> None:
    retried(lambda: api.create_repo(repo_id, private=private, exist_ok=True))
    if private and not retried(lambda: api.model_info(repo_id)).private:
        raise ConversionError(
            f"{repo_id}: exists and is public. Make it private in its settings, or push without asking for private."
        )
    if revision is not None and not revision.startswith("refs/"):
        retried(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))


def _commit(
    api: HfApi, repo_id: str, files: dict[str, Path], revision: str | None, create_pr: bool, message: str
) -> CommitInfo:
    has_weights = any(_ANY_WEIGHTS.fullmatch(name) for name in files)
    # A commit fails with 412 if the branch has moved from the state that it was made for: others have pushed, or the
    # answer to our own commit was lost. Made for the new state, the latter turns out to need no commit.
    for states_left in (2, 1, 0):
        head = retried(lambda: api.model_info(repo_id, revision=revision))
        there = [file.rfilename for file in head.siblings or []]
        stale = [name for name in there if has_weights and _ANY_WEIGHTS.fullmatch(name) and name not in files]
        additions = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
        deletions = [CommitOperationDelete(name, is_folder=False) for name in stale]
        # Uploads with progress bars, and repeats requests by itself; what follows does not.
        api.preupload_lfs_files(repo_id, additions, revision=revision, create_pr=create_pr, free_memory=False)
        commit = functools.partial(
            api.create_commit,
            repo_id,
            [*additions, *deletions],
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
            parent_commit=head.sha,
        )
        try:
            # Not to open a pull request twice, one is repeated only if it surely was not opened.
            return retried(commit, repeat_on=(429, 503) if create_pr else (429, 500, 502, 503, 504))
        except HTTPError as error:
            again = error.response.status_code == 412 if isinstance(error, HfHubHTTPError) else not create_pr
            if not again or not states_left:
                raise
    raise AssertionError("unreachable")
