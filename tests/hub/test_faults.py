"""What pushing and pulling do when the hub refuses, stutters, breaks off or lies, and when the disk is full."""

import errno
import shutil
import threading

import pytest

from tests.hub import client
from tests.hub.conftest import contents, served
from tests.hub_server import READER, File
from whisper_mla.hub import push as hub_folder

NAME = "org/tiny-mla"
WEIGHTS = r"^/lfs/"  # where the hub's redirect for model.safetensors leads


@pytest.fixture
def pushed(hub, checkpoint):
    """The repository to pull from."""
    return hub.put(NAME, contents(checkpoint))


def cached(clients) -> list:
    """Files in the clients' cache that are weights or parts of a download."""
    blobs = [path for path in clients.cache.rglob("*") if path.is_file() and ".locks" not in path.parts]
    return [path for path in blobs if path.suffix in (".safetensors", ".incomplete") or len(path.name) == 64]


# Refusals


@pytest.mark.parametrize(
    ("token", "arguments", "message"),
    [
        ("", [], "org/tiny-mla: not logged in. Log in with `hf auth login`, or set HF_TOKEN to a token that may write"),
        ("hf_wrong", [], "org/tiny-mla: the Hub does not accept the token"),
        (READER, [], "org/tiny-mla: the token may not write here (403"),
        (READER, ["--create-pr"], "org/tiny-mla: the token may not write here (403"),
    ],
)
def test_push_refused(hub, clients, checkpoint, token, arguments, message):
    assert message in clients.error_line("push", checkpoint, NAME, *arguments, token=token)
    assert hub.repositories == {}


def test_push_to_a_repository_that_vanishes(hub, clients, checkpoint):
    hub.on_event = lambda event: hub.repositories.clear() if event.startswith("arrived POST /api/models") else None
    assert "org/tiny-mla: no such repository on the Hub" in clients.error_line("push", checkpoint, NAME)


def test_push_to_a_revision_that_is_no_branch(hub, clients, checkpoint):
    line = clients.error_line("push", checkpoint, NAME, "--revision", "refs/pr/9")
    assert "org/tiny-mla: has no branch, tag or commit 'refs/pr/9'" in line
    assert hub.commits(NAME) == []


def test_push_without_a_network(hub, clients, checkpoint):
    hub.on_event = lambda event: True
    assert f"the Hub cannot be reached at {hub.url}" in clients.error_line("push", checkpoint, NAME)
    assert "offline mode is on. Unset HF_HUB_OFFLINE" in clients.error_line("push", checkpoint, NAME, offline=True)


@pytest.mark.parametrize(
    ("token", "revision", "message"),
    [
        ("", None, "no such repository on the Hub, or a private one"),
        ("hf_wrong", None, "the Hub does not accept the token"),
        (READER, "v9", "has no branch, tag or commit 'v9'"),
    ],
)
def test_pull_refused(hub, clients, pushed, token, revision, message):
    hub.repositories[NAME].private = True
    assert message in clients.run(client.pull_whole, NAME, revision=revision, token=token).error
    arguments = [] if revision is None else ["--revision", revision]
    for command in (["inspect", NAME], ["convert", NAME, clients.cache / "target"], ["transcribe", NAME, "x.wav"]):
        assert NAME in clients.error_line(*command, *arguments, token=token)
    assert clients.run(client.pull_whole, NAME, token=READER).error is None


def test_pull_of_what_is_not_there(hub, clients):
    assert "no such repository on the Hub" in clients.run(client.pull_whole, NAME).error
    hub.put(NAME, {"README.md": b"empty"})
    assert NAME in clients.error_line("transcribe", NAME, "x.wav")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json", WEIGHTS])
@pytest.mark.parametrize(
    ("status", "message"), [(403, "the token may not read here (403"), (404, "no such"), (500, "(500)")]
)
def test_no_file_is_taken_for_optional(hub, clients, pushed, name, status, message):
    for method in ("HEAD", "GET"):
        hub.fault(method, name, times=-1, status=status)
    outcome = clients.run(client.pull_whole, NAME)
    assert outcome.error.startswith("ConversionError: org/tiny-mla: ")
    assert message in outcome.error
    hub.faults.clear()


