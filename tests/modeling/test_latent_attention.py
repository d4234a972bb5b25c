"""The attention module: which form it takes, and that the form does not matter."""

import copy

import pytest
import torch
from torch import nn
from transformers.models.whisper.modeling_whisper import WhisperAttention

from tests.conftest import CONVERSIONS, random_features, random_whisper
from whisper_mla import WhisperMLAConfig, WhisperMLAForConditionalGeneration
from whisper_mla.latent_attention import WhisperMLAAttention, fold_beams, is_plain_linear

pytestmark = pytest.mark.numerics


@pytest.fixture
def force(monkeypatch):
    def force(form: str):
        monkeypatch.setattr(WhisperMLAAttention, "uses_absorbed_form", lambda self, queries: form == "absorbed")

    return force


NEEDS_AVX2 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="torch compiles flex_attention for AVX2 and above only"
)


@pytest.mark.parametrize("implementation", ["eager", "sdpa", pytest.param("flex_attention", marks=NEEDS_AVX2)])
@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_both_forms_give_the_logits_of_stock(digits, speech, force, conversion, implementation):
    model = WhisperMLAForConditionalGeneration.from_whisper(digits, **CONVERSIONS[conversion])
    stock = model.to_whisper()
    model.set_attn_implementation(implementation)
    features = speech["input_features"][:2]
    tokens = torch.randint(0, 1800, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = stock(features, decoder_input_ids=tokens).logits
        for form in ("absorbed", "expanded"):
            force(form)
            logits = model(features, decoder_input_ids=tokens).logits
            assert (logits - expected).abs().max() < 1e-4, form


def test_forms_agree_in_float64_with_cache_and_padding(force):
    stock = random_whisper().double()
    model = WhisperMLAForConditionalGeneration.from_whisper(stock, kv_rank=[9, 20], cross_kv_rank=13)
    features, tokens = random_features(model), torch.randint(4, 128, (2, 7))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    logits = {}
    for form in ("absorbed", "expanded"):
        force(form)
        with torch.no_grad():
            first = model(features, decoder_input_ids=tokens[:, :4], decoder_attention_mask=mask[:, :4], use_cache=True)
            second = model(
                features,
                decoder_input_ids=tokens[:, 4:],
                decoder_attention_mask=mask,
                past_key_values=first.past_key_values,
            )
        logits[form] = torch.cat([first.logits, second.logits], dim=1)[mask.bool()]
    assert torch.allclose(logits["absorbed"], logits["expanded"], atol=1e-10)


@pytest.mark.parametrize("form", ["absorbed", "expanded"])
def test_attention_weights_of_both_forms_are_those_of_stock(digits, speech, force, form):
    stock = copy.deepcopy(digits)
    stock.set_attn_implementation("eager")
    model = WhisperMLAForConditionalGeneration.from_whisper(stock)
    tokens = torch.randint(0, 1800, (4, 5), generator=torch.Generator().manual_seed(0))
    arguments = {"decoder_input_ids": tokens, "output_attentions": True}
    force(form)
    with torch.no_grad():
        expected = stock(speech["input_features"], **arguments)
        ours = model(speech["input_features"], **arguments)
    for name in ("decoder_attentions", "cross_attentions", "encoder_attentions"):
        assert len(ours[name]) == len(expected[name]) == 4
        for a, b in zip(ours[name], expected[name], strict=True):
            assert a.shape == b.shape
            assert torch.allclose(a, b, atol=1e-5)


def attention(**kwargs) -> WhisperMLAAttention:
    config = WhisperMLAConfig(d_model=32, decoder_attention_heads=4, attn_implementation="sdpa")
    return WhisperMLAAttention(32, 4, 12, is_decoder=True, is_causal=True, layer_idx=0, config=config, **kwargs).eval()


def test_form_is_chosen_by_the_number_of_queries():
    module = attention()
    assert module.uses_absorbed_form(1)
    assert module.uses_absorbed_form(module.head_dim)
    assert not module.uses_absorbed_form(module.head_dim + 1)


def test_training_takes_the_expanded_form():
    assert not attention().train().uses_absorbed_form(1)


class Wrapped(nn.Linear):
    pass


def with_forward(module):
    module.forward = lambda x: x
    return module


def with_hook(module):
    module.register_forward_hook(lambda *a: None)
    return module


def with_pre_hook(module):
    module.register_forward_pre_hook(lambda *a: None)
    return module


def with_gathered_weight(module):
    module.weight = nn.Parameter(torch.empty(0))
    return module


def with_parametrization(module):
    return nn.utils.parametrizations.orthogonal(module)


def with_tensor_subclass(module):
    class Quantised(torch.Tensor):
        pass

    module.weight = nn.Parameter(torch.randn(8, 8).as_subclass(Quantised))
    return module


@pytest.mark.parametrize(
    "change",
    [
        lambda module: Wrapped(8, 8),
        with_forward,
        with_hook,
        with_pre_hook,
        with_gathered_weight,
        with_parametrization,
        with_tensor_subclass,
        lambda module: nn.quantized.dynamic.Linear(8, 8),
    ],
)
def test_only_plain_linears_are_absorbed(change):
    plain = nn.Linear(8, 8)
    assert is_plain_linear(plain)
    assert not is_plain_linear(change(plain))


@pytest.mark.parametrize("projection", ["k_proj", "v_proj"])
def test_hooks_on_projections_fire(projection):
    module = attention()
    calls = []
    getattr(module, projection).register_forward_hook(lambda *a: calls.append(1))
    module(torch.randn(2, 1, 32))
    assert calls == [1]


def test_adapters_on_key_and_value_take_effect_and_learn(digits, speech):
    from peft import LoraConfig, get_peft_model

    model = WhisperMLAForConditionalGeneration.from_whisper(digits, kv_rank=64, cross_kv_rank=96)
    targets = r".*decoder\.layers\.\d+\.(self_attn|encoder_attn)\.(k_proj|v_proj)"
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False)).eval()
    tokens = torch.tensor([[257, 258, 358, 362]] * 4)
    arguments = {"input_features": speech["input_features"], "decoder_input_ids": tokens}
    with torch.no_grad():
        with_adapter = adapted(**arguments).logits
        with adapted.disable_adapter():
            without = adapted(**arguments).logits
        merged = copy.deepcopy(adapted).merge_and_unload()(**arguments).logits
    assert (with_adapter - without).abs().max() > 0.1
    assert torch.allclose(merged, with_adapter, atol=1e-3)
    adapted(**arguments).logits.sum().backward()
    for name, parameter in adapted.named_parameters():
        if "lora" in name:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_fold_beams_refuses_rows_that_are_not_a_multiple():
    with pytest.raises(ValueError, match=r"5 decoder rows.*2 audios"):
        fold_beams(torch.zeros(5, 1, 8), 2)


def test_is_recorded_as_a_whisper_attention():
    assert isinstance(attention(), WhisperAttention)
    assert attention().kv_down_proj.weight.shape == (12, 32)
    assert attention(has_down_proj=False).kv_down_proj is None


def test_flash_attention_is_refused_with_the_remedy(digits):
    model = WhisperMLAForConditionalGeneration.from_whisper(digits)
    with pytest.raises(ValueError, match=r"flash_attention.*'sdpa'"):
        model.set_attn_implementation("flash_attention_2")
    assert model.config._attn_implementation == "sdpa"
