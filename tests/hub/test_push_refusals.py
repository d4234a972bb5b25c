"""What `push` refuses before anything is sent."""

import json
import os

import pytest
from safetensors.torch import load_file, save_file

from whisper_mla.hub.conversion_record import write_conversion_record

NAME = "org/tiny-mla"


def drop(name):
    return lambda folder: (folder / name).unlink()


def edit_config(**fields):
    def edit(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return edit


def edit_weights(change):
    def edit(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return edit


def truncate(folder):
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1)


def shard(change):
    """Split the weights in two, then change the index."""

    def edit(folder):
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = sorted(tensors)
        halves = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
        for file, part in halves.items():
            save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        index = {"metadata": {}, "weight_map": {name: file for file, part in halves.items() for name in part}}
        change(folder, index["weight_map"], names)
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return edit


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop("config.json"), "no config.json"),
        (edit_config(model_type="whisper"), "model type 'whisper' is not Whisper-MLA. Convert it first"),
        (edit_config(architectures=["Other"]), "unknown architecture, 'Other'"),
        (drop("model.safetensors"), "no weights (model.safetensors"),
        (truncate, "damaged safetensors file"),
        (edit_config(kv_rank=9), "has shape [16, 8] where config.json implies [16, 9]"),
        (edit_weights(lambda tensors: tensors.pop("model.decoder.layer_norm.bias")), "layer_norm.bias is missing"),
        (shard(lambda folder, index, names: (folder / "model-00002-of-00002.safetensors").unlink()), "is missing"),
        (shard(lambda folder, index, names: index.pop(names[3])), "is not in the shard that"),
        (shard(lambda folder, index, names: index.update({names[3]: "../model.safetensors"})), "is missing"),
    ],
)
def test_incomplete_folders_are_refused(hub, clients, copied, spoil, message):
    spoil(copied)
    line = clients.error_line("push", copied, NAME)
    assert message in line and "copy" in line
    assert hub.requests == []


def test_weights_that_differ_from_the_record_are_refused(hub, clients, copied):
    write_conversion_record(copied, {})
    with open(copied / "model.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    assert "its SHA-256 is not that in conversion.json" in clients.error_line("push", copied, NAME)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny-mla"], "Give it as organisation/name"),
        (["org/a b"], "is no repository name"),
        (["org/a/b"], "is no repository name"),
        ([NAME, "--max-shard-size", "lots"], "max_shard_size='lots': expected"),
        ([NAME, "--max-shard-size", "0GB"], "max_shard_size='0GB': expected"),
        ([NAME, "--revision", "v 2"], "revision='v 2' is no branch name"),
        ([NAME, "--revision", "v2", "--create-pr"], "revision='v2' with create_pr"),
    ],
)
def test_bad_arguments_are_refused(hub, clients, checkpoint, arguments, message):
    assert message in clients.error_line("push", checkpoint, *arguments)
    assert hub.requests == []


def test_missing_folder(hub, clients, tmp_path):
    assert "no such folder" in clients.error_line("push", tmp_path / "nothing", NAME)
