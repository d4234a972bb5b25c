import copy
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import kl_div, log_softmax

from tests.conftest import random_whisper
from tests.conversion.tiny import forced, random_examples
from whisper_mla.configuration import WhisperMLAConfig, whisper_config
from whisper_mla.conversion.calibration.examples import Example
from whisper_mla.conversion.calibration.gather_statistics import batch_size_for, gather_statistics
from whisper_mla.conversion.calibration.kronecker import KroneckerSums
from whisper_mla.conversion.calibration.statistics import InputMoments
from whisper_mla.conversion.source.latents import input_name, latents_of

ENCODER_OUTPUT = "model.encoder.layer_norm"
SELF, CROSS, ENCODER = "model.decoder.layers.1.self_attn", ENCODER_OUTPUT, "model.encoder.layers.0.self_attn"


def attentions_of(model) -> dict:
    return {name: module for name, module in model.named_modules() if hasattr(module, "k_proj")}


def recorded(model, examples) -> tuple[dict, dict]:
    """What every key projection reads and every query projection puts out, one example at a time, without padding."""
    inputs, queries, handles = {}, {}, []
    for name, module in attentions_of(model).items():
        keep = inputs.setdefault(name, []), queries.setdefault(name, [])
        handles.append(module.k_proj.register_forward_hook(lambda m, a, out, keep=keep: keep[0].append(a[0][0])))
        handles.append(module.q_proj.register_forward_hook(lambda m, a, out, keep=keep: keep[1].append(out[0])))
    for example in examples:
        forced(model, example)
    for handle in handles:
        handle.remove()
    joined = ({name: torch.cat(rows).double() for name, rows in part.items()} for part in (inputs, queries))
    return tuple(joined)


@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_moments_are_those_of_the_activations_without_padding(batch_size):
    model = random_whisper()
    examples = random_examples(model, [3, 9, 5, 7, 4])
    found = gather_statistics(model, examples, gradients=False, batch_size=batch_size)
    inputs, queries = recorded(model, examples)
    assert set(found.inputs) == {input_name(name) for name in inputs} and set(found.queries) == set(queries)
    for name, rows in inputs.items():
        moments = found.inputs[input_name(name)]
        assert moments.count == len(rows) == (28 if ".decoder." in name and "self" in name else 150)
        assert torch.allclose(moments.mean, rows.mean(0), atol=1e-5)
        assert torch.allclose(moments.covariance, torch.cov(rows.T, correction=0), atol=1e-4)
    for name, rows in queries.items():
        heads = (rows * 8**-0.5).view(-1, 4, 8)
        expected = torch.einsum("nhi,nhj->hij", heads, heads) / len(rows)
        assert torch.allclose(found.queries[name], expected, atol=1e-4)
        assert found.queries[name].dtype == torch.float64


def test_large_means_do_not_cancel():
    rows = 1e4 + torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    moments = InputMoments()
    for part in rows.split(90):
        moments.update(part)
    assert moments.count == 400
    assert torch.allclose(moments.covariance, torch.cov(rows.double().T, correction=0), rtol=1e-9)


class Perturbed:
    """A model of which the input of keys and values at one place is `x + delta`, and no other use of `x` is."""

    def __init__(self, model, place: str):
        self.model, self.delta = model, None
        readers = [module for name, module in attentions_of(model).items() if input_name(name) == place]
        for module in readers:
            for projection in (module.k_proj, module.v_proj):
                projection.register_forward_pre_hook(lambda module, inputs: (inputs[0] + self.delta,))

    def log_probabilities(self, example, delta):
        """`[batch, tokens, vocabulary]` for `[batch, positions, d]` changes."""
        self.delta = delta
        features = example.input_features.expand(len(delta), -1, -1)
        tokens = example.decoder_input_ids.expand(len(delta), -1)
        return log_softmax(self.model(features, decoder_input_ids=tokens).logits, dim=-1)


@pytest.fixture(scope="module")
def sharp():
    """A tiny float64 model with a tiny vocabulary, one example, and its statistics from many draws."""
    model = random_whisper(vocab_size=12, d_model=16, max_source_positions=6).double()
    (example,) = random_examples(model, [5], seed=2)
    return model, example, gather_statistics(model, [example], draws=800)


PLACES = pytest.mark.parametrize(("place", "positions"), [(SELF, 5), (CROSS, 6), (ENCODER, 6)])


@PLACES
def test_gradients_are_the_fisher_information(sharp, place, positions):
    """The sum over the whole vocabulary, by automatic differentiation of every log-probability."""
    model, example, statistics = sharp
    delta = torch.zeros(1, positions, 16, dtype=torch.float64, requires_grad=True)
    log_p = Perturbed(copy.deepcopy(model), place).log_probabilities(example, delta)[0]
    exact = torch.zeros(16, 16, dtype=torch.float64)
    for row in log_p:
        for value in row:
            (slope,) = torch.autograd.grad(value, delta, retain_graph=True)
            exact += value.exp().detach() * slope[0].T @ slope[0]
    exact /= len(log_p)
    found = statistics.inputs[place].gradient
    assert (found - exact).norm() < 0.1 * exact.norm()  # 800 draws
    assert found.trace().item() == pytest.approx(exact.trace().item(), rel=0.1)


