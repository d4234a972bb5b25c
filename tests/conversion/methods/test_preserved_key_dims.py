"""The paper's initialisation: some key dimensions of every head are kept exactly."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_mla.conversion.methods import joint_svd
from whisper_mla.conversion.methods.joint_svd import preserved_rows

from .examples import FLOAT, generator, product, random_moments, random_weights, stack

pytestmark = pytest.mark.numerics

SELECTIONS = ("uniform", "2-norm")


@st.composite
def problems(draw):
    weights = random_weights(1, draw(st.integers(1, 3)), draw(st.integers(3, 5)), draw(st.integers(0, 10_000)))
    dims = draw(st.integers(1, weights.head_dim - 2))
    rank = draw(st.integers(weights.num_heads * dims + 1, weights.width - 1))
    return weights, dims, rank, draw(st.sampled_from(SELECTIONS))


def factorise(weights, dims, rank, selection):
    return joint_svd(weights, random_moments(weights), rank, preserved_key_dims=dims, preserved_key_selection=selection)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@given(problem=problems())
@settings(max_examples=25, deadline=None)
def test_preserved_keys_are_bit_equal_and_stay_in_their_head(dtype, problem):
    weights, dims, rank, selection = problem
    stock = weights.key[0].to(dtype)
    weights = replace(weights, key=stock[None].to(FLOAT))
    factors = factorise(weights, dims, rank, selection)
    rows = preserved_rows(weights, random_moments(weights), dims, selection)
    assert (rows // weights.head_dim).bincount().tolist() == [dims] * weights.num_heads
    down, key_up = factors.down.to(dtype), factors.key_up[0].to(dtype)
    x = torch.randn(7, weights.width, generator=generator(rank)).to(dtype)
    for position, row in enumerate(rows.tolist()):
        one_hot = torch.zeros(rank, dtype=dtype)
        one_hot[position] = 1
        assert torch.equal(key_up[row], one_hot)
        latent = (x[:, None] * down).sum(-1)  # every row summed in the same order, whatever the number of rows
        assert torch.equal(latent @ key_up[row], (x * stock[row]).sum(-1))
    rest = [row for row in range(weights.width) if row not in rows.tolist()]
    assert not factors.key_up[0, rest, : len(rows)].any()
    assert not factors.value_up[0, :, : len(rows)].any()


@given(problem=problems())
@settings(max_examples=40, deadline=None)
def test_the_rest_is_the_best_joint_factorisation(problem):
    weights, dims, rank, selection = problem
    factors = factorise(weights, dims, rank, selection)
    rows = preserved_rows(weights, random_moments(weights), dims, selection)
    others = torch.ones(2 * weights.width, dtype=torch.bool)
    others[rows] = False
    singular_values = torch.linalg.svdvals(stack(weights)[others])
    assert torch.allclose(factors.singular_values, singular_values, rtol=0, atol=1e-7 * singular_values[0].item())
    error = torch.linalg.norm(stack(weights) - product(factors)).item()
    tail = singular_values[rank - len(rows) :].square().sum().sqrt().item()
    assert error == pytest.approx(tail, abs=1e-7 * singular_values[0].item())
    assert factors.squared_error**0.5 == pytest.approx(error, abs=1e-6)
    assert factors.preserved_rank == len(rows)
    full = factorise(weights, dims, weights.width - 1, selection)
    assert torch.allclose(product(full.truncated(rank)), product(factors), atol=1e-10)
    smallest = len(rows) + 1
    if full.rank > smallest:
        with pytest.raises(ValueError, match=f"rank={len(rows)}: expected {smallest} to"):
            full.truncated(len(rows))


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("dims", [1, 3])
def test_exact_at_full_rank(dims, selection):
    weights = random_weights(heads=2, head_dim=3)
    factors = factorise(weights, dims, 6, selection)
    assert torch.equal(product(factors), stack(weights))
    assert factors.relative_error == 0
    assert factors.truncated(6) is factors
    with pytest.raises(ValueError, match=r"rank=5.*cannot be truncated"):
        factors.truncated(5)


def test_uniform_is_evenly_spaced_in_every_head():
    weights = random_weights(heads=2, head_dim=8)
    assert preserved_rows(weights, None, 4, "uniform").tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
    assert preserved_rows(weights, None, 3, "uniform").tolist() == [0, 2, 5, 8, 10, 13]


def test_2_norm_takes_what_queries_and_keys_are_largest_in():
    weights = random_weights(heads=2, head_dim=4)
    key, moments = 0.1 * weights.key, random_moments(weights)
    key[0, 1] *= 1e3  # a large key, a usual query
    key[0, 2] *= 1e5  # a larger key that no query asks for
    query = torch.eye(4, dtype=FLOAT).repeat(1, 2, 1, 1)
    query[0, 0, 2, 2] = 1e-20
    query[0, 1, 3, 3] = 1e8  # a usual key, a large query
    rows = preserved_rows(replace(weights, key=key), replace(moments, query=query), 1, "2-norm")
    assert rows.tolist() == [1, 7]
    # A constant key is large as well: the mean counts.
    still = replace(moments, query=torch.ones_like(query), covariance=1e-9 * moments.covariance, mean=key[0, 3])
    expected = (weights.key[0] @ key[0, 3]).abs().view(2, 4).argmax(-1) + torch.tensor([0, 4])
    assert preserved_rows(weights, still, 1, "2-norm").tolist() == expected.tolist()


def test_bad_options():
    weights = random_weights(heads=2, head_dim=4)
    with pytest.raises(ValueError, match=r"rank=4: 2 key dimensions .* 2 heads need a rank of at least 5"):
        joint_svd(weights, None, 4, preserved_key_dims=2)
    assert joint_svd(weights, None, 5, preserved_key_dims=2).rank == 5
    with pytest.raises(ValueError, match="preserved_key_dims=5: expected 0 to 4"):
        joint_svd(weights, None, 8, preserved_key_dims=5)
    with pytest.raises(ValueError, match="preserved_key_dims=-1: expected 0 to 4"):
        joint_svd(weights, None, 8, preserved_key_dims=-1)
    with pytest.raises(ValueError, match='preserved_key_selection=\'largest\': expected "uniform" or "2-norm"'):
        joint_svd(weights, None, 5, preserved_key_dims=2, preserved_key_selection="largest")
    with pytest.raises(ValueError, match='moments=None: preserved_key_selection="2-norm" needs statistics'):
        joint_svd(weights, None, 5, preserved_key_dims=2, preserved_key_selection="2-norm")
    with pytest.raises(ValueError, match="preserved_key_dims=1: 2 attentions share this latent"):
        joint_svd(random_weights(attentions=2), None, 5, preserved_key_dims=1)
    with pytest.raises(ValueError, match="rank=9: expected 1 to 8"):
        joint_svd(weights, None, 9, preserved_key_dims=2)