def test_pull_without_a_network(hub, clients, pushed):
    hub.on_event = lambda event: True
    assert f"org/tiny-mla: the Hub cannot be reached at {hub.url}" in clients.run(client.pull_whole, NAME).error
    assert "not in the cache, and offline mode is on" in clients.run(client.pull_whole, NAME, offline=True).error


# Patience

STAGES_OF_A_PUSH = [
    ("POST", "/api/repos/create"),
    ("POST", "/branch/v2"),
    ("GET", f"/api/models/{NAME}"),
    ("POST", "/preupload/"),
    ("POST", "/objects/batch"),
    ("PUT", WEIGHTS),
    ("POST", "/api/validate-yaml"),
    ("POST", "/commit/"),
]


@pytest.fixture
def with_card(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "with-card")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return folder


@pytest.mark.parametrize(("method", "path"), STAGES_OF_A_PUSH)
def test_push_waits_and_tries_again(hub, clients, with_card, method, path):
    hub.fault(method, path, status=429, headers={"Retry-After": "41"})
    hub.fault(method, path, status=503)
    outcome = clients.run(client.push, with_card, NAME, revision="v2")
    assert outcome.error is None
    assert [seconds for seconds in outcome.slept if seconds >= 41] in ([41.0], [42.0])  # huggingface_hub adds a second
    [commit] = hub.commits(NAME, "v2")
    assert served(commit) == contents(with_card)


@pytest.mark.parametrize(("method", "path"), STAGES_OF_A_PUSH)
def test_push_gives_up_in_the_end(hub, clients, with_card, method, path):
    fault = hub.fault(method, path, times=100, status=502)
    assert "the Hub has a failure of its own (502)" in clients.error_line("push", with_card, NAME, "--revision", "v2")
    assert fault.times == 100 - 6
    hub.faults.clear()
    assert NAME not in hub.repositories or not hub.repositories[NAME].branches.get("v2", [])[1:]
    clients.value(client.push, with_card, NAME, revision="v2")


def test_push_does_not_wait_for_an_hour(hub, clients, checkpoint):
    hub.fault("POST", "/api/repos/create", status=429, headers={"Retry-After": "3600"})
    outcome = clients.run(client.push, checkpoint, NAME)
    assert "too many requests (429)" in outcome.error and outcome.slept == []


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/api/models/"), ("HEAD", "config.json"), ("GET", "config.json"), ("GET", WEIGHTS)]
)
@pytest.mark.parametrize("status", [429, 503])
def test_pull_waits_and_tries_again(hub, clients, pushed, expected, method, path, status):
    hub.fault(method, path, times=2, status=status, headers={"Retry-After": "41"})
    outcome = clients.run(client.pull_whole, NAME)
    assert outcome.error is None
    assert outcome.value["files"] == served(pushed)
    assert outcome.value["logits"] == expected["logits"]
    # Not every failure costs a wait: the first question for a file may be put twice in a row.
    assert {seconds for seconds in outcome.slept if seconds > 8} in ({41.0}, {42.0}, {41.0, 42.0})


# Connections that break


def test_an_answer_to_the_commit_that_is_lost(hub, clients, checkpoint):
    lost = []

    def lose(event):
        if event.startswith("handled POST") and "/commit/" in event and not lost:
            lost.append(event)
            return True

    hub.on_event = lose
    pushed = clients.value(client.push, checkpoint, NAME)
    [commit] = hub.commits(NAME)
    assert lost and pushed["oid"] == commit.oid
    assert served(commit) == contents(checkpoint)


def test_a_commit_of_others_in_between(hub, clients, checkpoint):
    others = []

    def commit(event):
        if event.startswith("arrived POST") and "/commit/" in event and not others:
            files = {**hub.head(NAME).files, "model-00001-of-00002.safetensors": File(b"old", False)}
            others.append(hub.repositories[NAME].commit("main", "others", files))

    hub.on_event = commit
    clients.value(client.push, checkpoint, NAME)
    assert [commit.message for commit in hub.commits(NAME)] == ["others", "Upload Whisper-MLA model"]
    assert served(hub.head(NAME)) == contents(checkpoint)


