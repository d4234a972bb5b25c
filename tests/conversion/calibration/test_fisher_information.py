import copy

import pytest
import torch
from torch.func import functional_call, jacrev
from torch.nn.functional import log_softmax

from tests.conftest import random_whisper
from tests.conversion.tiny import random_examples
from whisper_mla.conversion.calibration.fisher_information import FisherInformation

pytestmark = pytest.mark.numerics

NAMES = [
    "model.decoder.layers.0.self_attn.k_proj.weight",
    "model.decoder.layers.1.self_attn.v_proj.weight",
    "model.decoder.layers.1.self_attn.v_proj.bias",
    "model.decoder.layers.0.encoder_attn.k_proj.weight",
]


@pytest.fixture(scope="module")
def sharp():
    """A tiny float64 model with a tiny vocabulary, and examples of unequal length."""
    model = random_whisper(vocab_size=12, d_model=16, max_source_positions=6).double()
    return model, random_examples(model, [5, 3, 7], seed=2)


def random_change(model, seed=0, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    weights = dict(model.named_parameters())
    return {name: size * torch.randn(weights[name].shape, dtype=torch.float64, generator=generator) for name in NAMES}


def logits(model, examples, weights):
    """Of all predicted tokens: each example alone, without those that predict the prompt."""
    rows = []
    for example in examples:
        inputs = {"input_features": example.input_features[None], "decoder_input_ids": example.decoder_input_ids[None]}
        output = functional_call(model, weights, kwargs=inputs).logits[0]
        rows.append(output[example.prompt_length - 1 :])
    return torch.cat(rows)


def test_it_is_the_information_of_all_tokens_and_outcomes(sharp):
    """Against the Jacobian of every logit."""
    model, examples = copy.deepcopy(sharp[0]), sharp[1]
    model.set_attn_implementation("eager")
    weights = {name: dict(model.named_parameters())[name].detach() for name in NAMES}
    jacobians = jacrev(lambda changed: logits(model, examples, changed))(weights)
    jacobian = torch.cat([jacobians[name].flatten(2) for name in NAMES], dim=2)  # [tokens, vocabulary, unknowns]
    p = logits(model, examples, weights).softmax(dim=-1)
    mean = (p[..., None] * jacobian).sum(dim=1, keepdim=True)
    change = random_change(model)
    slopes = (jacobian - mean) @ torch.cat([change[name].flatten() for name in NAMES])
    expected = torch.einsum("tv,tvn,tv->n", p, jacobian - mean, slopes) / len(p)
    found = FisherInformation(*sharp).times(change)
    assert list(found) == NAMES
    torch.testing.assert_close(torch.cat([found[name].flatten() for name in NAMES]), expected, rtol=1e-6, atol=1e-9)


def test_half_the_product_is_the_kl_of_a_small_change(sharp):
    model, examples = sharp
    change = random_change(model, size=1e-4)
    weights = {name: dict(model.named_parameters())[name].detach() for name in NAMES}
    changed = {name: weight + change[name] for name, weight in weights.items()}
    with torch.no_grad():
        log_p, log_q = (log_softmax(logits(model, examples, tensors), dim=-1) for tensors in (weights, changed))
    kl = (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean().item()
    product = FisherInformation(model, examples).times(change)
    found = sum((change[name] * product[name]).sum().item() for name in NAMES) / 2
    assert found == pytest.approx(kl, rel=2e-2) and kl > 0


@pytest.mark.parametrize("outside", [torch.no_grad, torch.enable_grad])
def test_it_does_not_depend_on_what_the_caller_records(sharp, outside):
    change = random_change(sharp[0])
    with outside():
        found = FisherInformation(*sharp).times(change)
    expected = FisherInformation(*sharp).times(change)
    assert all(torch.equal(found[name], expected[name]) for name in NAMES)
    assert not any(tensor.requires_grad for tensor in found.values())


def test_batches_do_not_matter(sharp):
    change = random_change(sharp[0])
    alone, together = (FisherInformation(*sharp, batch_size=size).times(change) for size in (1, 3))
    for name in NAMES:
        torch.testing.assert_close(alone[name], together[name], rtol=1e-9, atol=1e-12)


def test_the_model_stays_as_it_is():
    model = random_whisper()
    examples = random_examples(model, [5, 3])
    model.model.decoder.layer_norm.weight.requires_grad_(False)
    before, asks = copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
    FisherInformation(model, examples).times(random_change(model))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == asks and all(p.grad is None for p in model.parameters())
    assert model.config._attn_implementation == "sdpa"
