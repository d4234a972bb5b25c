"""int8 weights: a product is what its definition says; models with them decode absorbed, save, load and refuse."""

import copy

import pytest
import torch
from transformers import AutoModelForSpeechSeq2Seq

from tests.conftest import random_features, random_whisper
from whisper_mla import Int8WeightsConfig, WhisperMLAForConditionalGeneration, int8_linear, quantize_weights
from whisper_mla.conversion import ConversionError, to_whisper
from whisper_mla.int8_linear import FewRows, Int8Linear, ManyRows, quantize_rows, zero_point
from whisper_mla.int8_weights import check_int8_weights
from whisper_mla.latent_attention import WhisperMLAAttention

KERNELS = [FewRows, ManyRows]


def rounded_product(rows: torch.Tensor, weight: torch.Tensor, levels: int) -> torch.Tensor:
    """The definition in float64: inputs in `levels` steps of a row's largest, weights in 127 of an output's."""
    rows, weight = rows.double(), weight.double()
    largest = rows.abs().amax(-1, keepdim=True)
    step = weight.abs().amax(-1, keepdim=True) / 127
    return (rows / largest * levels).round() @ ((weight / step).round() * step).T * largest / levels


@pytest.fixture(scope="module")
def short(speech) -> dict[str, torch.Tensor]:
    """Two clips, which is enough where tokens are compared with those of the same weights."""
    return {name: part[:2] for name, part in speech.items()}


@pytest.fixture(scope="module")
def exact(digits) -> WhisperMLAForConditionalGeneration:
    return WhisperMLAForConditionalGeneration.from_whisper(digits)


@pytest.fixture(scope="module")
def rounded(exact) -> WhisperMLAForConditionalGeneration:
    return quantize_weights(copy.deepcopy(exact))


