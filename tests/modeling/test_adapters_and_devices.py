"""LoRA, quantised weights, dtypes and device maps: whatever is not a plain linear takes the expanded form."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoModelForSpeechSeq2Seq, TorchAoConfig

from tests.conftest import random_features, random_whisper
from whisper_mla import generation_whisper_mla
from whisper_mla.conversion import ConversionError, from_whisper
from whisper_mla.conversion.source.loading import load_checkpoint
from whisper_mla.latent_attention import WhisperMLAAttention, is_plain_linear

RANKS = {"exact": {}, "low-rank": {"kv_rank": 8, "cross_kv_rank": 12, "audio_kv_rank": 16}}


@pytest.fixture(params=RANKS)
def model(request):
    return from_whisper(random_whisper(), **RANKS[request.param])


def greedy(model, features):
    return model.generate(features, max_new_tokens=12, do_sample=False)


def forms(model) -> set[bool]:
    """Whether the attentions of the decoder would decode in the absorbed form."""
    attentions = (module for module in model.modules() if isinstance(module, WhisperMLAAttention))
    return {attention.uses_absorbed_form(1) for attention in attentions}


def test_lora_trains_saves_loads_and_merges(model, tmp_path):
    model.save_pretrained(tmp_path / "base")
    features = random_features(model)
    before = greedy(model, features)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_alpha=64))
    start = {name: p.detach().clone() for name, p in adapted.named_parameters() if p.requires_grad}
    # Every attention has both: 2 encoder layers, 2 decoder layers with two attentions each; A and B for each.
    assert len(start) == 2 * 2 * (2 + 2 * 2)
    optimiser = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.05)
    labels = torch.randint(4, 100, (2, 9), generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        loss = adapted(input_features=features, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for name, parameter in adapted.named_parameters():
        if name in start:
            assert not torch.equal(parameter, start[name]), f"{name} was not trained"
    adapted.eval()
    trained = greedy(adapted, features)
    assert trained.tolist() != before.tolist()

    adapted.save_pretrained(tmp_path / "adapter")
    base = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert greedy(loaded, features).tolist() == trained.tolist()
    assert False in forms(loaded)
    merged = loaded.merge_and_unload()
    assert forms(merged) == {True}
    assert greedy(merged, features).tolist() == trained.tolist()
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "merged")
    assert greedy(again, features).tolist() == trained.tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtypes_are_kept(dtype, tmp_path):
    source = random_whisper().to(dtype)
    source.save_pretrained(tmp_path / "source")
    model = from_whisper(tmp_path / "source", kv_rank=8)
    assert model.dtype == dtype and {p.dtype for p in model.parameters()} == {dtype}
    model.save_pretrained(tmp_path / "model")
    for asked, expected in (("auto", dtype), (torch.float32, torch.float32)):
        loaded = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "model", dtype=asked)
        assert loaded.dtype == expected
    assert loaded.model.decoder.layers[0].self_attn.k_proj.weight.equal(
        model.model.decoder.layers[0].self_attn.k_proj.weight.float()
    )
    loaded = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "model", dtype="auto")
    features = random_features(model)
    assert greedy(loaded, features).tolist() == greedy(model, features).tolist()


def test_device_map_auto(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    loaded = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "model", device_map="auto")
    features = random_features(model)
    assert greedy(loaded, features).tolist() == greedy(model, features).tolist()


def test_offloaded_layers(model, tmp_path):
    """One decoder layer's weights stay on disk and come with each call; the other layer only has its inputs moved."""
    model.save_pretrained(tmp_path / "model")
    places = {name: "cpu" for name, _ in model.named_modules() if name.count(".") == 3 or name == "proj_out"}
    places |= {"model.encoder": "cpu", "model.decoder.layers.0": "cpu", "model.decoder.layers.1": "disk"}
    for name in ("embed_tokens", "embed_positions", "layer_norm", "cross_kv_down_proj"):
        places[f"model.decoder.{name}"] = "cpu"
    loaded = AutoModelForSpeechSeq2Seq.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "offload"
    )
    here, away = (layer.self_attn for layer in loaded.model.decoder.layers)
    assert here.uses_absorbed_form(1) and not away.uses_absorbed_form(1)
    features = random_features(model)
    for beams in (1, 3):
        expected = model.generate(features, max_new_tokens=12, num_beams=beams)
        assert loaded.generate(features, max_new_tokens=12, num_beams=beams).tolist() == expected.tolist()


def test_weights_loaded_in_8_bits(tmp_path, monkeypatch):
    """With torchao, which runs on the CPU: quantised linears are called, not read."""
    model = from_whisper(random_whisper(d_model=64), kv_rank=32, cross_kv_rank=32)
    model.save_pretrained(tmp_path / "model")
    arguments = {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig())}
    loaded = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "model", **arguments)
    key = loaded.model.decoder.layers[0].self_attn.k_proj
    assert type(key.weight) is not torch.nn.Parameter and not is_plain_linear(key)
    assert forms(loaded) == {False}
    # The independent check: a model whose weights are the dequantised ones, in the absorbed form.
    plain = copy.deepcopy(model)
    for name, module in loaded.named_modules():
        if isinstance(module, torch.nn.Linear) and hasattr(module.weight, "dequantize"):
            plain.get_submodule(name).weight.data = module.weight.dequantize()
    assert forms(plain) == {True}
    features, tokens = random_features(model), torch.randint(4, 100, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        quantised, expected, full = (
            m(input_features=features, decoder_input_ids=tokens).logits for m in (loaded, plain, model)
        )
    assert (quantised - expected).abs().max() < 1e-3
    assert (quantised - full).abs().max() > 1e-3
    said = []
    monkeypatch.setattr(generation_whisper_mla.logger, "warning_once", said.append)
    assert greedy(loaded, features).tolist() == greedy(plain, features).tolist()
    assert len(said) == 1 and "modules_to_not_convert=['.*k_proj', '.*v_proj']" in said[0]
    arguments = {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig(), [".*k_proj", ".*v_proj"])}
    heeded = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "model", **arguments)
    assert forms(heeded) == {True}
    greedy(heeded, features)
    assert len(said) == 1
    # Saved so, it is loaded by the commands too.
    loaded.save_pretrained(tmp_path / "quantised")
    again = load_checkpoint(AutoModelForSpeechSeq2Seq, tmp_path / "quantised")
    assert greedy(again, features).tolist() == greedy(loaded, features).tolist()


def test_a_quantised_source_is_refused(tmp_path):
    random_whisper(d_model=64).save_pretrained(tmp_path / "stock")
    arguments = {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig())}
    stock = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "stock", **arguments)
    with pytest.raises(ConversionError, match=r"weights are quantised\. Convert the original checkpoint"):
        from_whisper(stock)
