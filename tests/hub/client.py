"""What the client processes of these tests do. Every function returns something that can be sent through a pipe."""

import errno
import os
import time
from typing import Any

import torch
from huggingface_hub import HfApi, constants, file_download
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor
from typer.testing import CliRunner

from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.command_line.app import app
from whisper_mla.conversion.source.loading import load_checkpoint
from whisper_mla.hub.pull import pull_folder
from whisper_mla.hub.push import push_folder

SLEPT: list[float] = []


def serve(connection, function, arguments, keywords, cache, offline, token) -> None:
    """Entry point of a client process: run one function and send what came out of it."""
    constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE = str(cache), offline
    constants.DOWNLOAD_CHUNK_SIZE = 1 << 14  # what arrived before a cut counts from here on, as of 10 MB otherwise
    os.environ["HF_TOKEN"] = token
    time.sleep = SLEPT.append  # waiting between two tries is recorded, not done
    torch.set_num_threads(1)
    outcome: dict[str, Any] = {"value": None, "error": None}
    try:
        outcome["value"] = function(*arguments, **keywords)
    except Exception as error:
        outcome["error"] = f"{type(error).__name__}: {error}"
    connection.send({**outcome, "slept": SLEPT})
    connection.close()


def push(folder, repository, **keywords) -> dict:
    pushed = push_folder(folder, repository, **keywords)
    return {"oid": pushed.oid, "url": pushed.commit_url, "pr_url": pushed.pr_url}


def push_parts(folder, repository, **keywords) -> None:
    """Push as Transformers does it: model and processor, each by its own method."""
    WhisperMLAForConditionalGeneration.from_pretrained(folder).push_to_hub(repository, **keywords)
    AutoProcessor.from_pretrained(folder).push_to_hub(repository)


def pull(name, how="auto", **keywords) -> dict:
    """Load by name, and what the model computes."""
    if how == "from_whisper":
        model = WhisperMLAForConditionalGeneration.from_whisper(name, **keywords)
    elif how == "load_checkpoint":
        model = load_checkpoint(WhisperMLAForConditionalGeneration, name, **keywords)
    else:
        model = AutoModelForSpeechSeq2Seq.from_pretrained(name, **keywords)
    return outputs(model)


def pull_whole(name, **keywords) -> dict:
    """Load by name through `pull_folder`: what the model computes, and the folder's files."""
    folder = pull_folder(name, **keywords)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {**outputs(AutoModelForSpeechSeq2Seq.from_pretrained(folder)), "files": files}


def pull_on_a_full_disk(pull, name, room: int) -> None:
    """Pull where no file can grow beyond `room` bytes."""

    class FullDisk:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            if self.file.tell() + len(data) > room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(data)

        def __getattr__(self, attribute):
            return getattr(self.file, attribute)

    download = file_download.http_get
    file_download.http_get = lambda url, file, **keywords: download(url, FullDisk(file), **keywords)
    pull(name)


def damaged_files(name, cache) -> list[str]:
    """The files of a pulled repository whose checksums differ from the hub's."""
    return [mismatch["path"] for mismatch in HfApi().verify_repo_checksums(name, cache_dir=cache).mismatches]


def outputs(model) -> dict:
    """Logits of a fixed input as bytes, and greedy tokens."""
    shape = (1, model.config.num_mel_bins, 2 * model.config.max_source_positions)
    features = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits = model.eval()(features, decoder_input_ids=torch.arange(5)[None]).logits
        tokens = model.generate(features, max_new_tokens=8)
    return {"class": type(model).__name__, "logits": logits.numpy().tobytes(), "tokens": tokens.tolist()}


def pull_processor(name, **keywords) -> str:
    return type(AutoProcessor.from_pretrained(name, **keywords)).__name__


def command(*arguments) -> dict:
    """Run the command line."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return {"code": result.exit_code, "stdout": result.stdout, "stderr": result.stderr}
