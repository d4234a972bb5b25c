import copy

import pytest
import torch

from tests.conftest import random_whisper
from tests.conversion.tiny import forced, random_examples
from whisper_mla.conversion import ConversionError, from_whisper, save_statistics
from whisper_mla.conversion.refit.sequential import paired_moments

pytestmark = pytest.mark.numerics

LAYER = "model.decoder.layers.1.self_attn"


def inputs_of(model, attention, examples):
    seen = []
    hook = model.get_submodule(f"{attention}.k_proj").register_forward_hook(lambda m, a, out: seen.append(a[0][0]))
    for example in examples:
        forced(model, example)
    hook.remove()
    return torch.cat(seen).double()


@pytest.mark.parametrize(
    "attention", [LAYER, "model.encoder.layers.1.self_attn", "model.decoder.layers.0.encoder_attn"]
)
def test_moments_of_both_models(tiny, attention):
    """Against activations of each example alone: what is padding counts nowhere."""
    other = from_whisper(tiny, kv_rank=8, audio_kv_rank=8).to_whisper()
    examples = random_examples(tiny, [3, 8, 5])
    found = paired_moments(tiny, other, attention, examples, batch_size=2)
    x, x_new = (inputs_of(model, attention, examples) for model in (tiny, other))
    assert found.count == len(x) == (16 if attention == LAYER else 90)
    assert torch.allclose(found.stock_mean, x.mean(0), atol=1e-5)
    assert torch.allclose(found.mean, x_new.mean(0), atol=1e-5)
    assert torch.allclose(found.covariance, torch.cov(x_new.T, correction=0), atol=1e-4)
    cross = (x - x.mean(0)).T @ (x_new - x_new.mean(0)) / len(x)
    assert torch.allclose(found.cross, cross, atol=1e-4)
    assert not torch.allclose(found.cross, found.covariance, atol=1e-2)


def test_the_same_model_twice(tiny):
    found = paired_moments(tiny, copy.deepcopy(tiny), LAYER, random_examples(tiny, [3, 8]))
    assert torch.equal(found.cross, found.covariance) and torch.equal(found.mean, found.stock_mean)
    assert not any(module._forward_pre_hooks for module in tiny.modules())


def convert(model, statistics, **arguments):
    return from_whisper(model, calibration=statistics, force=True, **{"refit": False, **arguments})


def test_without_layers_below_only_the_refit_differs(tiny, tiny_statistics):
    """Encoder layer 0 reads the same in both models, and the best up projection of a latent is the one it has."""
    ranks = {"audio_kv_rank": [8, 32], "method": "covariance"}
    plain, sequential = (convert(tiny, tiny_statistics, **ranks, sequential=flag) for flag in (False, True))
    for name, tensor in plain.state_dict().items():
        assert torch.allclose(tensor, sequential.state_dict()[name], atol=1e-4), name
    assert sequential.conversion_record["sequential"] and not plain.conversion_record["sequential"]


@pytest.mark.parametrize(
    ("arguments", "gain"),
    [({"method": "joint_svd", "audio_kv_rank": 32}, 2.0), ({"floor": 0.1, "audio_kv_rank": 64}, 1.1)],
    ids=str,
)
def test_layers_above_are_adapted_to_the_layers_below(digits, digits_statistics, arguments, gain):
    """Predictions on held-out audio come closer to stock's where every encoder layer is converted."""
    plain, sequential = (
        convert(digits, digits_statistics, **arguments, sequential=flag).conversion_report["quality"]["kl_per_token"]
        for flag in (False, True)
    )
    assert 0 < sequential < plain / gain


def test_a_refit_keeps_the_weighting_of_the_method(tiny, tiny_statistics):
    """Where nothing lies below, inputs are stock's and the refit finds the factors that the method found."""
    arguments = {"kv_rank": [8, 32], "floor": 0.1}
    plain, sequential = (
        convert(tiny, tiny_statistics, **arguments, sequential=flag).model.decoder.layers[0].self_attn
        for flag in (False, True)
    )
    for name in ("k_proj", "v_proj"):
        first, second = (getattr(attention, name).weight for attention in (plain, sequential))
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("method", ["joint_svd", "layer_norm", "fisher", "attention"])
def test_every_method_can_be_sequential(tiny, tiny_statistics, method):
    options = {"fisher": {"floor": 0.1}, "attention": {"balance": 1.0}}.get(method, {})
    arguments = {"kv_rank": 8, "cross_kv_rank": 12, "audio_kv_rank": 16, "method": method, **options}
    before = copy.deepcopy(tiny.state_dict())
    plain, sequential = (convert(tiny, tiny_statistics, **arguments, sequential=flag) for flag in (False, True))
    weights = sequential.state_dict()
    assert any(not torch.allclose(tensor, weights[name], atol=1e-3) for name, tensor in plain.state_dict().items())
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.state_dict().items())


def test_a_statistics_file_has_no_examples_any_more(tiny, tiny_statistics, tmp_path):
    save_statistics(tiny_statistics, tmp_path / "tiny.safetensors")
    tiny.save_pretrained(tmp_path / "source")
    (tmp_path / "source" / "model.safetensors").write_bytes(b"")  # refused before it is read
    with pytest.raises(ConversionError, match="sequential=True: needs calibration audio"):
        from_whisper(tmp_path / "source", kv_rank=8, calibration=tmp_path / "tiny.safetensors", sequential=True)
    with pytest.raises(ValueError, match="sequential=True needs calibration audio or"):
        from_whisper(random_whisper(), kv_rank=8, sequential=True)
