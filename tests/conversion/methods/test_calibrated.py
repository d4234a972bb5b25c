"""How the methods that look at inputs treat them: equivalences, invariances, and too little data."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_mla.conversion.calibration.kronecker import KroneckerFactors
from whisper_mla.conversion.calibration.moments import Moments
from whisper_mla.conversion.methods import METHODS, attention, covariance, fisher, joint_svd, layer_norm, needs_moments

from .examples import (
    FLOAT,
    SHAPES,
    generator,
    inputs_of,
    moments_of,
    own_norm,
    product,
    random_moments,
    random_weights,
    stack,
)

pytestmark = pytest.mark.numerics

CALIBRATED = ("covariance", "attention", "fisher")


def white_moments(weights) -> Moments:
    return replace(
        random_moments(weights),
        mean=torch.zeros(weights.width, dtype=FLOAT),
        covariance=torch.eye(weights.width, dtype=FLOAT),
    )


@given(weights=SHAPES, data=st.data())
@settings(max_examples=25, deadline=None)
def test_covariance_with_identity_statistics_is_joint_svd(weights, data):
    rank = data.draw(st.integers(1, weights.width))
    plain = product(joint_svd(weights, None, rank))
    white = white_moments(weights)
    for damping in (0.0, 0.5):
        assert torch.allclose(product(covariance(weights, white, rank, balance=False, damping=damping)), plain)
    one = replace(weights, norm_weight=torch.ones(weights.width))
    assert torch.allclose(product(layer_norm(one, None, rank, balance=False)), plain)


@given(weights=SHAPES, data=st.data())
@settings(max_examples=15, deadline=None)
def test_attention_with_white_queries_and_orthogonal_output_is_covariance(weights, data):
    rank = data.draw(st.integers(1, weights.width))
    moments = random_moments(weights)
    white = replace(moments, query=torch.eye(weights.head_dim, dtype=FLOAT).expand_as(moments.query))
    orthogonal = replace(weights, output=torch.linalg.qr(weights.output).Q)
    assert torch.allclose(
        product(attention(orthogonal, white, rank)), product(covariance(weights, moments, rank)), atol=1e-8
    )


@pytest.mark.parametrize("name", CALIBRATED)
@given(weights=SHAPES, scale=st.sampled_from([1e-6, 1e-2, 7.0, 1e5]), data=st.data())
@settings(max_examples=15, deadline=None)
def test_the_scale_of_x_does_not_matter(name, weights, scale, data):
    rank = data.draw(st.integers(1, weights.width))
    moments = random_moments(weights)
    scaled = replace(
        moments,
        mean=scale * moments.mean,
        covariance=scale**2 * moments.covariance,
        gradient=moments.gradient / scale**2,
    )
    louder = replace(scaled, query=scale**2 * moments.query)  # self-attention: the queries grow as well
    expected = METHODS[name](weights, moments, rank)
    for other in (scaled, louder):
        factors = METHODS[name](weights, other, rank)
        assert torch.allclose(product(factors), product(expected), atol=1e-8)
        assert factors.relative_error == pytest.approx(expected.relative_error, abs=1e-6)


def test_balancing_protects_the_smaller_block():
    weights = random_weights(heads=2, head_dim=6, seed=3)
    weights = replace(weights, value=1e-4 * weights.value)
    moments = random_moments(weights)

    def value_error(factors):
        return torch.linalg.norm(weights.value[0] - factors.value_up[0] @ factors.down)

    assert value_error(covariance(weights, moments, 4)) < 0.9 * value_error(
        covariance(weights, moments, 4, balance=False)
    )


def test_more_balance_favours_scores_over_outputs():
    weights = random_weights(heads=2, head_dim=6, seed=4)
    moments = random_moments(weights)
    left, root = own_norm("attention", weights, moments, {})
    scores, outputs = [], []
    for balance in (0.1, 1.0, 10.0):
        factors = attention(weights, moments, 6, balance=balance)
        error = (left @ (stack(weights) - product(factors)) @ root).square().sum(-1)
        scores.append(error[:12].sum().item())
        outputs.append(error[12:].sum().item())
    assert scores[0] > 1.2 * scores[1] > 1.4 * scores[2]
    assert outputs[2] > 1.2 * outputs[1] > 1.4 * outputs[0]


def test_queries_and_outputs_decide_what_attention_keeps():
    """A key direction that no query asks for, and a value head that the output ignores, cost nothing."""
    weights = random_weights(heads=2, head_dim=4, seed=6)
    moments = random_moments(weights)
    query = moments.query.clone()
    query[0, 0] = torch.zeros(4, 4, dtype=FLOAT)
    query[0, 0, 2, 2] = 1.0  # of head 0 only dimension 2 is asked for
    output = weights.output.clone()
    output[..., 4:] = 0  # head 1 of the values is ignored
    rank = 1 + 4 + 4  # dimension 2 of head 0's keys, head 1's keys, head 0's values: does not fit in d = 8
    weights, moments = replace(weights, output=output), replace(moments, query=query)
    factors = attention(weights, moments, 8)
    assert torch.allclose(product(factors), stack(weights), atol=1e-11)  # L is singular, yet exact at rank d
    assert rank > 8
    query[0, 1] = 0  # now 1 + 4 rows count
    factors = attention(weights, replace(moments, query=query), 5)
    assert torch.allclose((factors.key_up @ factors.down)[0, 2], weights.key[0, 2], atol=1e-6)
    assert torch.allclose((factors.value_up @ factors.down)[0, :4], weights.value[0, :4], atol=1e-6)
    assert not torch.allclose((factors.key_up @ factors.down)[0, 1], weights.key[0, 1], atol=1e-2)
    assert factors.relative_error < 1e-6


@pytest.mark.parametrize("name", CALIBRATED)
@pytest.mark.parametrize("count", [2, 3, 5])
def test_fewer_vectors_than_dimensions_work_with_damping(name, count):
    weights = random_weights(attentions=2, heads=2, head_dim=4, seed=count)
    moments = moments_of(weights, inputs_of(weights, count))
    rank = count - 1  # the directions that were seen
    factors = METHODS[name](weights, moments, rank, damping=1e-6)
    seen = torch.linalg.cholesky(moments.covariance + 1e-12 * torch.eye(8, dtype=FLOAT))
    error = torch.linalg.norm((stack(weights) - product(factors)) @ seen)
    assert error < 1e-2 * torch.linalg.norm(stack(weights) @ seen)
    full = METHODS[name](weights, moments, 8)
    assert torch.allclose(product(full), stack(weights), atol=1e-10)
    with pytest.raises(ValueError, match=r"damping=0.*no full rank.*damping=0\.01"):
        METHODS[name](weights, moments, rank, damping=0)


@pytest.mark.parametrize("name", CALIBRATED)
def test_one_vector_or_constant_inputs_are_refused(name):
    weights = random_weights(seed=8)
    for inputs in (inputs_of(weights, 1), inputs_of(weights, 1).expand(50, -1)):
        with pytest.raises(ValueError, match="inputs do not vary"):
            METHODS[name](weights, moments_of(weights, inputs), 2)
    moments = random_moments(weights)
    rounding = replace(moments, covariance=1e-15 * moments.mean.square().mean() * torch.eye(6, dtype=FLOAT))
    with pytest.raises(ValueError, match="inputs do not vary"):
        METHODS[name](weights, rounding, 2)


@pytest.mark.parametrize("name", ["layer_norm", *CALIBRATED])
def test_dead_projections_and_near_singular_weights_work(name):
    weights = random_weights(attentions=2, heads=2, head_dim=4, seed=9)
    key, output, gamma = weights.key.clone(), weights.output.clone(), weights.norm_weight.clone()
    key[0] = 0
    output[:, :, 3] = 1e-12 * output[:, :, 2]
    gamma[1] = 0
    weights = replace(weights, key=key, output=output, norm_weight=gamma)
    moments = random_moments(weights)
    query = moments.query.clone()
    query[1] = 0
    moments = replace(moments, query=query + 1e-14)
    for rank in (1, 4, 8):
        factors = METHODS[name](weights, moments, rank)
        assert torch.isfinite(product(factors)).all()
        assert torch.linalg.norm(stack(weights) - product(factors)) < 20 * torch.linalg.norm(stack(weights))
    assert torch.allclose(product(factors), stack(weights), atol=1e-10)


def test_fisher_keeps_what_predictions_depend_on():
    weights = random_weights(heads=2, head_dim=4, seed=11)
    moments = random_moments(weights)
    only = torch.randn(8, generator=generator(1), dtype=FLOAT)
    moments = replace(moments, gradient=torch.outer(only, only))
    factors = fisher(weights, moments, 1, floor=0.0)
    decode = torch.linalg.solve(weights.key[0], factors.key_up[0])  # x is rebuilt as decode @ down @ x
    assert torch.allclose(only @ decode @ factors.down, only, atol=1e-9)
    assert factors.relative_error < 1e-6
    kept = fisher(weights, moments, 1, floor=1e9)
    assert torch.allclose(product(kept), product(attention(weights, moments, 1)), atol=1e-6)


def test_fisher_counts_in_nats():
    """Half the lost squared norm is the quadratic form of the gradient on the error of x, over a finite population."""
    weights = random_weights(heads=2, head_dim=4, seed=12)
    inputs = inputs_of(weights, 60)
    moments = moments_of(weights, inputs)
    factors = fisher(weights, moments, 4, damping=1e-9, floor=0.0)
    decode = torch.linalg.solve(weights.value[0], factors.value_up[0])
    centred = inputs - moments.mean
    error = centred - centred @ factors.down.T @ decode.T
    divergence = 0.5 * (error @ moments.gradient * error).sum(-1).mean()
    assert factors.squared_error / 2 == pytest.approx(divergence.item(), rel=1e-5)


def test_fisher_takes_the_mean_of_both_estimates():
    weights = random_weights(heads=2, head_dim=4, seed=13)
    moments, other = random_moments(weights), random_moments(weights, seed=5)
    factors = KroneckerFactors(2 * moments.gradient.flip(0, 1), other.covariance)
    found = fisher(weights, replace(moments, kronecker=factors), 3)
    mean = replace(
        moments,
        gradient=(moments.gradient + factors.gradient) / 2,
        covariance=(moments.covariance + factors.covariance) / 2,
    )
    assert torch.allclose(product(found), product(fisher(weights, mean, 3)), atol=1e-9)
    assert not torch.allclose(product(found), product(fisher(weights, moments, 3)), atol=1e-2)


def test_fisher_without_usable_gradients():
    weights = random_weights()
    moments = random_moments(weights)
    with pytest.raises(ValueError, match="gradient=None: fisher needs statistics with gradients"):
        fisher(weights, replace(moments, gradient=None), 2)
    with pytest.raises(ValueError, match="gradient is zero"):
        fisher(weights, replace(moments, gradient=0 * moments.gradient), 2)
    with pytest.raises(ValueError, match=r"floor=-0\.1: expected 0 or more"):
        fisher(weights, moments, 2, floor=-0.1)
    with pytest.raises(ValueError, match=r"gradient has shape \[5, 6\]: expected \[6, 6\]"):
        replace(moments, gradient=moments.gradient[:5])
    factors = KroneckerFactors(moments.gradient, moments.covariance[:5])
    with pytest.raises(ValueError, match=r"kronecker.covariance has shape \[5, 6\]: expected \[6, 6\]"):
        replace(moments, kronecker=factors)


def test_attentions_that_share_a_latent_count_alike():
    """Copies of one attention change nothing, in whatever units each of them is written."""
    single = random_weights(seed=10)
    moments = random_moments(single)
    copies = replace(
        single,
        **{kind: torch.cat([getattr(single, kind), getattr(single, kind)]) for kind in ("query", "output")},
        key=torch.cat([single.key, 100 * single.key]),
        value=torch.cat([single.value, 0.01 * single.value]),
    )
    both = replace(moments, query=moments.query.repeat(2, 1, 1, 1))
    for method in (covariance, attention):
        expected, factors = method(single, moments, 3), method(copies, both, 3)
        assert torch.allclose(factors.key_up[0] @ factors.down, expected.key_up[0] @ expected.down, atol=1e-9)
        assert torch.allclose(factors.key_up[1], 100 * factors.key_up[0], atol=1e-9)
        assert torch.allclose(factors.value_up[1], 0.01 * factors.value_up[0], atol=1e-9)


def test_which_methods_need_statistics():
    assert {name for name in METHODS if needs_moments(name)} == {"covariance", "attention", "fisher"}
    weights = random_weights()
    for name in METHODS:
        if needs_moments(name):
            with pytest.raises(ValueError, match=f"moments=None: {name} needs statistics"):
                METHODS[name](weights, None, 3)
        else:
            METHODS[name](weights, None, 3)