def test_a_weight_is_rounded_to_the_nearest_code():
    weight = torch.randn(7, 33, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    codes, scale = quantize_rows(weight)
    error = (codes * scale[:, None] - weight).abs()
    assert codes.dtype == torch.int8 and (error <= scale[:, None] / 2 * 1.0001).all()
    assert codes.abs().amax(1).tolist() == [127, 127, 127, 0, 127, 127, 127]


@pytest.mark.numerics
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_product_is_that_of_rounded_inputs_and_weights(kernel):
    """Codes differ from the definition's only where an input is a float32 error away from between two codes. These
    inputs avoid it: they are codes, scaled by powers of two."""
    layer = Int8Linear.from_linear(torch.nn.Linear(96, 40))
    layer._product = kernel(layer.weight, layer.scale, zero_point(kernel))
    levels = zero_point(kernel) - 1
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(-levels, levels + 1, (2, 5, 96), generator=generator)
    codes[..., 0] = levels
    rows = codes / levels * torch.tensor([2.0, 0.25, 64.0, 1.0, 0.5])[:, None]
    expected = rounded_product(rows, layer.dequantize(), levels) + layer.bias.double()
    # Rounding that is left: of the two factors that scale a sum, of the sum with the bias.
    assert (layer(rows) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_row_does_not_depend_on_the_others(kernel):
    """But for the last bits of what multiplies a sum (oneDNN: two kernels); the least step of a code is 1 in 127."""
    torch.manual_seed(0)
    layer = Int8Linear.from_linear(torch.nn.Linear(64, 48))
    layer._product = kernel(layer.weight, layer.scale, zero_point(kernel))
    rows = torch.randn(40, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 40)[:, None]
    rows[7] = 0
    together = layer(rows)
    alone = torch.cat([layer(row[None]) for row in rows])
    assert ((together - alone).abs().amax(1) <= 1e-5 * rows.abs().amax(1)).all()
    assert torch.equal(together[7], layer.bias)


@pytest.mark.numerics
@pytest.mark.parametrize("kernel", KERNELS)
def test_products_of_seven_bits_and_of_one_sign(kernel):
    """Processors without VNNI have sums of pairs in 16 bits, which these products are to leave alone. On others it is
    the arithmetic that is tested."""
    torch.manual_seed(0)
    weight = torch.rand(48, 64) / 2 + 0.5
    layer = Int8Linear.from_linear(torch.nn.Linear(64, 48, bias=False))
    layer.weight, layer.scale = quantize_rows(weight)
    layer._product = kernel(layer.weight, layer.scale, 64)
    codes = torch.randint(50, 64, (3, 64)).index_fill(1, torch.tensor([0]), 63)
    for rows in (codes / 63, -codes / 63):
        expected = rounded_product(rows, layer.dequantize(), 63)
        assert (layer(rows) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_all_but_what_latents_pass_through_is_rounded(digits):
    ranks = {"kv_rank": 64, "cross_kv_rank": 96, "audio_kv_rank": 64}
    model = quantize_weights(WhisperMLAForConditionalGeneration.from_whisper(digits, **ranks))
    left = {name.rsplit(".", 1)[-1] for name, part in model.named_modules() if type(part) is torch.nn.Linear}
    assert left == {"k_proj", "v_proj", "kv_down_proj", "cross_kv_down_proj"}
    attentions = [part for part in model.modules() if isinstance(part, WhisperMLAAttention)]
    assert len(attentions) == 12 and all(attention.uses_absorbed_form(1) for attention in attentions)
    many = {
        name.split(".")[1] for name, part in model.named_modules() if isinstance(part, Int8Linear) and part.many_rows
    }
    assert many == {"encoder"} and not model.proj_out.many_rows


@pytest.mark.parametrize("way", [{}, {"num_beams": 3}])
def test_words_stay(exact, rounded, short, processor, way):
    """On speech that the trained model knows; and with its own rounding, not with none."""
    texts = [processor.batch_decode(model.generate(**short, **way)) for model in (exact, rounded)]
    assert texts[0] == texts[1]
    tokens = torch.tensor([[50258, 50259, 50359, 50363]])[:, :2] % exact.config.vocab_size
    with torch.no_grad():
        full, less = (
            m(input_features=short["input_features"][:1], decoder_input_ids=tokens).logits for m in (exact, rounded)
        )
    assert 0 < (full - less).norm() / full.norm() < 0.1


def test_a_batch_decodes_as_its_parts(rounded, short):
    together = rounded.generate(**short, max_new_tokens=12)
    for row in range(len(together)):
        alone = rounded.generate(**{name: part[row : row + 1] for name, part in short.items()}, max_new_tokens=12)[0]
        assert together[row, : len(alone)].tolist() == alone.tolist()


@pytest.mark.parametrize("stored", ["float", "int8"])
def test_saved_and_loaded(exact, rounded, short, tmp_path, stored):
    if stored == "float":
        exact.save_pretrained(tmp_path)
        loaded = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path, quantization_config=Int8WeightsConfig())
        loaded.save_pretrained(tmp_path / "again")
        assert (tmp_path / "again" / "model.safetensors").stat().st_size < (
            0.5 * (tmp_path / "model.safetensors").stat().st_size
        )
    else:
        rounded.save_pretrained(tmp_path)
        loaded = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path, dtype=torch.float16)
    for name, tensor in rounded.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    expected = rounded.generate(**short, max_new_tokens=6).tolist()
    assert loaded.generate(**short, max_new_tokens=6).tolist() == expected
    assert copy.deepcopy(loaded).generate(**short, max_new_tokens=6).tolist() == expected


def test_a_stand_in_for_a_pytorch_without_fbgemm(rounded, short, monkeypatch):
    monkeypatch.setattr(int8_linear, "_has_fbgemm", lambda: False)
    expected = rounded.generate(**short, max_new_tokens=6).tolist()
    model = copy.deepcopy(rounded)
    assert model.generate(**short, max_new_tokens=6).tolist() == expected
    assert type(model.proj_out._product) is ManyRows


def test_refusals(exact, rounded, monkeypatch, tmp_path):
    model = WhisperMLAForConditionalGeneration.from_whisper(random_whisper())
    model.save_pretrained(tmp_path)
    config = {"quantization_config": Int8WeightsConfig()}
    with pytest.raises(ValueError, match=r"device cuda:0: int8 weights run on CPUs only: use device='cpu'"):
        WhisperMLAForConditionalGeneration.from_pretrained(tmp_path, device_map={"": "cuda:0"}, **config)
    with pytest.raises(ValueError, match=r"model in torch\.bfloat16: .* Call model\.float\(\)"):
        quantize_weights(copy.deepcopy(model).bfloat16())
    with pytest.raises(ValueError, match="quantised already"):
        quantize_weights(rounded)
    with pytest.raises(ConversionError, match="weights are quantised"):
        to_whisper(rounded)
    away = quantize_weights(copy.deepcopy(model)).to("meta")
    with pytest.raises(RuntimeError, match=r"weights on meta\. int8 weights run on CPUs only"):
        away.proj_out(random_features(model)[0])
    monkeypatch.setattr(int8_linear, "_has_fbgemm", lambda: False)
    monkeypatch.setattr(int8_linear, "_has_onednn", lambda: False)
    with pytest.raises(RuntimeError, match=r"neither FBGEMM nor oneDNN\. Load the model without"):
        check_int8_weights()
