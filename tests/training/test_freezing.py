"""What trains is what was named: by name, by count, and tensor by tensor after two steps of an optimiser."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.conftest import random_features, random_whisper
from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.freezing import PARTS, freeze_except, latent_projections, trainable_parameters

CONVERSIONS = {
    "exact": {},
    "key_value": {"cross_cache": "key_value", "kv_rank": [8, 32]},
    "shared": {"kv_rank": 8, "cross_kv_rank": 12},
    "per_layer": {"kv_rank": [8, 6], "cross_kv_rank": [8, 32], "cross_kv_shared": False},
    "everywhere": {"kv_rank": 8, "cross_kv_rank": 12, "audio_kv_rank": [10, 32]},
}
SELF = [f"model.decoder.layers.{i}.self_attn." for i in range(2)]
CROSS = [f"model.decoder.layers.{i}.encoder_attn." for i in range(2)]
ENCODER = [f"model.encoder.layers.{i}.self_attn." for i in range(2)]
LATENT = {
    "key_value": SELF[:1],
    "shared": SELF + CROSS,
    "per_layer": [*SELF, CROSS[0]],
    "everywhere": SELF + CROSS + ENCODER[:1],
}


def expected_names(model, conversion: str, part: str) -> set[str]:
    """Written out by hand, not by the code under test."""
    names = [name for name, _ in model.named_parameters()]
    if part == "latent":
        chosen = {
            name
            for name in names
            if name.startswith(tuple(LATENT[conversion]))
            and name.split(".")[-2] in ("kv_down_proj", "k_proj", "v_proj")
        }
    else:
        prefixes = {"decoder_self_attention": SELF, "cross_attention": CROSS, "encoder_self_attention": ENCODER}[part]
        chosen = {name for name in names if name.startswith(tuple(prefixes))}
    if part in ("latent", "cross_attention"):
        chosen |= {name for name in names if name == "model.decoder.cross_kv_down_proj.weight"}
    return chosen


def optimise(model, steps: int = 2) -> None:
    model.train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    labels = torch.randint(4, 100, (2, 7), generator=torch.Generator().manual_seed(3))
    for _ in range(steps):
        model(input_features=random_features(model), labels=labels).loss.backward()
        optimiser.step()
        optimiser.zero_grad()


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_only_the_named_tensors_change_and_all_of_them(conversion, part):
    model = WhisperMLAForConditionalGeneration.from_whisper(random_whisper(), **CONVERSIONS[conversion])
    if conversion == "exact" and part == "latent":
        with pytest.raises(ValueError, match="nothing of this WhisperMLAForConditionalGeneration would train"):
            model.freeze_except(part)
        assert all(p.requires_grad for name, p in model.named_parameters() if "encoder.embed_positions" not in name)
        return
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = model.freeze_except(part)
    expected = expected_names(model, conversion, part)
    assert set(report.names) == expected
    assert report.trainable == sum(before[name].numel() for name in expected)
    assert report.total == sum(p.numel() for p in model.parameters())

    optimise(model)

    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == expected


def test_several_parts_and_a_stock_model():
    stock = random_whisper()
    report = freeze_except(stock, ["decoder_self_attention", "encoder_self_attention"])
    assert {name.rsplit(".", 2)[0] + "." for name in report.names} == {*SELF, *ENCODER}
    assert latent_projections(stock) == []


def test_freezing_again_forgets_the_first_time():
    model = WhisperMLAForConditionalGeneration.from_whisper(random_whisper(), kv_rank=8)
    model.freeze_except("decoder_self_attention")
    report = model.freeze_except("encoder_self_attention")
    assert all(name.startswith(tuple(ENCODER)) for name in report.names)
    assert trainable_parameters(model) == report


def test_layers_with_two_digits_are_told_apart():
    stock = random_whisper(decoder_layers=12)
    model = WhisperMLAForConditionalGeneration.from_whisper(stock, kv_rank=[32, 8] + [32] * 10)
    assert {name.split(".")[3] for name in model.freeze_except("latent").names} == {"1"}


def test_report_is_printed(monkeypatch):
    said = []
    monkeypatch.setattr("whisper_mla.modeling_whisper_mla.logger.warning", said.append)
    model = WhisperMLAForConditionalGeneration.from_whisper(random_whisper(), kv_rank=8)
    report = model.freeze_except("latent")
    share = f"{100 * report.trainable / report.total:.1f}"
    assert said == [f"{share} % of {report.total / 1000:.1f} k parameters train."]


@pytest.mark.parametrize("part", ["self_attention", "", [], ["latent", "decoder"]])
def test_unknown_part_is_refused_and_nothing_frozen(part):
    model = WhisperMLAForConditionalGeneration.from_whisper(random_whisper(), kv_rank=8)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=r"part=.*'decoder_self_attention', 'cross_attention'"):
        model.freeze_except(part)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before


def test_gradient_checkpointing_gives_the_same_gradients():
    plain = WhisperMLAForConditionalGeneration.from_whisper(random_whisper(), kv_rank=8, cross_kv_rank=12)
    plain.freeze_except("latent")
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing_enable()
    gradients = []
    for model in (plain, checkpointed):
        model.train()
        model(input_features=random_features(model), labels=torch.tensor([[5, 6, 7], [8, 9, 2]])).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() == set(trainable_parameters(plain).names)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_with_adapters_only_those_of_the_part_train():
    model = WhisperMLAForConditionalGeneration.from_whisper(random_whisper(), kv_rank=8, cross_kv_rank=12)
    adapted = get_peft_model(model, LoraConfig(target_modules=["k_proj", "v_proj"], r=2))
    report = adapted.freeze_except("cross_attention")
    assert {name.split(".")[-2] for name in report.names} == {"default"}
    assert all("encoder_attn" in name and "lora_" in name for name in report.names)
    assert len(report.names) == 2 * 2 * 2

    unadapted = get_peft_model(
        WhisperMLAForConditionalGeneration.from_whisper(random_whisper(), kv_rank=8),
        LoraConfig(target_modules=["fc1"], r=2),
    )
    with pytest.raises(ValueError, match="no adapter is on it"):
        unadapted.freeze_except("cross_attention")
