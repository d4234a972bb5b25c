"""Products with 8-bit weights that compiled graphs call from C++: the same numbers, and none left behind."""

import copy
import gc

import pytest
import torch

from tests.conftest import random_whisper
from whisper_mla import WhisperMLAForConditionalGeneration, quantize_weights
from whisper_mla.int8_linear import FewRows, Int8Linear, missing_kernel, pack_weight, quantize_rows
from whisper_mla.transcription import int8_operator
from whisper_mla.transcription.compiled_decoding import compile_decoding
from whisper_mla.transcription.int8_operator import call_products_from_cpp

pytestmark = [
    pytest.mark.compiles,
    pytest.mark.skipif(
        missing_kernel() is not None or not isinstance(pack_weight(*quantize_rows(torch.ones(4, 4))), FewRows),
        reason="there is no FBGEMM here",
    ),
]


@pytest.fixture
def layer() -> Int8Linear:
    torch.manual_seed(0)
    return Int8Linear.from_linear(torch.nn.Linear(96, 40))


def compiled(layer):
    torch._dynamo.reset()
    return torch.compile(layer, backend="eager", fullgraph=True, dynamic=True)


@pytest.mark.parametrize("zero_point", [64, 128])
def test_the_same_numbers_as_through_python(layer, zero_point):
    layer._product = FewRows(layer.weight, layer.scale, zero_point)
    inputs = torch.randn(3, 1, 96, generator=torch.Generator().manual_seed(1))
    expected = layer(inputs)
    assert torch.equal(compiled(layer)(inputs), expected)
    python = layer.packed().operator
    call_products_from_cpp(layer)
    operator, number = layer.packed().operator, layer.packed().operator_number
    assert operator is not python and operator.namespace == int8_operator._NAMESPACE
    assert torch.equal(compiled(layer)(inputs), expected)
    call_products_from_cpp(layer)  # once more changes nothing
    assert layer.packed().operator_number == number
    with pytest.raises(RuntimeError, match="no packed weight has the number 0"):
        operator(inputs, 0, 40)


def test_a_weight_that_is_gone_is_released(layer):
    call_products_from_cpp(layer)
    weight = layer.packed()
    operator, number = weight.operator, weight.operator_number
    rows = torch.rand(1, 96)
    assert operator(rows, number, 40).shape == (1, 40)
    layer.float()  # packed anew when next asked for
    del weight
    gc.collect()
    with pytest.raises(RuntimeError, match=f"no packed weight has the number {number}"):
        operator(rows, number, 40)
    assert layer.packed().operator is not operator
    assert copy.deepcopy(layer).packed().operator is not operator


def test_without_a_compiler_it_goes_on_through_python(layer, monkeypatch, caplog):
    from torch._inductor.codecache import CppCodeCache

    def fails(*_):
        raise OSError("there is no compiler")

    monkeypatch.setattr(CppCodeCache, "load", fails)
    int8_operator._operators.cache_clear()
    before = layer.packed().operator
    call_products_from_cpp(layer)
    int8_operator._operators.cache_clear()
    assert "products are called through Python, which is slower: there is no compiler" in caplog.text
    assert layer.packed().operator is before
    inputs = torch.randn(2, 96)
    assert torch.equal(compiled(layer)(inputs), layer(inputs))


def test_a_compiled_model_calls_them():
    model = quantize_weights(WhisperMLAForConditionalGeneration.from_whisper(random_whisper(decoder_layers=1)))
    compile_decoding(model)
    layers = [layer for layer in model.get_decoder().modules() if isinstance(layer, Int8Linear)] + [model.proj_out]
    assert len(layers) == 7
    assert {layer.packed().operator.namespace for layer in layers} == {int8_operator._NAMESPACE}
    assert len({layer.packed().operator_number for layer in layers}) == 7
