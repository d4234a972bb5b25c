"""Push to a hub on loopback and load by name from it."""

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import save_file
from transformers import AutoModelForSpeechSeq2Seq

from tests.hub import client
from tests.hub.conftest import contents, served, tiny_whisper, write_checkpoint
from tests.hub_server import READER
from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.hub.conversion_record import write_conversion_record

NAME = "org/tiny-mla"
SHARDED = ["model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"]


@pytest.fixture(scope="module")
def other(tmp_path_factory, digits_folder, processor):
    """A checkpoint with other weights, and what it computes."""
    folder = write_checkpoint(tmp_path_factory.mktemp("other") / "tiny-mla", digits_folder, processor, seed=5)
    return folder, client.outputs(AutoModelForSpeechSeq2Seq.from_pretrained(folder))


@pytest.fixture(scope="module")
def speaking(tmp_path_factory, digits_folder, processor):
    """A converted whisper-digits, whose transcripts are words, in three shards."""
    folder = tmp_path_factory.mktemp("speaking") / "digits-mla"
    WhisperMLAForConditionalGeneration.from_whisper(digits_folder, kv_rank=128).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def weights_of(commit) -> list[str]:
    return sorted(name for name in commit.files if name.startswith("model") and ".safetensors" in name)


def test_push_is_one_commit_with_all_files(hub, clients, checkpoint):
    before = contents(checkpoint)
    pushed = clients.value(client.push, checkpoint, NAME)
    [commit] = hub.commits(NAME)
    assert served(commit) == before == contents(checkpoint)
    assert commit.files["model.safetensors"].in_lfs
    assert not commit.files["config.json"].in_lfs
    assert pushed == {"oid": commit.oid, "url": f"{hub.url}/{NAME}/commit/{commit.oid}", "pr_url": None}


def test_pushing_the_same_again_makes_no_commit(hub, clients, checkpoint):
    first = clients.value(client.push, checkpoint, NAME)
    hub.requests.clear()
    assert clients.value(client.push, checkpoint, NAME) == first
    assert len(hub.commits(NAME)) == 1
    assert not [request for request in hub.requests if request[0] == "PUT"]


def test_hidden_files_stay_and_folders_go(hub, clients, copied):
    for name in (".env", ".git/config", "__pycache__/x.pyc", "samples/one.txt"):
        (copied / name).parent.mkdir(exist_ok=True)
        (copied / name).write_text("content")
    clients.value(client.push, copied, NAME)
    names = set(served(hub.head(NAME)))
    assert "samples/one.txt" in names
    assert not [name for name in names if name.startswith((".", "__"))]


@pytest.mark.parametrize("how", ["auto", "load_checkpoint"])
def test_pull_computes_the_same(hub, clients, checkpoint, expected, how):
    clients.value(client.push, checkpoint, NAME)
    assert clients.value(client.pull, NAME, how) == expected
    assert clients.value(client.pull_processor, NAME) == "WhisperProcessor"


def test_convert_by_name_and_revision(hub, clients, tmp_path):
    stock = tiny_whisper(seed=7)
    stock.save_pretrained(tmp_path / "stock")
    commit = hub.put("org/stock", contents(tmp_path / "stock"))
    hub.put("org/stock", {"README.md": b"nothing here any more"})
    hub.repositories["org/stock"].branches["old"] = [commit]
    pulled = clients.value(client.pull, "org/stock", "from_whisper", revision="old")
    assert pulled["tokens"] == client.outputs(stock)["tokens"]
    by_commit = clients.value(client.pull, "org/stock", "from_whisper", revision=commit.oid)
    assert by_commit == pulled
    assert "pulled" not in clients.run(client.pull, "org/stock", "from_whisper").error


def test_revision(hub, clients, checkpoint, expected, other):
    folder, expected_of_other = other
    main = clients.value(client.push, checkpoint, NAME)
    clients.value(client.push, folder, NAME, revision="v2")
    assert hub.head(NAME).oid == main["oid"]
    assert len(hub.commits(NAME, "v2")) == 1
    assert clients.value(client.pull, NAME, revision="v2") == expected_of_other
    assert clients.value(client.pull, NAME) == expected
    clients.value(client.push, checkpoint, NAME, revision="v2")
    assert len(hub.commits(NAME, "v2")) == 2
    assert clients.value(client.pull, NAME, revision="v2") == expected


def test_pull_request_from_one_who_may_only_read(hub, clients, checkpoint, expected, other):
    main = clients.value(client.push, checkpoint, NAME)
    pushed = clients.value(client.push, other[0], NAME, create_pr=True, token=READER)
    assert pushed["pr_url"] == f"{hub.url}/{NAME}/discussions/1"
    assert hub.head(NAME).oid == main["oid"]
    assert len(hub.commits(NAME, "refs/pr/1")) == 1
    assert clients.value(client.pull, NAME, revision="refs/pr/1") == other[1]
    assert clients.value(client.pull, NAME) == expected


def test_private(hub, clients, checkpoint):
    clients.value(client.push, checkpoint, NAME, private=True)
    assert hub.repositories[NAME].private
    clients.value(client.push, checkpoint, "org/open")
    assert not hub.repositories["org/open"].private
    error = clients.run(client.push, checkpoint, "org/open", private=True, commit_message="secret").error
    assert "org/open: exists and is public" in error
    assert len(hub.commits("org/open")) == 1


# Shards


