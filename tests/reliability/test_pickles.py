"""Loading never runs what a pickle says: safetensors where there are any, else tensors only."""

import contextlib
import json
import pickle
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSpeechSeq2Seq
from typer.testing import CliRunner

from tests.conftest import random_whisper
from whisper_mla.command_line.app import app
from whisper_mla.conversion import ConversionError, from_whisper
from whisper_mla.conversion.source.loading import load_checkpoint


class RunsCode:
    """Pickled, it tells whoever unpickles it to create a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.fixture
def stock():
    return random_whisper()


@pytest.fixture
def folder(stock, tmp_path) -> Path:
    """A stock checkpoint whose weights lie in pytorch_model.bin."""
    folder = tmp_path / "model"
    stock.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(weights_of(stock), folder / "pytorch_model.bin")
    return folder


def weights_of(model) -> dict[str, torch.Tensor]:
    """Those that are saved: the tied head is not."""
    return {name: tensor for name, tensor in model.state_dict().items() if name != "proj_out.weight"}


def as_zip(content, path: Path) -> None:
    torch.save(content, path)


def as_legacy_file(content, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def as_plain_pickle(content, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("write", [as_zip, as_legacy_file, as_plain_pickle])
def test_a_pickle_that_runs_code_is_refused(folder, stock, tmp_path, write):
    sign = tmp_path / "code was run"
    write({**weights_of(stock), "model.more": RunsCode(sign)}, folder / "pytorch_model.bin")
    with pytest.raises(ConversionError, match="nothing of it was run"):
        from_whisper(folder)
    result = CliRunner().invoke(app, ["convert", str(folder), str(tmp_path / "target")])
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith(f"Error: {folder}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    # The trap works: a loader that trusts pickles springs it.
    with contextlib.suppress(RuntimeError):  # it finds out too late that a plain pickle is no checkpoint
        torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert sign.exists()


def test_a_converted_folder_with_a_pickle_is_refused(stock, tmp_path):
    sign = tmp_path / "code was run"
    folder = tmp_path / "converted"
    from_whisper(stock, kv_rank=4).save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    (folder / "conversion.json").unlink(missing_ok=True)
    as_zip(RunsCode(sign), folder / "pytorch_model.bin")
    with pytest.raises(ConversionError, match="nothing of it was run"):
        load_checkpoint(AutoModelForSpeechSeq2Seq, folder)
    assert not sign.exists()


def test_trusting_a_pickle_is_not_on_offer(folder):
    with pytest.raises(ConversionError, match="weights_only=False"):
        from_whisper(folder, weights_only=False)


def test_a_pickle_of_tensors_converts(folder, stock):
    assert_same(from_whisper(folder), from_whisper(stock))


def test_shards_of_pickles_convert(folder, stock):
    weights = weights_of(stock)
    names = sorted(weights)
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        shard = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: weights[name] for name in part}, folder / shard)
        index |= dict.fromkeys(part, shard)
    (folder / "pytorch_model.bin").unlink()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert_same(from_whisper(folder), from_whisper(stock))


def test_safetensors_are_preferred(folder, stock, tmp_path):
    sign = tmp_path / "code was run"
    stock.save_pretrained(folder)
    as_zip(RunsCode(sign), folder / "pytorch_model.bin")
    assert_same(from_whisper(folder), from_whisper(stock))
    assert not sign.exists()


def test_damaged_pickles_are_refused(folder):
    content = (folder / "pytorch_model.bin").read_bytes()
    for damaged in (b"", content[:100], content[: len(content) // 2], b"\x80\x02" + content, b"garbage"):
        (folder / "pytorch_model.bin").write_bytes(damaged)
        with pytest.raises(ConversionError) as caught:
            from_whisper(folder)
        assert str(folder) in str(caught.value)


def assert_same(a, b) -> None:
    assert a.state_dict().keys() == b.state_dict().keys()
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name
