"""What every method promises: the best factorisation of its rank in its own norm."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_mla.conversion.methods import METHODS

from .examples import CASES, FLOAT, SHAPES, generator, own_norm, product, random_moments, stack

pytestmark = pytest.mark.numerics

every_method = pytest.mark.parametrize(("name", "options"), CASES)


def norm_in(weighting, error) -> float:
    left, root = weighting
    return torch.linalg.norm(left @ error @ root).item()


@every_method
@given(weights=SHAPES, data=st.data())
@settings(max_examples=25, deadline=None)
def test_error_is_the_tail_of_the_squared_singular_values(name, options, weights, data):
    moments = random_moments(weights)
    rank = data.draw(st.integers(1, weights.width))
    factors = METHODS[name](weights, moments, rank, **options)
    weighting = own_norm(name, weights, moments, options)
    singular_values = torch.linalg.svdvals(weighting[0] @ stack(weights) @ weighting[1])
    largest = singular_values[0].item()
    # Roots of Gram matrices keep half of the digits: sqrt(width * eps) is 4e-8 here, and random examples come near it.
    assert torch.allclose(factors.singular_values, singular_values, rtol=0, atol=1e-6 * largest)
    error = norm_in(weighting, stack(weights) - product(factors))
    assert error == pytest.approx(singular_values[rank:].square().sum().sqrt().item(), abs=1e-6 * largest)
    assert factors.squared_error**0.5 == pytest.approx(error, abs=1e-6 * largest)
    assert factors.relative_error == pytest.approx(error / norm_in(weighting, stack(weights)), abs=1e-6)


@every_method
@given(weights=SHAPES)
@settings(max_examples=20, deadline=None)
def test_zero_at_full_rank_and_monotone(name, options, weights):
    moments = random_moments(weights)
    weighting = own_norm(name, weights, moments, options)
    full = METHODS[name](weights, moments, weights.width, **options)
    assert torch.allclose(product(full), stack(weights), rtol=0, atol=1e-11)
    assert full.squared_error == full.relative_error == 0.0
    ranks = range(1, weights.width + 1)
    errors = [norm_in(weighting, stack(weights) - product(full.truncated(rank))) for rank in ranks]
    assert all(after <= before + 1e-9 for before, after in pairwise(errors))


@every_method
@given(weights=SHAPES, data=st.data())
@settings(max_examples=5, deadline=None)
def test_none_of_100_other_factorisations_is_better(name, options, weights, data):
    moments = random_moments(weights)
    rank = data.draw(st.integers(1, weights.width))
    factors = METHODS[name](weights, moments, rank, **options)
    weighting = own_norm(name, weights, moments, options)
    error = norm_in(weighting, stack(weights) - product(factors))
    g = generator(rank)
    up = torch.cat([factors.key_up, factors.value_up], dim=1).flatten(0, 1)
    for attempt in range(100):
        noise = torch.randn(factors.down.shape, generator=g, dtype=FLOAT)
        other = noise if attempt % 2 else factors.down + 10.0 ** -(attempt % 5) * noise
        if attempt % 4 < 2:  # the best up projection there is for that down projection
            projected, target = other @ weighting[1], stack(weights) @ weighting[1]
            approximation = torch.linalg.lstsq(projected.T, target.T).solution.T @ other
        else:
            approximation = (up + 10.0 ** -(attempt % 5) * torch.randn(up.shape, generator=g, dtype=FLOAT)) @ other
        assert norm_in(weighting, stack(weights) - approximation) >= error - 1e-9


@every_method
@given(weights=SHAPES, data=st.data())
@settings(max_examples=10, deadline=None)
def test_one_decomposition_serves_all_ranks(name, options, weights, data):
    moments = random_moments(weights)
    rank = data.draw(st.integers(1, weights.width))
    once = METHODS[name](weights, moments, weights.width, **options).truncated(rank)
    again = METHODS[name](weights, moments, rank, **options)
    assert once.down.shape == again.down.shape == (rank, weights.width)
    assert torch.allclose(product(once), product(again), atol=1e-9)
    assert torch.equal(once.singular_values, again.singular_values)


@every_method
def test_float64_whatever_the_weights_and_nothing_is_changed(name, options):
    from .examples import random_weights

    weights = random_weights(attentions=2, seed=5)
    tensors = {key: value.to(torch.bfloat16) for key, value in vars(weights).items() if key != "num_heads"}
    low = type(weights)(**tensors, num_heads=weights.num_heads)
    moments = random_moments(weights)
    before = {key: value.clone() for key, value in tensors.items()}
    factors = METHODS[name](low, moments, 3, **options)
    assert {factors.down.dtype, factors.key_up.dtype, factors.value_up.dtype} == {FLOAT}
    assert factors.mean is None or factors.mean.dtype == FLOAT
    assert all(torch.equal(before[key], tensors[key]) for key in before)
    high = type(weights)(**{key: value.double() for key, value in tensors.items()}, num_heads=weights.num_heads)
    assert torch.allclose(product(factors), product(METHODS[name](high, moments, 3, **options)), atol=1e-10)
