"""from_whisper with methods, placements and calibration."""

import copy
import inspect
import logging
import re

import pytest
import torch
from transformers import PreTrainedModel

from tests.conftest import random_features, random_whisper
from tests.rounding import same_divergence
from whisper_mla.conversion import METHODS, ConversionError, from_whisper, save_statistics, to_whisper
from whisper_mla.conversion.methods.method_options import _LOADING, method_options

from .tiny import random_statistics

pytestmark = pytest.mark.numerics

PLACEMENTS = {
    "self": {"kv_rank": 12},
    "self per layer": {"kv_rank": [8, 20]},
    "cross shared": {"cross_kv_rank": 12},
    "cross per layer": {"cross_kv_rank": [8, 32], "cross_kv_shared": False},
    "encoder": {"audio_kv_rank": 12},
    "all": {"kv_rank": 12, "cross_kv_rank": 12, "audio_kv_rank": [32, 8]},
    "all per layer": {"kv_rank": [8, 12], "cross_kv_rank": [8, 12], "cross_kv_shared": False, "audio_kv_rank": 20},
    "self with stock cross": {"kv_rank": 12, "cross_cache": "key_value"},
}
SEARCH_SETTLED = {"fisher": {"floor": 0.1}, "attention": {"balance": 1.0}}


def convert(model, statistics, **arguments):
    return from_whisper(model, calibration=statistics, force=True, **{"refit": False, **arguments})


