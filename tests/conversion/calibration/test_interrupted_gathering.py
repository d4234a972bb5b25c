"""A calibration that was interrupted goes on from its file, to the same statistics."""

import pytest
import torch

from tests.conftest import random_whisper
from tests.conversion.calibration.test_gather_statistics import random_examples
from whisper_mla.conversion import ConversionError
from whisper_mla.conversion.calibration import gather_statistics as gathering
from whisper_mla.conversion.calibration import interrupted_gathering
from whisper_mla.conversion.calibration.gather_statistics import gather_statistics
from whisper_mla.conversion.calibration.interrupted_gathering import InterruptedGathering


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(interrupted_gathering, "SECONDS_BETWEEN", 0)
    return random_whisper()


def interrupt_at(monkeypatch, call: int) -> list[int]:
    """Ctrl-C in the so manyth forward pass; the list counts them."""
    calls, forced_logits = [], gathering.forced_logits

    def counted(*arguments):
        calls.append(len(calls))
        if len(calls) == call:
            raise KeyboardInterrupt
        return forced_logits(*arguments)

    monkeypatch.setattr(gathering, "forced_logits", counted)
    return calls


@pytest.mark.parametrize("call", [2, 3, 4, 6])  # three batches, twice
def test_it_goes_on_to_the_same_statistics(model, call, monkeypatch, tmp_path):
    examples, options = random_examples(model, [4, 6, 3, 5, 4]), {"batch_size": 2, "draws": 2, "seed": 3}
    expected = gather_statistics(model, examples, **options)
    file = InterruptedGathering(tmp_path / "sums", "this")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, call)
        gather_statistics(model, examples, interrupted=file, **options)
    calls = interrupt_at(monkeypatch, -1)
    found = gather_statistics(model, examples, interrupted=file, **options)
    assert len(calls) == 6 - (call - 1)
    assert found.inputs.keys() == expected.inputs.keys()
    for name, wanted in expected.inputs.items():
        assert found.inputs[name].count == wanted.count
        for part in ("mean", "covariance", "gradient"):
            assert torch.equal(getattr(found.inputs[name], part), getattr(wanted, part)), part
        assert torch.equal(found.inputs[name].kronecker.gradient, wanted.kronecker.gradient)
        assert torch.equal(found.inputs[name].kronecker.covariance, wanted.kronecker.covariance)
    for name, wanted in expected.queries.items():
        assert torch.equal(found.queries[name], wanted)


def test_sums_of_something_else_or_damaged_are_not_taken(model, tmp_path):
    file = InterruptedGathering(tmp_path / "sums", "this")
    file.offer({"done": [1, 0]})
    assert file.read() == {"done": [1, 0]}
    assert InterruptedGathering(tmp_path / "sums", "another").read() is None
    (tmp_path / "sums").write_bytes((tmp_path / "sums").read_bytes()[:100])
    assert file.read() is None
    assert InterruptedGathering(tmp_path / "nothing", "this").read() is None
    file.remove()
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_written(model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConversionError, match="file/sums: cannot be written"):
        InterruptedGathering(tmp_path / "file" / "sums", "this").offer({})
