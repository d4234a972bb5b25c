import copy
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import kl_div, log_softmax

from tests.conftest import random_whisper
from tests.conversion.tiny import forced, random_examples
from tests.rounding import same_divergence
from whisper_mla.conversion import METHODS, from_whisper
from whisper_mla.conversion.methods.apply_factors import approximated
from whisper_mla.conversion.methods.factorise import Decompositions
from whisper_mla.conversion.ranks.quality import HeldOut
from whisper_mla.conversion.source.latents import latents_of

pytestmark = pytest.mark.numerics

RANKS = {"kv_rank": [8, 20], "cross_kv_rank": 12, "audio_kv_rank": 16}


@pytest.fixture(scope="module")
def examples(tiny):
    return random_examples(tiny, [6, 11, 4], seed=9, prompt_length=3)


@pytest.mark.parametrize("same_encoder", [True, False])
def test_a_model_is_no_distance_from_itself(tiny, examples, same_encoder):
    quality = HeldOut(tiny, examples).measure(copy.deepcopy(tiny), same_encoder)
    assert (quality.kl, quality.token_agreement) == (0.0, 1.0)


def test_the_exact_conversion_is_no_distance_away(tiny, examples):
    quality = HeldOut(tiny, examples).measure(from_whisper(tiny))
    assert quality.kl < 1e-9 and quality.token_agreement == 1.0


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_kl_and_agreement_by_hand(tiny, examples, batch_size):
    """Token by token, without batches; what predicts the prompt is left out, what predicts the first word is not."""
    other = from_whisper(tiny, kv_rank=8, cross_kv_rank=8)
    kls, agreeing = [], []
    for example in examples:
        log_p, log_q = (log_softmax(forced(model, example).double(), dim=-1) for model in (tiny, other))
        for p, q in zip(log_p[2:], log_q[2:], strict=True):  # a prompt of 3
            kls.append(kl_div(q, p, log_target=True, reduction="sum").item())
            agreeing.append(bool(p.argmax() == q.argmax()))
    quality = HeldOut(tiny, examples, batch_size).measure(other)
    assert quality.tokens == len(kls) == (6 + 11 + 4) - 3 * 2
    assert same_divergence(quality.kl, sum(kls) / len(kls)) and quality.kl > 0.01
    assert quality.token_agreement == sum(agreeing) / len(agreeing) < 1


def test_the_encoder_counts_unless_it_is_the_same(tiny, examples):
    held_out = HeldOut(tiny, examples)
    other = from_whisper(tiny, audio_kv_rank=4)
    assert held_out.measure(other, same_encoder=True).kl < 1e-9 < 1e-4 < held_out.measure(other).kl


def test_at_least_one_example(tiny):
    with pytest.raises(ValueError, match="at least one held-out example"):
        HeldOut(tiny, [])


def factors_of(model, statistics, method):
    config = from_whisper(model, **RANKS).config
    decompositions = Decompositions(method, {}, model.state_dict(), statistics, torch.device("cpu"))
    return {latent: decompositions.of(latent, latent.rank) for latent in latents_of(config)}


@pytest.mark.parametrize("method", METHODS)
def test_an_approximated_model_predicts_what_the_converted_one_does(tiny, tiny_statistics, examples, method):
    options = {"fisher": {"floor": 0.1}, "attention": {"balance": 1.0}}.get(method, {})
    converted = from_whisper(tiny, **RANKS, method=method, calibration=tiny_statistics, force=True, **options)
    before = copy.deepcopy(tiny.state_dict())
    with approximated(tiny, factors_of(tiny, tiny_statistics, method)) as model:
        logits = [forced(model, example) for example in examples]
    for example, found in zip(examples, logits, strict=True):
        assert torch.allclose(found, forced(converted, example), atol=2e-4)
        assert not torch.allclose(found, forced(tiny, example), atol=0.1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.state_dict().items())


def test_the_weights_come_back_after_an_error(tiny_statistics):
    model = random_whisper()
    before = copy.deepcopy(model.state_dict())
    factors = factors_of(model, tiny_statistics, "covariance")
    with pytest.raises(KeyError, match="halfway"), approximated(model, factors):
        changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
        assert len(changed) == 3 * 6  # keys, values and value biases of every attention
        raise KeyError("halfway")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_weights_come_back_after_an_error_while_they_are_written(tiny_statistics):
    model = random_whisper()
    before = copy.deepcopy(model.state_dict())
    factors = factors_of(model, tiny_statistics, "covariance")
    last = next(reversed(factors))
    factors[last] = replace(factors[last], down=factors[last].down[:, :-1])
    with pytest.raises(RuntimeError), approximated(model, factors):
        pass
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