def logits(model):
    tokens = torch.randint(4, 128, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(random_features(model), decoder_input_ids=tokens).logits


def refusal(source, **arguments) -> str:
    with pytest.raises(ValueError) as error:
        from_whisper(source, **arguments)
    return str(error.value)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_exact_at_full_rank(tiny, tiny_statistics, method):
    model = convert(tiny, tiny_statistics, kv_rank=32, cross_kv_rank=32, audio_kv_rank=32, method=method)
    for (name, ours), stock in zip(model.state_dict().items(), tiny.state_dict().values(), strict=True):
        assert torch.equal(ours, stock), name
    assert model.conversion_record["method"] == "exact" and model.conversion_report["latents"] == []


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_export_computes_what_the_model_does(tiny, tiny_statistics, method, placement):
    model = convert(tiny, tiny_statistics, method=method, **PLACEMENTS[placement], **SEARCH_SETTLED.get(method, {}))
    ours = logits(model)
    assert (ours - logits(to_whisper(model))).abs().max() < 2e-4
    assert (ours - logits(tiny)).abs().max() > 0.1


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_report_and_record_of_every_placement(tiny, tiny_statistics, placement):
    model = convert(tiny, tiny_statistics, **PLACEMENTS[placement])
    report, record = model.conversion_report, model.conversion_record
    config = model.config
    expected = [(f"encoder.layers.{i}.self_attn", rank) for i, rank in enumerate(config.audio_kv_ranks)]
    cross = [(f"decoder.layers.{i}.encoder_attn", rank) for i, rank in enumerate(config.cross_kv_ranks)]
    expected += [("decoder.encoder_attn", cross[0][1])] if config.cross_kv_shared else cross
    expected += [(f"decoder.layers.{i}.self_attn", rank) for i, rank in enumerate(config.kv_ranks)]
    expected = [(name, rank) for name, rank in expected if rank < 32]
    assert [(latent["name"], latent["rank"]) for latent in report["latents"]] == expected
    assert [(latent["name"], latent["rank"]) for latent in record["latents"]] == expected
    for latent, written in zip(report["latents"], record["latents"], strict=True):
        assert 0 < latent["score_error"] < 1 and 0 < latent["output_error"] < 1
        assert 0 < latent["retained_energy"] < 1
        assert written["relative_error"] ** 2 == pytest.approx(1 - latent["retained_energy"])
        assert latent["vectors"] == (144 if "decoder.layers" in latent["name"] and "self" in latent["name"] else 360)
        spectrum = latent["spectrum"]
        assert len(spectrum) == 32 and spectrum == sorted(spectrum, reverse=True)
        energy = sum(value**2 for value in spectrum)
        kept = sum(value**2 for value in spectrum[: latent["rank"]])
        assert latent["retained_energy"] == pytest.approx(kept / energy, abs=1e-3)
    assert report["method"] == record["method"] == "fisher"
    assert [trial["floor"] for trial in report["option_search"]] == [0.01, 0.1, 1.0]
    best = min(report["option_search"], key=lambda trial: trial["kl"])
    assert report["method_options"] == record["method_options"] == {"floor": best["floor"]}
    assert report["quality"] == record["quality"]
    assert same_divergence(report["quality"]["kl_per_token"], best["kl"])
    assert report["quality"]["kl_per_token"] > 0 and 0 <= report["quality"]["token_agreement"] <= 1
    assert report["quality"]["tokens"] == 4 * 11
    assert record["calibration"] == {**tiny_statistics.source, "used": True, "bundled": False}
    assert report["seconds"] >= 0 and report["peak_memory_bytes"]["process"] > 10**7


def test_errors_fall_with_the_rank(tiny, tiny_statistics):
    errors = []
    for rank in (4, 12, 20, 28):
        (latent, _) = convert(tiny, tiny_statistics, kv_rank=rank, method="attention", balance=1.0).conversion_report[
            "latents"
        ]
        errors.append((latent["score_error"], latent["output_error"]))
    assert errors == sorted(errors, reverse=True)


def test_statistics_from_a_file_give_the_same_conversion(tiny, tiny_statistics, tmp_path):
    save_statistics(tiny_statistics, tmp_path / "tiny.safetensors")
    arguments = PLACEMENTS["all"]
    ours, again = (convert(tiny, given, **arguments) for given in (tiny_statistics, tmp_path / "tiny.safetensors"))
    for (name, tensor), other in zip(ours.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name
    assert again.conversion_report["quality"] == ours.conversion_report["quality"]


def test_a_source_in_training_mode_is_measured_without_dropout():
    model = random_whisper(dropout=0.5, attention_dropout=0.5)
    statistics = random_statistics(model)
    expected = convert(model, statistics, kv_rank=8)
    model.train()
    found = convert(model, statistics, kv_rank=8)
    assert found.conversion_report["quality"] == expected.conversion_report["quality"]
    assert model.training and not found.training


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_the_cpu(tiny, tiny_statistics, dtype):
    half = copy.deepcopy(tiny).to(dtype)
    statistics = random_statistics(copy.deepcopy(half).float())
    model = convert(half, statistics, **PLACEMENTS["all"])
    assert {tensor.dtype for tensor in model.state_dict().values()} == {dtype} == {half.dtype}
    whole = convert(tiny, tiny_statistics, **PLACEMENTS["all"])
    kl, expected = (m.conversion_report["quality"]["kl_per_token"] for m in (model, whole))
    # Rounded weights are a model of their own, but the ranks cost far more than the rounding.
    assert expected / 2 < kl < 2 * expected
    assert model.conversion_report["cache"]["bytes_per_value"] == 2


# Options


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("layer_norm", {"damping": 0.5}),
        ("layer_norm", {"balance": False}),
        ("covariance", {"damping": 0.5}),
        ("covariance", {"balance": False}),
        ("attention", {"damping": 0.5, "balance": 1.0}),
        ("attention", {"balance": 5.0}),
        ("fisher", {"damping": 0.5, "floor": 0.1}),
        ("fisher", {"floor": 0.0}),
        ("joint_svd", {"preserved_key_dims": 1}),
        ("joint_svd", {"preserved_key_dims": 1, "preserved_key_selection": "2-norm"}),
    ],
    ids=str,
)
def test_options_reach_the_method(tiny, tiny_statistics, method, options):
    model = convert(tiny, tiny_statistics, kv_rank=12, method=method, **options)
    default = convert(tiny, tiny_statistics, kv_rank=12, method=method, **SEARCH_SETTLED.get(method, {}))
    assert not torch.allclose(logits(model), logits(default), atol=1e-3)
    assert model.conversion_record["method_options"] == options
    assert model.conversion_report["option_search"] == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            {"method": "joint_svd", "dampin": 0.1},
            "dampin=0.1: unknown argument. method='joint_svd' has the options pre",
        ),
        ({"method": "fisher", "dampin": 0.1}, "method='fisher' has the options damping, floor."),
        ({"method": "covariance", "floor": 0.1}, "the options damping, balance. It is an option of 'fisher'."),
        (
            {"method": "joint_svd", "damping": 0.1},
            "It is an option of 'layer_norm' and 'covariance' and 'attention' and 'fisher'.",
        ),
        ({"method": "fisher", "preserved_key_dims": 4}, "It is an option of 'joint_svd'."),
        ({"kv_ranks": 3}, "kv_ranks=3: unknown argument"),
    ],
    ids=str,
)
def test_unknown_arguments_are_named_before_anything_is_read(tiny, tmp_path, arguments, expected):
    for source in (tmp_path / "nothing", tiny):
        assert expected in refusal(source, kv_rank=8, calibration="nothing", **arguments)