def test_an_upload_that_is_cut(hub, clients, checkpoint):
    cut = []

    def lose(event):
        if event.startswith("half received PUT") and not cut:
            cut.append(event)
            return True

    hub.on_event = lose
    clients.value(client.push, checkpoint, NAME)
    assert cut and served(hub.head(NAME)) == contents(checkpoint)


@pytest.mark.parametrize("pull", [client.pull, client.pull_whole])
def test_a_download_that_is_cut_goes_on_where_it_broke_off(hub, clients, pushed, expected, pull):
    length = len(pushed.files["model.safetensors"].content)
    hub.fault("GET", WEIGHTS, cut_after=length // 2)
    hub.fault("GET", WEIGHTS, cut_after=length // 4)
    outcome = clients.run(pull, NAME)
    assert outcome.error is None
    assert outcome.value["logits"] == expected["logits"]
    starts = [int(span.removeprefix("bytes=").rstrip("-")) for span in hub.ranges]
    assert len(starts) == 2 and 0 < starts[0] <= length // 2 < starts[1] <= 3 * length // 4
    [weights] = [path for path in cached(clients) if not path.is_symlink()]
    assert weights.name == pushed.files["model.safetensors"].sha256
    assert weights.read_bytes() == pushed.files["model.safetensors"].content


@pytest.mark.parametrize("name", [WEIGHTS, "resolve/.*/tokenizer_config.json"])
def test_damaged_on_the_way(hub, clients, pushed, expected, name):
    hub.fault("GET", name, flip=1500)
    outcome = clients.run(client.pull_whole, NAME)
    assert outcome.error is None
    assert outcome.value["files"] == served(pushed)
    assert outcome.value["logits"] == expected["logits"]


def test_damaged_every_time(hub, clients, pushed, expected):
    hub.fault("GET", WEIGHTS, times=2, flip=-1)
    error = clients.run(client.pull_whole, NAME).error
    assert error.startswith("ConversionError: org/tiny-mla: model.safetensors arrived damaged twice")
    assert cached(clients) == []
    assert clients.value(client.pull_whole, NAME)["logits"] == expected["logits"]


def test_from_pretrained_does_not_see_damage(hub, clients, pushed, expected):
    """Why `pull_folder` compares checksums: sizes, which is all that huggingface_hub compares, do not tell."""
    hub.fault("GET", WEIGHTS, flip=-2)
    assert clients.value(client.pull, NAME)["logits"] != expected["logits"]
    assert clients.value(client.damaged_files, NAME, clients.cache) == ["model.safetensors"]


# The disk


@pytest.mark.parametrize("pull", [client.pull, client.pull_whole])
def test_full_disk_while_pulling(hub, clients, pushed, expected, pull):
    error = clients.run(client.pull_on_a_full_disk, pull, NAME, 50_000).error
    assert error is not None
    if pull is client.pull_whole:
        assert error.startswith("ConversionError: org/tiny-mla: no space left on the disk below")
        assert "HF_HUB_CACHE" in error
    assert cached(clients) == []
    assert clients.value(pull, NAME)["logits"] == expected["logits"]


def test_full_disk_while_splitting_weights(hub, clients, checkpoint):
    before = contents(checkpoint)
    error = clients.run(push_on_a_full_disk, checkpoint).error
    assert "ConversionError" in error and "No space left on device" in error and "TMPDIR" in error
    assert hub.requests == [] and contents(checkpoint) == before


def push_on_a_full_disk(folder):
    def full(*args, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    hub_folder.save_torch_state_dict = full
    client.push(folder, NAME, max_shard_size="60KB")


# Several at once


@pytest.mark.parametrize("pull", [client.pull, client.pull_whole])
def test_two_processes_pull_into_one_cache(hub, clients, pushed, expected, pull):
    together = threading.Barrier(2, timeout=60)

    def meet(event):
        if event.startswith("arrived HEAD") and event.endswith("/model.safetensors"):
            together.wait()

    hub.on_event = meet
    running = [clients.start(pull, NAME), clients.start(pull, NAME)]
    for outcome in [one.outcome() for one in running]:
        assert outcome.error is None
        assert outcome.value["logits"] == expected["logits"]
    assert {path.name for path in cached(clients) if not path.is_symlink()} == {
        pushed.files["model.safetensors"].sha256
    }
