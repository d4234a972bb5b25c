import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import random_whisper
from whisper_mla.conversion import ConversionError, calibrate, load_statistics, save_statistics
from whisper_mla.conversion.calibration import statistics_file


@pytest.fixture
def path(tiny_statistics, tmp_path):
    save_statistics(tiny_statistics, tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


def refusal(path) -> str:
    with pytest.raises(ConversionError) as error:
        load_statistics(path)
    assert str(path) in str(error.value)
    return str(error.value)


def test_a_round_trip_changes_no_bit(tiny_statistics, path):
    loaded = load_statistics(path)
    assert loaded.source == tiny_statistics.source and loaded.examples == []
    assert loaded.inputs.keys() == tiny_statistics.inputs.keys()
    assert loaded.queries.keys() == tiny_statistics.queries.keys()
    for name, found in tiny_statistics.inputs.items():
        again = loaded.inputs[name]
        assert again.count == found.count
        for part in ("gradient", "covariance"):
            assert torch.equal(getattr(found.kronecker, part), getattr(again.kronecker, part))
        for part in ("mean", "covariance", "gradient"):
            assert torch.equal(getattr(again, part), getattr(found, part))
            assert getattr(again, part).dtype == torch.float64
    for name, query in tiny_statistics.queries.items():
        assert torch.equal(loaded.queries[name], query)
    assert len(loaded.held_out) == 4
    for again, example in zip(loaded.held_out, tiny_statistics.held_out, strict=True):
        assert torch.equal(again.input_features, example.input_features)
        assert torch.equal(again.decoder_input_ids, example.decoder_input_ids)
        assert again.prompt_length == example.prompt_length == 2
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_statistics_without_gradients_and_without_held_out(tiny_statistics, tmp_path):
    plain = copy.copy(tiny_statistics)
    plain.held_out = []
    plain.inputs = {
        name: type(found)(found.count, found.mean, found.covariance) for name, found in plain.inputs.items()
    }
    save_statistics(plain, tmp_path / "new" / "folder" / "plain.safetensors")
    loaded = load_statistics(tmp_path / "new" / "folder" / "plain.safetensors")
    assert loaded.held_out == [] and all(found.gradient is None for found in loaded.inputs.values())


def test_no_such_file(tmp_path):
    assert "no such statistics file" in refusal(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("length", [0, 4, 100, 5000, -8])
def test_a_truncated_file(path, length):
    path.write_bytes(path.read_bytes()[:length])
    assert "damaged statistics file" in refusal(path)


def test_another_safetensors_file(path):
    save_file({"weight": torch.ones(2)}, path, metadata={"format": "pt"})
    assert "not a statistics file" in refusal(path)
    save_file({"weight": torch.ones(2)}, path)
    assert "not a statistics file" in refusal(path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda tensors, facts: tensors["inputs.model.encoder.layer_norm.mean"].fill_(float("nan")), "NaN or infinite"),
        (lambda tensors, facts: tensors.pop("inputs.model.encoder.layer_norm.covariance"), "damaged"),
        (lambda tensors, facts: tensors.pop("held_out.0001.input_features"), "damaged"),
        (lambda tensors, facts: facts.pop("source"), "damaged"),
        (lambda tensors, facts: facts.pop("counts"), "damaged"),
        (lambda tensors, facts: facts.update(counts=[1, 2]), "damaged"),
        (lambda tensors, facts: facts.update(prompt_lengths=3), "damaged"),
    ],
)
def test_damaged_content(tiny_statistics, path, change, expected):
    tensors = load_file(path)
    facts = {
        "counts": {name: found.count for name, found in tiny_statistics.inputs.items()},
        "prompt_lengths": [2] * 4,
        "source": {},
    }
    metadata = {"format": "whisper-mla statistics 1"}
    save_file(tensors, path, {**metadata, "facts": json.dumps(facts)})
    load_statistics(path)
    change(tensors, facts)
    save_file(tensors, path, {**metadata, "facts": json.dumps(facts)})
    assert expected in refusal(path)
    save_file(tensors, path, {**metadata, "facts": "{"})
    assert "damaged" in refusal(path)


def test_statistics_of_another_model_are_refused(path, tiny, tiny_statistics):
    other = random_whisper(seed=1)
    with pytest.raises(ConversionError, match=r"tiny\.safetensors: these statistics are of another model \(random"):
        calibrate(other, path)
    with pytest.raises(ConversionError, match=r"^calibration: these statistics are of another model"):
        calibrate(other, tiny_statistics)
    assert calibrate(tiny, path).source["clips"] == 12
    assert calibrate(copy.deepcopy(tiny).double(), str(path)).source["clips"] == 12  # the same values


def test_a_full_disk_leaves_nothing_and_keeps_what_was_there(tiny_statistics, path, monkeypatch):
    before = path.read_bytes()

    def full(tensors, file, metadata):
        with open(file, "wb") as half:
            half.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(statistics_file, "save_file", full)
    for target in (path, path.with_name("new.safetensors")):
        with pytest.raises(ConversionError, match=r"cannot be written .*No space left"):
            save_statistics(tiny_statistics, target)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_a_place_that_cannot_be_written(tiny_statistics, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConversionError, match="cannot be written"):
        save_statistics(tiny_statistics, tmp_path / "file" / "x.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(ConversionError, match="cannot be written"):
        save_statistics(tiny_statistics, tmp_path / "folder.safetensors")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder.safetensors"]
