from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_mla.conversion import joint_svd


def weight_of(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


shapes = st.tuples(st.integers(1, 40), st.integers(1, 24), st.integers(0, 10_000))


@given(shapes, st.data())
@settings(max_examples=150, deadline=None)
def test_error_is_the_tail_of_the_squared_singular_values(shape, data):
    weight = weight_of(*shape)
    rank = data.draw(st.integers(1, shape[1]))
    factors = joint_svd(weight, rank)
    error = torch.linalg.norm(weight - factors.up @ factors.down)
    singular_values = torch.linalg.svdvals(weight)
    tail = singular_values[rank:].square().sum().sqrt()
    assert error.item() == pytest.approx(tail.item(), abs=1e-6 * singular_values[0].item())
    assert factors.relative_error == pytest.approx((error / torch.linalg.norm(weight)).item(), abs=1e-6)


@given(shapes)
@settings(max_examples=60, deadline=None)
def test_zero_at_full_rank_and_monotone(shape):
    weight = weight_of(*shape)
    errors = []
    for rank in range(1, shape[1] + 1):
        factors = joint_svd(weight, rank)
        errors.append(torch.linalg.norm(weight - factors.up @ factors.down).item())
    assert errors[-1] < 1e-12 * torch.linalg.norm(weight).item() + 1e-13
    assert all(after <= before + 1e-9 for before, after in pairwise(errors))


@given(shapes, st.data())
@settings(max_examples=40, deadline=None)
def test_no_other_factorisation_of_the_same_rank_is_better(shape, data):
    weight = weight_of(*shape)
    rank = data.draw(st.integers(1, shape[1]))
    ours = joint_svd(weight, rank)
    error = torch.linalg.norm(weight - ours.up @ ours.down)
    generator = torch.Generator().manual_seed(shape[2])
    for attempt in range(20):
        noise = torch.randn(ours.down.shape, generator=generator, dtype=torch.float64)
        down = noise if attempt % 2 else ours.down + 0.01 * noise
        up = torch.linalg.lstsq(down.T, weight.T).solution.T  # the best up-projection for that down-projection
        assert torch.linalg.norm(weight - up @ down) >= error - 1e-9


def test_rank_deficient_and_zero_weights():
    weight = weight_of(30, 4, 0) @ weight_of(4, 20, 1)
    factors = joint_svd(weight, 4)
    assert torch.allclose(factors.up @ factors.down, weight, atol=1e-10)
    assert factors.relative_error < 1e-6
    assert joint_svd(torch.zeros(6, 5), 2).relative_error == 0.0


def test_rows_of_the_down_projection_are_orthonormal():
    down = joint_svd(weight_of(40, 16, 3), 7).down
    assert torch.allclose(down @ down.T, torch.eye(7, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("rank", [0, 17])
def test_rank_out_of_range(rank):
    with pytest.raises(ValueError, match=f"rank={rank}.*1 to 16"):
        joint_svd(weight_of(40, 16, 3), rank)