@PLACES
def test_kronecker_factors_are_one_turn_over_whole_transcripts(sharp, place, positions):
    """Every log-probability's own gradient, weighted by the probability, instead of random projections."""
    model, example, statistics = sharp
    seen, module = [], next(part for name, part in attentions_of(model).items() if input_name(name) == place)
    handle = module.k_proj.register_forward_hook(lambda module, arguments, output: seen.append(arguments[0]))
    with torch.no_grad():
        forced(model, example)
    handle.remove()
    delta = torch.zeros(1, positions, 16, dtype=torch.float64, requires_grad=True)
    log_p = Perturbed(copy.deepcopy(model), place).log_probabilities(example, delta)[0]
    found = statistics.inputs[place]
    sums = KroneckerSums(found.gradient, found.mean, found.covariance)
    for value in log_p.flatten():
        (slope,) = torch.autograd.grad(value, delta, retain_graph=True)
        sums.update(seen[0], value.exp().detach().sqrt() * slope)
    for name in ("gradient", "covariance"):
        exact = getattr(sums.factors, name)
        assert (getattr(found.kronecker, name) - exact).norm() < 0.15 * exact.norm(), name  # 800 draws


@PLACES
def test_half_the_trace_with_a_covariance_is_the_kl_of_small_errors(sharp, place, positions):
    model, example, statistics = sharp
    mixing = torch.randn(16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mixing *= torch.logspace(0, -2, 16, dtype=torch.float64)[:, None]
    size = 1e-4
    # Every direction of the covariance at every position, one at a time: no cross terms.
    deltas = size * torch.einsum("pq,ij->piqj", torch.eye(positions, dtype=torch.float64), mixing.T).flatten(0, 1)
    perturbed = Perturbed(copy.deepcopy(model), place)
    with torch.no_grad():
        log_p = perturbed.log_probabilities(example, torch.zeros_like(deltas[:1]))
        log_q = perturbed.log_probabilities(example, deltas)
    kl = kl_div(log_q, log_p.expand_as(log_q), log_target=True, reduction="sum") / 5
    gradient = statistics.inputs[place].gradient
    assert kl.item() / size**2 == pytest.approx(0.5 * (gradient * (mixing @ mixing.T)).sum().item(), rel=0.1)


def test_the_model_is_left_as_it_was():
    model = random_whisper()
    model.proj_out.weight.requires_grad_(False)
    model.model.encoder.conv1.bias.grad = torch.ones(32)
    before = copy.deepcopy(model)
    gather_statistics(model, random_examples(model, [4, 6]))
    for (name, tensor), old in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(tensor, old) and tensor.requires_grad == old.requires_grad, name
        expected = torch.ones(32) if name == "model.encoder.conv1.bias" else None
        assert tensor.grad is None if expected is None else torch.equal(tensor.grad, expected)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_model_is_left_as_it_was_after_an_error():
    model = random_whisper()
    before = [parameter.requires_grad for parameter in model.parameters()]
    too_long = Example(torch.zeros(8, 60), torch.arange(50))  # more tokens than positions
    with pytest.raises((IndexError, RuntimeError)):
        gather_statistics(model, [too_long])
    assert [parameter.requires_grad for parameter in model.parameters()] == before and any(before)
    assert not any(module._forward_hooks for module in model.modules())


def test_without_gradients_and_without_encoder():
    model = random_whisper()
    examples = random_examples(model, [4, 6])
    whole, text_only, plain = (
        gather_statistics(model, examples, batch_size=2, **options)
        for options in ({}, {"encoder": False}, {"gradients": False})
    )
    assert all(found.gradient is None and found.kronecker is None for found in plain.inputs.values())
    assert all(found.gradient is not None and found.kronecker is not None for found in whole.inputs.values())
    assert {name for name in whole.inputs if name not in text_only.inputs} == {
        "model.encoder.layers.0.self_attn",
        "model.encoder.layers.1.self_attn",
    }
    assert {name for name in whole.queries if ".encoder." not in name} == set(text_only.queries)
    for name, found in text_only.inputs.items():
        assert torch.equal(found.covariance, plain.inputs[name].covariance)
        assert torch.allclose(found.gradient, whole.inputs[name].gradient, rtol=1e-4, atol=1e-7)


def test_the_seed_decides_the_draws():
    model = random_whisper()
    examples = random_examples(model, [4, 6])
    first, again, other = (gather_statistics(model, examples, seed=seed).inputs[SELF] for seed in (3, 3, 4))
    assert torch.equal(first.gradient, again.gradient) and torch.equal(first.covariance, again.covariance)
    assert not torch.equal(first.gradient, other.gradient)
    assert torch.equal(first.covariance, other.covariance)


def test_bad_input():
    model = random_whisper()
    with pytest.raises(ValueError, match="examples: at least one"):
        gather_statistics(model, [])
    (example,) = random_examples(model, [4])
    loud = Example(example.input_features * float("nan"), example.decoder_input_ids)
    with pytest.raises(ValueError, match="NaN or infinite: calibrate in float32"):
        gather_statistics(model, [loud])


def test_statistics_must_cover_the_latent(tiny, tiny_statistics):
    latents = latents_of(WhisperMLAConfig.from_whisper_config(tiny.config))
    moments = tiny_statistics.moments(next(latent for latent in latents if latent.is_cross))
    assert moments.query.shape == (2, 4, 8, 8) and moments.count == 360
    text_only = gather_statistics(tiny, random_examples(tiny, [4]), encoder=False, gradients=False)
    with pytest.raises(ValueError, match=r"do not cover encoder.layers.0.self_attn: .* with encoder=True"):
        text_only.moments(latents[0])


def test_fewer_clips_at_once_where_the_gradients_of_the_encoder_are_large():
    sizes = {name: SimpleNamespace(config=whisper_config(name)) for name in ("tiny", "medium", "large-v3")}
    assert [batch_size_for(model, True) for model in sizes.values()] == [4, 2, 1]
    assert [batch_size_for(model, False) for model in sizes.values()] == [4, 4, 4]