def test_push_in_shards_and_back_in_one_file(hub, clients, copied, expected, tmp_path, monkeypatch):
    write_conversion_record(copied, {"note": "kept"})
    before = contents(copied)
    clients.value(client.push, copied, NAME)
    assert weights_of(hub.head(NAME)) == ["model.safetensors"]

    clients.value(client.push, copied, NAME, max_shard_size="60KB")
    commit = hub.head(NAME)
    assert weights_of(commit) == [*SHARDED, "model.safetensors.index.json"]
    assert sum(len(commit.files[name].content) > 65_000 for name in SHARDED) == 1  # one tensor of 119 kB
    assert contents(copied) == before
    record = json.loads(commit.files["conversion.json"].content)
    assert record == {"note": "kept", "weights": {name: commit.files[name].sha256 for name in SHARDED}}
    assert clients.value(client.pull, NAME) == expected

    clients.value(client.push, copied, NAME)
    assert served(hub.head(NAME)) == before
    assert len(hub.commits(NAME)) == 3


def test_shards_are_pushed_as_they_are(hub, clients, tmp_path, digits_folder, processor, expected):
    folder = write_checkpoint(tmp_path / "sharded", digits_folder, processor, max_shard_size="60KB")
    (folder / "conversion.json").unlink(missing_ok=True)
    save_file({}, folder / "model-00001-of-00009.safetensors")  # of an earlier layout, which nothing reads
    clients.value(client.push, folder, NAME)
    assert weights_of(hub.head(NAME)) == [*SHARDED, "model.safetensors.index.json"]
    assert clients.value(client.pull, NAME) == expected


def test_no_temporary_files_are_left(hub, clients, checkpoint, tmp_path):
    (tmp_path / "temporary").mkdir()
    clients.value(push_with_temporary_folder, checkpoint, tmp_path / "temporary")
    assert weights_of(hub.head(NAME)) == [*SHARDED, "model.safetensors.index.json"]
    assert list((tmp_path / "temporary").iterdir()) == []


def push_with_temporary_folder(checkpoint, folder):
    import tempfile

    tempfile.tempdir = str(folder)
    return client.push(checkpoint, NAME, max_shard_size=60_000)


# The command line


def test_command_push_and_transcribe_by_name(hub, clients, speaking, clips):
    arguments = ["--private", "--revision", "v2", "--max-shard-size", "8MB", "--commit-message", "a message"]
    result = clients.value(client.command, "push", speaking, NAME, *arguments)
    [commit] = hub.commits(NAME, "v2")
    assert result == {"code": 0, "stdout": f"{NAME}: {hub.url}/{NAME}/commit/{commit.oid}\n", "stderr": ""}
    assert commit.message == "a message"
    assert hub.repositories[NAME].private
    assert weights_of(commit) == [*SHARDED, "model.safetensors.index.json"]
    transcribed = clients.value(client.command, "transcribe", NAME, clips["clip00"]["path"], "--revision", "v2")
    assert transcribed["stdout"].strip() == clips["clip00"]["text"]
    result = clients.value(client.command, "push", speaking, NAME, "--create-pr")
    assert result["stdout"] == f"{NAME}: {hub.url}/{NAME}/discussions/1\n"


def test_command_says_that_there_is_no_processor(hub, clients, copied):
    (copied / "tokenizer_config.json").unlink()
    result = clients.value(client.command, "push", copied, NAME)
    assert result["code"] == 0 and "no processor; transcribing needs one" in result["stderr"]


def test_offline_from_the_cache(hub, clients, checkpoint, expected):
    clients.value(client.push, checkpoint, NAME)
    assert clients.value(client.pull, NAME) == expected
    hub.requests.clear()
    assert clients.value(client.pull, NAME, offline=True) == expected
    assert clients.value(client.pull, NAME, "load_checkpoint", offline=True, revision="main") == expected
    assert hub.requests == []


@pytest.mark.processes
def test_command_offline_in_a_process_of_its_own(hub, clients, speaking, clips, tmp_path):
    clients.value(client.push, speaking, NAME)
    transcribe = ["transcribe", NAME, str(clips["clip00"]["path"])]
    assert clients.value(client.command, *transcribe)["stdout"].strip() == clips["clip00"]["text"]
    hub.requests.clear()
    done = subprocess.run(
        [sys.executable, "-c", "from whisper_mla.command_line.app import main; main()", *transcribe],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(clients.cache), "HF_ENDPOINT": hub.url},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.strip()) == (0, clips["clip00"]["text"]), done.stderr
    assert NAME in clients.error_line(*transcribe, offline=True, cache=tmp_path / "empty")
    assert hub.requests == []


# Transformers' own methods


def test_push_to_hub_of_model_and_processor(hub, clients, checkpoint, expected):
    clients.value(client.push_parts, checkpoint, NAME)
    commits = hub.commits(NAME)
    assert len(commits) == 2
    assert weights_of(commits[0]) == ["model.safetensors"]
    assert not [name for name in commits[0].files if name.startswith("tokenizer")]
    assert {"tokenizer_config.json", "processor_config.json", "config.json"} <= set(commits[1].files)
    assert clients.value(client.pull, NAME) == expected
    assert clients.value(client.pull_processor, NAME) == "WhisperProcessor"


def test_push_to_hub_leaves_no_old_weights(hub, clients, checkpoint, other):
    clients.value(client.push_parts, checkpoint, NAME)
    clients.value(client.push_parts, other[0], NAME, max_shard_size="60KB")
    assert weights_of(hub.head(NAME)) == [*SHARDED, "model.safetensors.index.json"]
    assert clients.value(client.pull, NAME) == other[1]
