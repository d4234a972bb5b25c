"""The commands on a checkpoint of the hub: they pull it whole, or fail with one line that says why."""

import shutil

import pytest

from tests.hub import client
from tests.hub.conftest import contents

NAME = "org/digits"


@pytest.fixture
def pushed(hub, digits_folder):
    """A stock checkpoint on the hub."""
    return hub.put(NAME, contents(digits_folder), private=True)


def commands(clients, clip) -> list[list]:
    target = clients.cache.parent / "target"
    return [["inspect", NAME], ["transcribe", NAME, clip], ["convert", NAME, target]]


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize(
    ("token", "revision", "message"),
    [
        ("", None, f"Error: {NAME}: no such repository on the Hub, or a private one."),
        ("hf_wrong", None, f"Error: {NAME}: the Hub does not accept the token."),
        ("hf_reader", "v9", f"Error: {NAME}: has no branch, tag or commit 'v9'."),
    ],
)
def test_refused(hub, clients, pushed, clips, number, token, revision, message):
    command = commands(clients, clips["clip00"]["path"])[number]
    revision = [] if revision is None else ["--revision", revision]
    assert clients.error_line(*command, *revision, token=token).startswith(message)
    assert not (clients.cache.parent / "target").exists()


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "/lfs/"])
def test_no_file_is_taken_for_optional(hub, clients, pushed, clips, number, name):
    for method in ("HEAD", "GET"):
        hub.fault(method, name, times=-1, status=403)
    line = clients.error_line(*commands(clients, clips["clip00"]["path"])[number])
    assert line.startswith(f"Error: {NAME}: the token may not read here (403")
    assert not (clients.cache.parent / "target").exists()
    hub.faults.clear()


def test_damage_on_the_way_is_repaired(hub, clients, pushed, clips):
    hub.fault("GET", "/lfs/", flip=-3)
    said = clients.value(client.command, "transcribe", NAME, clips["clip00"]["path"])["stdout"]
    assert said.strip() == clips["clip00"]["text"]


def test_converted_by_name_equals_converted_from_the_folder(hub, clients, pushed, digits_folder, tmp_path):
    clients.value(client.command, "convert", NAME, tmp_path / "by-name", "--kv-rank", "64")
    clients.value(
        client.command,
        "convert",
        digits_folder,
        tmp_path / "from-folder",
        "--kv-rank",
        "64",
    )
    weights = "model.safetensors"
    assert (tmp_path / "by-name" / weights).read_bytes() == (tmp_path / "from-folder" / weights).read_bytes()
    assert (tmp_path / "by-name" / "tokenizer_config.json").exists()
    shutil.rmtree(tmp_path / "by-name")
    hub.fault("GET", "/api/", times=-1, status=503)
    assert clients.value(client.command, "convert", NAME, tmp_path / "by-name")["code"] == 0  # from the cache
    hub.faults.clear()
