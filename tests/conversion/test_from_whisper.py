import copy
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSpeechSeq2Seq, WhisperModel

from tests.conftest import CONVERSIONS, random_features, random_whisper
from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.conversion import METHODS, ConversionError, Moments, from_whisper, to_whisper

pytestmark = pytest.mark.numerics


def logits(model, features, tokens):
    with torch.no_grad():
        return model(features, decoder_input_ids=tokens).logits


@pytest.mark.parametrize("ranks", [{}, *CONVERSIONS.values(), {"kv_rank": 1}, {"cross_kv_rank": 1}], ids=str)
def test_stock_classes_give_the_logits_of_the_converted_model(digits, speech, ranks):
    model = from_whisper(digits, **ranks)
    tokens = torch.randint(0, 1800, (4, 12), generator=torch.Generator().manual_seed(0))
    ours, exported = (logits(m, speech["input_features"], tokens) for m in (model, model.to_whisper()))
    assert (ours - exported).abs().max() < 1e-4
    if ranks:
        stock = logits(digits, speech["input_features"], tokens)
        lossy = any("rank" in field for field in ranks)
        assert not lossy or (ours - stock).abs().max() > 1e-3


def test_a_rank_of_d_model_is_exact_and_factorises_nothing(digits):
    model = from_whisper(digits, kv_rank=256, cross_kv_rank=256, audio_kv_rank=256)
    for (name, ours), (stock_name, stock) in zip(model.state_dict().items(), digits.state_dict().items(), strict=True):
        assert name == stock_name and torch.equal(ours, stock)


def test_nearly_full_rank_is_nearly_exact(digits, speech):
    tokens = torch.tensor([[257, 258, 358, 362]] * 4)
    model = from_whisper(digits, kv_rank=255, cross_kv_rank=255, audio_kv_rank=255)
    difference = logits(model, speech["input_features"], tokens) - logits(digits, speech["input_features"], tokens)
    assert difference.abs().max() < 0.5


def test_factors_are_the_optimum_for_keys_and_values_together(digits):
    model = from_whisper(digits, kv_rank=40)
    attention, stock = model.model.decoder.layers[2].self_attn, digits.model.decoder.layers[2].self_attn
    original = torch.cat([stock.k_proj.weight, stock.v_proj.weight]).double()
    up = torch.cat([attention.k_proj.weight, attention.v_proj.weight]).double()
    error = torch.linalg.norm(original - up @ attention.kv_down_proj.weight.double())
    tail = torch.linalg.svdvals(original)[40:].square().sum().sqrt()
    assert error.item() == pytest.approx(tail.item(), rel=1e-4)


