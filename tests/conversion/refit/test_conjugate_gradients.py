import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from whisper_mla.conversion.refit.conjugate_gradients import conjugate_gradients

pytestmark = pytest.mark.numerics


def system(size, seed, condition=1e3):
    generator = torch.Generator().manual_seed(seed)
    directions, _ = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))
    eigenvalues = torch.logspace(0, -torch.tensor(condition).log10().item(), size, dtype=torch.float64)
    right = torch.randn(size, dtype=torch.float64, generator=generator)
    return directions * eigenvalues @ directions.T, right


def solve(matrix, right, steps, preconditioner=lambda vector: vector, **options):
    return conjugate_gradients(lambda vector: matrix @ vector, preconditioner, right, range(steps), **options)


@given(size=st.integers(1, 20), seed=st.integers(0, 999))
def test_as_many_steps_as_unknowns_solve_it(size, seed):
    matrix, right = system(size, seed, condition=10)
    expected = torch.linalg.solve(matrix, right)
    torch.testing.assert_close(solve(matrix, right, 2 * size, tolerance=1e-12), expected, rtol=1e-6, atol=1e-8)


@given(seed=st.integers(0, 999))
def test_the_objective_falls_with_every_step(seed):
    matrix, right = system(30, seed)
    objectives = []
    for steps in range(12):
        x = solve(matrix, right, steps, tolerance=0.0)
        objectives.append((x @ matrix @ x / 2 - right @ x).item())
    assert objectives[0] == 0
    assert all(after < before for before, after in itertools.pairwise(objectives))


def test_the_exact_inverse_as_preconditioner_solves_it_in_one_step():
    matrix, right = system(30, 5)
    found = solve(matrix, right, 1, lambda vector: torch.linalg.solve(matrix, vector))
    torch.testing.assert_close(found, torch.linalg.solve(matrix, right), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_a_useless_product_ends_it_with_what_was_found(bad):
    """Not finite, or not positive definite."""
    matrix, right = system(30, 7)
    calls = []

    def spoilt(vector):
        calls.append(1)
        return matrix @ vector if len(calls) < 4 else bad * (matrix @ vector).abs() * vector.sign()

    found = conjugate_gradients(spoilt, lambda vector: vector, right, range(100), tolerance=0.0)
    assert torch.equal(found, solve(matrix, right, 3, tolerance=0.0)) and len(calls) == 4
    nothing = conjugate_gradients(lambda vector: matrix @ vector, lambda vector: vector, float("nan") * right, range(9))
    assert torch.equal(nothing, 0 * matrix[0])


def test_it_stops_at_the_tolerance_and_at_nothing_to_do():
    matrix, right = system(30, 6)
    calls = []

    def counted(vector):
        calls.append(1)
        return matrix @ vector

    found = conjugate_gradients(counted, lambda vector: vector, right, range(1000), tolerance=1e-2)
    assert 0 < len(calls) < 200
    assert (matrix @ found - right).norm() <= 1e-2 * right.norm()
    calls.clear()
    assert torch.equal(conjugate_gradients(counted, lambda v: v, 0 * right, range(9)), 0 * right) and not calls
