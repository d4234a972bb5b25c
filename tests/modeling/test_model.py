"""Model classes: saving and loading, Auto classes, training, recorded outputs."""

import copy

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    AutoTokenizer,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

import whisper_mla
from tests.conftest import CONVERSIONS, random_features, random_whisper
from whisper_mla import WhisperMLAConfig, WhisperMLAForCausalLM, WhisperMLAForConditionalGeneration, WhisperMLAModel

pytestmark = pytest.mark.numerics


@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_save_and_load_through_the_auto_classes(digits, processor, speech, tmp_path, conversion):
    model = WhisperMLAForConditionalGeneration.from_whisper(digits, **CONVERSIONS[conversion])
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)

    loaded = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path)
    assert type(loaded) is WhisperMLAForConditionalGeneration
    assert type(AutoConfig.from_pretrained(tmp_path)) is WhisperMLAConfig
    assert loaded.config.to_dict()["kv_rank"] == model.config.kv_rank
    assert loaded.generation_config.to_dict() == model.generation_config.to_dict()
    for (name, a), (_, b) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert torch.equal(loaded.generate(**speech), model.generate(**speech))

    assert type(AutoModel.from_pretrained(tmp_path)) is WhisperMLAModel
    for auto, name in (
        (AutoProcessor, "WhisperProcessor"),
        (AutoTokenizer, "WhisperTokenizer"),
        (AutoFeatureExtractor, "WhisperFeatureExtractor"),
    ):
        assert type(auto.from_pretrained(tmp_path)).__name__ == name


def test_registration_is_idempotent_and_leaves_stock_alone(digits_folder):
    whisper_mla.register()
    whisper_mla.register()
    assert type(AutoConfig.from_pretrained(digits_folder)) is WhisperConfig
    assert type(AutoModelForSpeechSeq2Seq.from_pretrained(digits_folder)) is WhisperForConditionalGeneration


def test_causal_model_is_the_decoder(exact, tmp_path, speech):
    exact.save_pretrained(tmp_path)
    decoder = WhisperMLAForCausalLM.from_pretrained(tmp_path).eval()
    tokens = torch.tensor([[257, 258, 358, 362]] * 4)
    with torch.no_grad():
        states = exact.get_encoder()(speech["input_features"])
        expected = exact(encoder_outputs=states, decoder_input_ids=tokens).logits
        logits = decoder(tokens, encoder_outputs=states).logits
        text_only = decoder(tokens).logits
    assert torch.allclose(logits, expected, atol=1e-5)
    assert (text_only - expected).abs().max() > 1


def test_weights_are_tied(exact):
    assert exact.proj_out.weight is exact.model.decoder.embed_tokens.weight


def test_modules_are_built_once(monkeypatch):
    from whisper_mla import encoder_and_decoder as code

    built = []
    for name in ("WhisperMLADecoderLayer", "WhisperMLAEncoderLayer", "WhisperMLAEncoder", "WhisperMLADecoder"):
        original = getattr(code, name).__init__

        def count(self, *args, original=original, name=name):
            built.append(name)
            original(self, *args)

        monkeypatch.setattr(getattr(code, name), "__init__", count)
    WhisperMLAForConditionalGeneration(
        WhisperMLAConfig(d_model=16, encoder_layers=2, decoder_layers=3, decoder_attention_heads=2,
                         encoder_attention_heads=2, vocab_size=20, pad_token_id=0)
    )  # fmt: skip
    assert sorted(built) == sorted(
        ["WhisperMLAEncoder", "WhisperMLADecoder"] + 2 * ["WhisperMLAEncoderLayer"] + 3 * ["WhisperMLADecoderLayer"]
    )


def test_layers_are_not_split_across_devices(exact):
    names = {type(module).__name__ for module in exact.modules()}
    assert set(WhisperMLAForConditionalGeneration._no_split_modules) <= names


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_the_exact_model_are_those_of_stock(checkpointing):
    stock = random_whisper()
    ours = WhisperMLAForConditionalGeneration.from_whisper(stock)
    features, labels = random_features(stock), torch.randint(4, 128, (2, 9))
    for model in (stock, ours):
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(features, labels=labels).loss.backward()
    expected = {name: parameter.grad for name, parameter in stock.named_parameters() if parameter.requires_grad}
    found = {name: parameter.grad for name, parameter in ours.named_parameters() if parameter.requires_grad}
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-5), name


def test_every_latent_projection_learns():
    ranks = {"kv_rank": 8, "cross_kv_rank": 12, "audio_kv_rank": 10}
    model = WhisperMLAForConditionalGeneration.from_whisper(random_whisper(), **ranks).train()
    model(random_features(model), labels=torch.randint(4, 128, (2, 9))).loss.backward()
    names = [name for name, parameter in model.named_parameters() if "kv_down_proj" in name]
    assert len(names) == 2 + 1 + 2
    for name in names:
        assert model.get_parameter(name).grad.abs().max() > 0, name


def test_recorded_hidden_states_are_those_of_stock(digits, exact, speech):
    arguments = {**speech, "decoder_input_ids": torch.tensor([[257, 258, 358]] * 4), "output_hidden_states": True}
    with torch.no_grad():
        expected, ours = digits(**arguments), exact(**arguments)
    for name in ("encoder_hidden_states", "decoder_hidden_states"):
        assert len(ours[name]) == 5
        for a, b in zip(ours[name], expected[name], strict=True):
            assert torch.allclose(a, b, atol=1e-3)


def test_names_in_the_state_dict(digits):
    model = WhisperMLAForConditionalGeneration.from_whisper(digits, kv_rank=[64, 256, 64, 64], cross_kv_rank=96)
    names = set(model.state_dict())
    layer = "model.decoder.layers.0.self_attn."
    assert {layer + f"{part}_proj.weight" for part in ("q", "kv_down", "k", "v", "out")} <= names
    assert "model.decoder.layers.1.self_attn.kv_down_proj.weight" not in names  # exact layer
    assert "model.decoder.cross_kv_down_proj.weight" in names
    assert not any("encoder_attn.kv_down_proj" in name for name in names)


def test_word_timestamps_leave_attention_as_it_was(exact, speech):
    """Stock Whisper is left on eager attention."""
    model, speech = copy.deepcopy(exact), {name: tensor[:2] for name, tensor in speech.items()}
    model.generate(**speech, return_token_timestamps=True)
    assert model.config._attn_implementation == exact.config._attn_implementation == "sdpa"
    assert torch.equal(model.generate(**speech), exact.generate(**speech))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_checkpoints_run(digits_folder, speech, dtype, tmp_path):
    model = WhisperMLAForConditionalGeneration.from_whisper(digits_folder, dtype=dtype, kv_rank=128, method="joint_svd")
    assert model.dtype == dtype
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path, dtype="auto")
    assert loaded.dtype == dtype
    arguments = {**speech, "input_features": speech["input_features"].to(dtype)}
    assert torch.equal(loaded.generate(**arguments, max_new_tokens=12), model.generate(**arguments, max_new_tokens=12))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_features_of_another_precision_are_cast(exact, speech, fresh, dtype):
    """What a feature extractor gives is float32; stock Whisper refuses it in half precision."""
    model = fresh(exact).to(dtype)
    features = speech["input_features"][:1]
    given, cast = (model.get_encoder()(one).last_hidden_state for one in (features, features.to(dtype)))
    assert given.dtype == dtype and torch.equal(given, cast)
    assert model.generate(features, max_new_tokens=2).shape[0] == 1