def test_the_source_is_not_modified_and_shares_no_memory():
    stock = random_whisper()
    before = copy.deepcopy(stock.state_dict())
    model = from_whisper(stock, kv_rank=8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for name, tensor in stock.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert stock.config.model_type == "whisper"


def test_dtype_generation_config_and_mode_are_kept(digits_folder, digits):
    model = from_whisper(digits_folder, kv_rank=64)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    assert model.config.dtype == torch.float16
    assert model.generation_config.to_dict() == digits.generation_config.to_dict()
    assert model.generation_config is not digits.generation_config
    assert not model.training
    assert from_whisper(digits_folder, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert from_whisper(digits_folder, torch_dtype=torch.bfloat16).dtype == torch.bfloat16


def test_arguments_of_from_pretrained_reach_the_source(digits_folder):
    model = from_whisper(digits_folder, dropout=0.3, attn_implementation="eager", ignore_mismatched_sizes=True)
    assert model.config.dropout == model.model.decoder.layers[0].dropout == 0.3
    assert model.config._attn_implementation == "eager"


def test_sharded_source(tmp_path):
    stock = random_whisper()
    stock.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    features, tokens = random_features(stock), torch.randint(4, 128, (2, 6))
    assert torch.allclose(logits(from_whisper(tmp_path), features, tokens), logits(stock, features, tokens), atol=1e-5)


def test_round_trip_restores_the_stock_weights_of_an_exact_model(digits):
    back = to_whisper(from_whisper(digits))
    for name, tensor in digits.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    assert type(back) is type(digits)


def test_export_saves_a_checkpoint_that_stock_classes_load(digits, speech, tmp_path):
    model = from_whisper(digits, kv_rank=64)
    model.to_whisper().save_pretrained(tmp_path)
    loaded = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path)
    assert type(loaded) is type(digits)
    assert torch.equal(loaded.generate(**speech), model.generate(**speech))


def test_export_multiplies_in_float64(digits_folder):
    model = from_whisper(digits_folder, kv_rank=64)
    ours = model.model.decoder.layers[0].self_attn
    exported = model.to_whisper().model.decoder.layers[0].self_attn.k_proj.weight
    product = ours.k_proj.weight.double() @ ours.kv_down_proj.weight.double()
    assert exported.dtype == torch.float16
    assert torch.equal(exported, product.half())


@pytest.mark.parametrize(
    "name",
    [
        "layers.1.self_attn.v_proj",
        "layers.1.self_attn.kv_down_proj",
        "layers.0.encoder_attn.q_proj",
        "cross_kv_down_proj",
    ],
)
def test_export_refuses_wrapped_projections(digits, name):
    model = from_whisper(digits, kv_rank=64, cross_kv_rank=96)
    model.model.decoder.get_submodule(name).register_forward_hook(lambda *a: None)
    with pytest.raises(ConversionError, match=f"model.decoder.{name} is a Linear.*merge"):
        model.to_whisper()


def test_a_source_spread_over_devices(digits_folder, tmp_path):
    parts = ("embed_tokens", "embed_positions", "layers.0", "layers.1", "layers.2", "layers.3", "layer_norm")
    device_map = {f"model.decoder.{part}": "disk" if part == "layers.2" else "cpu" for part in parts}
    device_map.update({"model.encoder": "cpu", "proj_out": "cpu"})
    message = refusal(digits_folder, device_map=device_map, offload_folder=tmp_path)
    assert "spread over cpu, meta" in message


def test_exact_conversions_factorise_nothing(digits, monkeypatch):
    def no_factorisation(weights, moments: Moments | None, rank):
        raise AssertionError("nothing to factorise")

    monkeypatch.setitem(METHODS, "joint_svd", no_factorisation)
    before = {name: tensor.clone() for name, tensor in digits.state_dict().items()}
    exact = from_whisper(digits, kv_rank=256, cross_kv_rank=256, audio_kv_rank=[256] * 4)
    assert exact.state_dict().keys() == before.keys()
    with pytest.raises(AssertionError, match="nothing"):
        from_whisper(digits, kv_rank=8)
    assert all(torch.equal(tensor, before[name]) for name, tensor in digits.state_dict().items())


# Bad input


@pytest.fixture
def broken(digits_folder, tmp_path):
    """A checkpoint folder to break."""
    folder = tmp_path / "broken"
    shutil.copytree(digits_folder, folder)
    return folder


def refusal(source, **arguments) -> str:
    with pytest.raises(ValueError) as error:
        from_whisper(source, **arguments)
    return str(error.value)


def test_missing_source(tmp_path):
    assert "no such folder" in refusal(tmp_path / "nothing")
    assert "Hub" in refusal("some-org/whisper-nothing")


def test_source_is_a_file(digits_folder):
    assert "is a file" in refusal(digits_folder / "config.json")


def test_folder_without_config(tmp_path):
    assert "no config.json" in refusal(tmp_path)


def test_unreadable_config(broken):
    (broken / "config.json").write_text("{")
    assert "config.json cannot be read" in refusal(broken)


def test_not_a_whisper(broken):
    (broken / "config.json").write_text('{"model_type": "bert"}')
    assert "'bert' is not Whisper" in refusal(broken)


def test_already_converted(digits, tmp_path):
    model = from_whisper(digits)
    assert "already a Whisper-MLA model" in refusal(model)
    model.save_pretrained(tmp_path)
    assert "already a Whisper-MLA model" in refusal(tmp_path)


def test_another_class_of_whisper(digits):
    assert "WhisperModel: expected a WhisperForConditionalGeneration" in refusal(WhisperModel(digits.config))


def test_loading_arguments_for_a_model_in_memory(digits):
    assert "dtype" in refusal(digits, dtype=torch.float16)


def test_folder_without_weights(broken):
    (broken / "model.safetensors").unlink()
    assert "weights cannot be read" in refusal(broken)


@pytest.mark.parametrize("length", [0, 5, 1000, -1000])
def test_truncated_safetensors(broken, length):
    content = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(content[:length])
    message = refusal(broken)
    assert str(broken) in message and "damaged safetensors" in message


NAME = "model.decoder.layers.1.fc1.weight"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda tensors: tensors.pop(NAME), f"tensor {NAME} is missing"),
        (lambda tensors: tensors[NAME][3].fill_(float("nan")), f"tensor {NAME} holds NaN"),
        (lambda tensors: tensors[NAME][0, 0].fill_(float("inf")), f"tensor {NAME} holds NaN or infinite"),
        (lambda tensors: tensors.update({NAME: tensors[NAME][:-1].clone()}), f"tensor {NAME} has shape [1023, 256]"),
    ],
)
def test_bad_tensors_are_named(broken, change, expected):
    tensors = load_file(broken / "model.safetensors")
    change(tensors)
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    assert expected in refusal(broken)


def test_nan_in_a_model_in_memory():
    stock = random_whisper()
    with torch.no_grad():
        stock.model.encoder.conv1.bias[0] = float("nan")
    assert "model.encoder.conv1.bias holds NaN" in refusal(stock)


def test_bad_ranks_and_methods_before_weights_are_read(broken):
    (broken / "model.safetensors").write_bytes(b"")
    assert "kv_rank=257" in refusal(broken, kv_rank=257)
    assert "kv_rank=[1, 2]" in refusal(broken, kv_rank=[1, 2])
    assert "method='pca': expected one of 'joint_svd'" in refusal(broken, method="pca")


def test_random_weights_are_never_loaded_silently(digits_folder):
    """A folder whose config claims more layers than its weights hold."""
    with pytest.raises(ConversionError, match="is missing"):
        from_whisper(digits_folder, decoder_layers=5)


def test_from_whisper_of_the_class_is_the_function(digits):
    ours = WhisperMLAForConditionalGeneration.from_whisper(digits, kv_rank=64)
    other = from_whisper(digits, kv_rank=64)
    for (name, a), b in zip(ours.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