def test_arguments_of_from_pretrained_are_known():
    """Every name that it takes, read out of its source, and the fields of the configuration."""
    names = set(re.findall(r'kwargs\.(?:pop|get)\("(\w+)"', inspect.getsource(PreTrainedModel.from_pretrained)))
    internal = {"_from_auto", "_from_pipeline"}
    assert len(names) > 20 and names - set(_LOADING.split()) == internal
    loading = {"revision": "main", "dtype": torch.float16, "dropout": 0.1, "id2label": {}, "cache_dir": "x"}
    arguments = {**loading, "damping": 0.1}
    assert method_options("covariance", arguments) == {"damping": 0.1} and arguments == loading


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("covariance", {"damping": -1.0}, "damping=-1.0: expected 0 or more"),
        ("attention", {"balance": 0.0}, "balance=0.0: expected a positive number"),
        ("fisher", {"floor": -0.5}, "floor=-0.5: expected 0 or more"),
        ("joint_svd", {"preserved_key_dims": 9}, "preserved_key_dims=9: expected 0 to 8"),
        ("joint_svd", {"preserved_key_dims": 3}, "rank=12: 3 key dimensions preserved in each of 4 heads"),
        ("joint_svd", {"preserved_key_dims": 1, "preserved_key_selection": "best"}, "preserved_key_selection='best'"),
    ],
    ids=str,
)
def test_bad_options(tiny, tiny_statistics, method, options, expected):
    assert expected in refusal(tiny, kv_rank=12, method=method, calibration=tiny_statistics, force=True, **options)


# Calibration that is missing or thin


def test_methods_that_need_calibration_say_so(tmp_path):
    for method in ("covariance", "attention", "fisher"):
        message = refusal(tmp_path / "nothing", kv_rank=8, method=method)
        assert message.startswith(f"method='{method}' needs calibration audio or a statistics file: calibration=")
    message = refusal(tmp_path / "x", kv_rank=8, preserved_key_dims=1, preserved_key_selection="2-norm")
    assert "needs calibration" in message


def test_calibration_is_read_before_the_weights(tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "source")
    (tmp_path / "source" / "model.safetensors").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    source = tmp_path / "source"
    assert "no audio files in this folder" in refusal(source, kv_rank=8, calibration=tmp_path / "empty")
    assert "no such statistics file" in refusal(source, kv_rank=8, calibration=tmp_path / "x.safetensors")
    assert "no such file" in refusal(source, kv_rank=8, calibration=tmp_path / "x.wav")
    noise = [torch.randn(16_000)]
    assert "a processor is needed (processor=)" in refusal(source, kv_rank=8, calibration=noise)
    assert "a processor is needed (processor=)" in refusal(tiny, kv_rank=8, calibration=noise)


def test_too_few_vectors(tiny, tiny_statistics, caplog):
    message = refusal(tiny, kv_rank=20, calibration=tiny_statistics)
    assert message.startswith("calibration: 144 vectors for decoder.layers.0.self_attn, too few for rank 20")
    assert "needs at least 160 (2,560 are recommended)" in message and "--force" in message
    assert from_whisper(tiny, kv_rank=20, calibration=tiny_statistics, force=True, refit=False).config.kv_rank == 20
    for method in ("joint_svd", "layer_norm"):  # which do not depend on them
        caplog.clear()
        assert from_whisper(tiny, kv_rank=20, calibration=tiny_statistics, method=method).config.kv_rank == 20
        assert not caplog.records
    assert "too few" in refusal(tiny, kv_rank=20, calibration=tiny_statistics, method="joint_svd", sequential=True)


def test_thin_calibration_is_warned_of(tiny, tiny_statistics, caplog):
    with caplog.at_level(logging.WARNING):
        from_whisper(tiny, kv_rank=[8, 16], cross_kv_rank=4, calibration=tiny_statistics, refit=False)
    (record,) = caplog.records
    assert "144 vectors for decoder.layers.1.self_attn at rank 16, 2,048 are recommended" in record.message
    caplog.clear()
    from_whisper(tiny, kv_rank=1, calibration=tiny_statistics, refit=False)
    assert not caplog.records


def test_statistics_that_lack_what_is_needed(tiny):
    plain = random_statistics(tiny, gradients=False, encoder=False)
    assert "statistics with gradients" in refusal(tiny, kv_rank=8, calibration=plain, force=True)
    message = refusal(tiny, audio_kv_rank=8, calibration=plain, force=True, method="covariance")
    assert "do not cover encoder.layers.0.self_attn" in message
    assert convert(tiny, plain, kv_rank=8, method="covariance").config.kv_rank == 8


def test_audio_to_conversion_in_one_call(digits_folder, clip_paths):
    """The processor of the source's folder is used; the checkpoint is in float16."""
    arguments = {"cross_kv_rank": 32, "calibration": clip_paths[:6], "language": "en"}
    model = from_whisper(digits_folder, refit=False, **arguments)
    assert model.dtype == torch.float16
    calibration = model.conversion_record["calibration"]
    assert (calibration["clips"], calibration["model"], calibration["held_out_windows"]) == (6, "whisper-digits", 2)
    quality = model.conversion_report["quality"]
    plain = from_whisper(digits_folder, method="joint_svd", **arguments)
    assert quality["kl_per_token"] < plain.conversion_report["quality"]["kl_per_token"]


def test_an_exact_conversion_needs_no_calibration(tiny):
    model = from_whisper(tiny, calibration="a folder that is never read", cross_kv_rank=32)
    assert model.conversion_record["calibration"] is None


def test_conversion_errors_are_value_errors():
    assert issubclass(ConversionError, ValueError)
