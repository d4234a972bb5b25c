"""A hub on loopback, and client processes that talk to it.

huggingface_hub reads HF_ENDPOINT, HF_HUB_OFFLINE and the like once, when it is imported, and the test process imports
it offline. Clients are therefore processes of their own, forked by a fork server that was started with their
environment and has imported everything: a fresh client costs a fraction of a second instead of four.
"""

import multiprocessing
import os
import shutil
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path

import pytest
from transformers import AutoModelForSpeechSeq2Seq, GenerationConfig, WhisperForConditionalGeneration

from tests.conftest import random_whisper
from tests.hub import client
from tests.hub_server import WRITER, HubServer
from whisper_mla import WhisperMLAForConditionalGeneration


@dataclass
class Outcome:
    """What a client's function returned or raised, and the seconds that it would have waited in all its sleeps."""

    value: object
    error: str | None
    slept: list[float]


class Client:
    """A running client process."""

    def __init__(self, context, function, arguments, keywords, cache, offline, token):
        self.connection, other = context.Pipe(duplex=False)
        given = (other, function, arguments, keywords, cache, offline, token)
        self.process = context.Process(target=client.serve, args=given)
        self.process.start()
        other.close()

    def outcome(self) -> Outcome:
        """Wait for the end.

        Raises:
            EOFError: the client was killed.
        """
        try:
            return Outcome(**self.connection.recv())
        finally:
            self.process.join()


class Clients:
    """Starts clients with a cache of their own."""

    def __init__(self, context, cache: Path):
        self.context, self.cache = context, cache

    def start(self, function, *arguments, cache=None, offline=False, token=WRITER, **keywords) -> Client:
        return Client(self.context, function, arguments, keywords, cache or self.cache, offline, token)

    def run(self, function, *arguments, **keywords) -> Outcome:
        return self.start(function, *arguments, **keywords).outcome()

    def value(self, function, *arguments, **keywords):
        outcome = self.run(function, *arguments, **keywords)
        assert outcome.error is None, outcome.error
        return outcome.value

    def error_line(self, *arguments, **keywords) -> str:
        """The one line on standard error of a command that fails."""
        result = self.value(client.command, *arguments, **keywords)
        assert result["code"] == 1, result
        assert "Traceback" not in result["stdout"] + result["stderr"]
        lines = result["stderr"].splitlines()
        assert [line for line in lines if line.startswith("Error:")] == lines[-1:], result
        return lines[-1]


@pytest.fixture(scope="session")
def hub_process(tmp_path_factory):
    """The hub and the fork server of its clients."""
    with HubServer() as hub, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
            patch.delenv(name)
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("temporary")))  # where killed clients leave their shards
        patch.setenv("HF_HUB_DISABLE_XET", "1")
        patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        patch.setenv("TRANSFORMERS_VERBOSITY", "error")
        patch.setenv("OMP_NUM_THREADS", "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["whisper_mla.command_line.app", "whisper_mla.hub.push", "typer.testing"])
        forkserver.ensure_running()
        patch.undo()
        yield hub, context
        # A later user of fork servers in this process must not inherit this environment.
        forkserver._forkserver._stop()


@pytest.fixture
def hub(hub_process):
    """The hub, emptied."""
    hub, _ = hub_process
    hub.repositories.clear(), hub.lfs.clear(), hub.faults.clear(), hub.requests.clear(), hub.ranges.clear()
    hub.on_event = None
    yield hub
    assert hub.unknown == []
    assert [fault for fault in hub.faults if fault.times] == [], "a fault that never happened"


@pytest.fixture
def clients(hub_process, tmp_path):
    return Clients(hub_process[1], tmp_path / "cache")


def tiny_whisper(seed: int = 0) -> WhisperForConditionalGeneration:
    """A random Whisper that fits the processor of whisper-digits."""
    return random_whisper(
        seed,
        vocab_size=1864,
        num_mel_bins=80,
        max_source_positions=500,
        d_model=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        pad_token_id=256,
        bos_token_id=256,
        eos_token_id=256,
        decoder_start_token_id=257,
    )


def write_checkpoint(folder: Path, digits_folder: Path, processor, seed: int = 0, **saving) -> Path:
    model = WhisperMLAForConditionalGeneration.from_whisper(tiny_whisper(seed), kv_rank=8)
    model.generation_config = GenerationConfig.from_pretrained(digits_folder, max_length=24)
    model.save_pretrained(folder, **saving)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, digits_folder, processor) -> Path:
    """A folder with a tiny converted model of random weights, in one weight file, and a processor."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny-mla", digits_folder, processor)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def served(commit) -> dict[str, bytes]:
    """Every file of a commit but the one that a new repository begins with."""
    return {path: file.content for path, file in commit.files.items() if path != ".gitattributes"}


@pytest.fixture(scope="module")
def expected(checkpoint):
    return client.outputs(AutoModelForSpeechSeq2Seq.from_pretrained(checkpoint))


@pytest.fixture
def copied(checkpoint, tmp_path):
    """A copy of the checkpoint that a test may spoil, without the record that would notice first."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy", ignore=shutil.ignore_patterns("conversion.json")))
