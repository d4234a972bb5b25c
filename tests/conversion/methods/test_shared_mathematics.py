"""Decomposition, whitening, value bias, refit, and what is refused."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_mla.conversion.methods import METHODS, covariance, joint_svd, layer_norm
from whisper_mla.conversion.methods.factors import value_bias
from whisper_mla.conversion.methods.weighted_svd import gram_of, right_singular_vectors, whitening
from whisper_mla.conversion.refit.least_squares import refit

from .examples import (
    CASES,
    FLOAT,
    SHAPES,
    generator,
    inputs_of,
    moments_of,
    product,
    random_moments,
    random_weights,
    stack,
)

pytestmark = pytest.mark.numerics


@given(
    rows=st.integers(1, 40),
    width=st.integers(1, 24),
    decay=st.sampled_from([0.0, -1.0, -4.0, -12.0]),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=150, deadline=None)
def test_gram_matrix_against_singular_value_decomposition(rows, width, decay, seed):
    """Singular values down to 1e-12 of the largest, rank-deficient where there are fewer rows than columns."""
    g = generator(seed)
    matrix = torch.randn(rows, width, generator=g, dtype=FLOAT) * torch.logspace(0, decay, width, dtype=FLOAT)
    singular_values, vectors = right_singular_vectors(gram_of(matrix))
    expected = torch.zeros(width, dtype=FLOAT)
    expected[: min(rows, width)] = torch.linalg.svdvals(matrix)
    tolerance = 1e-7 * expected[0].item()
    assert torch.allclose(singular_values, expected, rtol=0, atol=tolerance)
    assert torch.allclose(vectors.T @ vectors, torch.eye(width, dtype=FLOAT), atol=1e-12)
    for rank in {1, (width + 1) // 2, width}:
        residual = torch.linalg.norm(matrix - matrix @ vectors[:, :rank] @ vectors[:, :rank].T).item()
        assert residual <= expected[rank:].square().sum().sqrt().item() + tolerance


def test_rows_of_the_plain_down_projection_are_orthonormal():
    down = joint_svd(random_weights(attentions=2, heads=4, head_dim=4), None, 7).down
    assert torch.allclose(down @ down.T, torch.eye(7, dtype=FLOAT), atol=1e-12)


@given(weights=SHAPES, damping=st.sampled_from([0.0, 1e-3, 1.0]))
@settings(max_examples=25, deadline=None)
def test_whitening(weights, damping):
    moments = random_moments(weights)
    result = whitening(moments.covariance, damping)
    identity = torch.eye(weights.width, dtype=FLOAT)
    expected = moments.covariance + damping * moments.covariance.trace() / weights.width * identity
    assert torch.allclose(result.covariance, expected, atol=1e-10)
    assert torch.allclose(result.root @ result.root, expected, atol=1e-10)
    assert torch.allclose(result.root @ result.inverse, identity, atol=1e-6)
    assert torch.allclose(result.root, result.root.T, atol=1e-12)


def test_what_whitening_refuses():
    identity = torch.eye(3, dtype=FLOAT)
    with pytest.raises(ValueError, match=r"damping=-0\.1: expected 0 or more"):
        whitening(identity, -0.1)
    with pytest.raises(ValueError, match="damping=nan"):
        whitening(identity, float("nan"))
    with pytest.raises(ValueError, match="negative eigenvalue -2"):
        whitening(torch.diag(torch.tensor([4.0, 1.0, -2.0])), 0.01)
    with pytest.raises(ValueError, match="inputs do not vary"):
        whitening(0 * identity, 0.01)


@pytest.mark.parametrize(("name", "options"), CASES)
@given(weights=SHAPES, data=st.data())
@settings(max_examples=15, deadline=None)
def test_value_bias_restores_the_mean(name, options, weights, data):
    """Over a finite population the mean value is that of the stock model; so is the value of the mean itself."""
    rank = data.draw(st.integers(1, weights.width))
    inputs = inputs_of(weights, 30)
    moments = moments_of(weights, inputs)
    factors = METHODS[name](weights, moments, rank, **options)
    bias = value_bias(weights, factors)
    assert bias.shape == (weights.num_attentions, weights.width)
    if name == "joint_svd":
        assert factors.mean is None
        assert not bias.any()
        return
    population = inputs if name != "layer_norm" else inputs - moments.mean + weights.norm_bias
    stock = torch.einsum("lij,nj->lni", weights.value, population).mean(1)
    latents = population @ factors.down.T
    converted = (torch.einsum("lir,nr->lni", factors.value_up, latents) + bias[:, None]).mean(1)
    assert torch.allclose(converted, stock, atol=1e-9)


def test_value_bias_between_two_inputs():
    weights = random_weights(attentions=2)
    inputs, changed = inputs_of(weights, 30, seed=1), inputs_of(weights, 30, seed=2)
    factors = covariance(weights, moments_of(weights, changed), 3)
    bias = value_bias(weights, factors, stock_mean=inputs.mean(0).float())
    stock = torch.einsum("lij,nj->lni", weights.value, inputs).mean(1)
    converted = torch.einsum("lir,nr->lni", factors.value_up, changed @ factors.down.T).mean(1) + bias
    assert torch.allclose(converted, stock, atol=1e-5)


def centred(inputs):
    return inputs - inputs.mean(0)


@given(weights=SHAPES, data=st.data())
@settings(max_examples=30, deadline=None)
def test_refit_is_least_squares(weights, data):
    rank = data.draw(st.integers(1, weights.width))
    stock, new = centred(inputs_of(weights, 40, seed=1)), centred(inputs_of(weights, 40, seed=1))
    new = new + 0.3 * centred(inputs_of(weights, 40, seed=2))
    down = joint_svd(weights, None, rank).down
    up = refit(stack(weights), down, stock.T @ new / 40, new.T @ new / 40, damping=0.0)
    expected = torch.linalg.lstsq(new @ down.T, stock @ stack(weights).T).solution.T
    assert torch.allclose(up, expected, atol=1e-6)


@given(weights=SHAPES, data=st.data())
@settings(max_examples=20, deadline=None)
def test_refit_changes_nothing_where_the_inputs_did_not_change(weights, data):
    rank = data.draw(st.integers(1, weights.width))
    moments = random_moments(weights)
    factors = covariance(weights, moments, rank)
    up = refit(weights.key[0], factors.down, moments.covariance, moments.covariance)
    assert torch.allclose(up, factors.key_up[0], atol=1e-9)


def test_refit_without_data_falls_back_to_the_weights():
    """Two vectors say nothing about most directions: damping keeps the weights there instead of forgetting them."""
    weights = random_weights(heads=2, head_dim=4)
    few = centred(inputs_of(weights, 2))
    second_moment = few.T @ few / 2
    identity = torch.eye(8, dtype=FLOAT)
    assert torch.allclose(refit(weights.key[0], identity, second_moment, second_moment), weights.key[0], atol=1e-9)
    with pytest.raises(ValueError, match="no full rank"):
        refit(weights.key[0], identity, second_moment, second_moment, damping=0.0)
    with pytest.raises(ValueError, match=r"cross has shape \[3, 8\]: expected \[8, 8\]"):
        refit(weights.key[0], identity, second_moment[:3], second_moment)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("rank", [-1, 0, 7])
def test_rank_out_of_range(name, options, rank):
    weights = random_weights()
    with pytest.raises(ValueError, match=f"rank={rank}: expected 1 to 6"):
        METHODS[name](weights, random_moments(weights), rank, **options)


def test_truncation_out_of_range():
    factors = layer_norm(random_weights(), None, 4)
    assert factors.truncated(4) is factors
    for rank in (0, 5):
        with pytest.raises(ValueError, match=f"rank={rank}: expected 1 to 4"):
            factors.truncated(rank)


def test_weights_that_do_not_fit():
    weights = random_weights()
    with pytest.raises(ValueError, match=r"key has shape \[6, 6\]"):
        replace(weights, key=weights.key[0])
    with pytest.raises(ValueError, match=r"output has shape \[1, 6, 5\]: expected \[1, 6, 6\]"):
        replace(weights, output=weights.output[..., :5])
    with pytest.raises(ValueError, match=r"norm_bias has shape \[5\]: expected \[6\]"):
        replace(weights, norm_bias=weights.norm_bias[:5])
    with pytest.raises(ValueError, match="num_heads=4: expected a divisor of d = 6"):
        replace(weights, num_heads=4)


def test_statistics_that_do_not_fit():
    weights = random_weights()
    moments = random_moments(weights)
    with pytest.raises(ValueError, match="count=0"):
        replace(moments, count=0)
    with pytest.raises(ValueError, match=r"covariance has shape \[6, 5\]"):
        replace(moments, covariance=moments.covariance[:, :5])
    with pytest.raises(ValueError, match=r"query has shape \[2, 3, 3\]"):
        replace(moments, query=moments.query[0])
    with pytest.raises(ValueError, match="covariance holds NaN"):
        replace(moments, covariance=moments.covariance / 0 * 0)
    with pytest.raises(ValueError, match=r"mean has shape \[6\]: expected \[4\]"):
        covariance(random_weights(heads=2, head_dim=2), moments, 2)
    with pytest.raises(ValueError, match=r"query has shape \[1, 2, 3, 3\]: expected \[2, 2, 3, 3\]"):
        covariance(random_weights(attentions=2), moments, 2)


@pytest.mark.parametrize("balance", [0.0, -1.0, float("nan"), float("inf")])
def test_balance_out_of_range(balance):
    weights = random_weights()
    with pytest.raises(ValueError, match=f"balance={balance}: expected a positive number"):
        METHODS["attention"](weights, random_moments(weights), 3, balance=balance)


def test_weights_of_zeros():
    weights = random_weights()
    nothing = replace(weights, key=0 * weights.key, value=0 * weights.value)
    for name, options in [case for case in CASES if case[0] != "fisher"]:  # which then has no gradient either
        factors = METHODS[name](nothing, random_moments(weights), 2, **options)
        assert torch.isfinite(factors.down).all()
        assert not product(factors).any()
        assert factors.relative_error == 0.0
