import pytest
import torch

from whisper_mla.conversion.calibration.kronecker import KroneckerFactors, KroneckerSums, damped_inverse

pytestmark = pytest.mark.numerics

FLOAT = torch.float64


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_covariance(width: int, seed: int) -> torch.Tensor:
    root = torch.randn(width, width, generator=generator(seed), dtype=FLOAT)
    return root @ root.T / width + 0.1 * torch.eye(width, dtype=FLOAT)


def root_of(matrix: torch.Tensor) -> torch.Tensor:
    return torch.linalg.cholesky(matrix)


def relative_distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def random_transcripts(width: int = 5, batch: int = 7, positions: int = 9):
    states = torch.randn(batch, positions, width, generator=generator(0), dtype=FLOAT) + 3
    slopes = torch.randn(batch, positions, width, generator=generator(1), dtype=FLOAT)
    slopes[2, 4:] = 0  # padding
    return states, slopes


@pytest.mark.parametrize("positions", [4, 9])  # fewer than the width of 5, and more
def test_one_turn_is_the_formula(positions):
    states, slopes = random_transcripts(positions=positions)
    start = KroneckerFactors(random_covariance(5, 2), random_covariance(5, 3))
    mean = torch.full((5,), 3.0, dtype=FLOAT)
    sums = KroneckerSums(start.gradient, mean, start.covariance)
    sums.update(states[:4], slopes[:4])
    sums.update(states[4:].float(), slopes[4:])
    found = sums.factors
    assert found.gradient.dtype == found.covariance.dtype == FLOAT
    products = torch.einsum("bsi,bsj->bij", slopes, states - mean)
    gradient = torch.einsum("bij,jk,blk->il", products, damped_inverse(start.covariance), products)
    covariance = torch.einsum("bij,ik,bkl->jl", products, damped_inverse(start.gradient), products)
    assert relative_distance(found.gradient, gradient * start.gradient.trace() / gradient.trace()) < 1e-5
    assert relative_distance(found.covariance / found.covariance.trace(), covariance / covariance.trace()) < 1e-5


def test_sizes_are_those_of_the_start():
    start = KroneckerFactors(random_covariance(5, 2), random_covariance(5, 3))
    sums = KroneckerSums(start.gradient, torch.zeros(5, dtype=FLOAT), start.covariance)
    sums.update(*random_transcripts())
    assert sums.factors.gradient.trace().item() == pytest.approx(start.gradient.trace().item())
    relative = damped_inverse(start.covariance) @ sums.factors.covariance
    assert relative.trace().item() == pytest.approx(5)


def test_the_truth_is_a_fixed_point():
    """G = A^1/2 Z B^1/2 with Z of independent normal numbers: a turn from A and B gives A and B."""
    width, count = 6, 20_000
    truth = KroneckerFactors(random_covariance(width, 4), random_covariance(width, 5))
    noise = torch.randn(count, width, width, generator=generator(6), dtype=FLOAT)
    products = root_of(truth.gradient) @ noise @ root_of(truth.covariance).T
    sums = KroneckerSums(truth.gradient, torch.zeros(width, dtype=FLOAT), truth.covariance)
    states = torch.eye(width, dtype=FLOAT).expand(count, -1, -1)
    sums.update(states, products.transpose(1, 2))  # then the sum of g x^T is G itself
    assert relative_distance(sums.factors.gradient, truth.gradient) < 0.03
    assert relative_distance(sums.factors.covariance, truth.covariance) < 0.03


def test_errors_with_a_common_direction_weigh_more():
    """Of two directions with one variance, the one in which a transcript's positions agree is the important one."""
    common = torch.randn(5000, 1, 1, generator=generator(7), dtype=FLOAT).expand(-1, 20, -1)
    single = torch.randn(5000, 20, 1, generator=generator(8), dtype=FLOAT)
    states = torch.cat([common, single], dim=-1)
    slopes = torch.ones(5000, 20, 2, dtype=FLOAT) * torch.tensor([1.0, 0.5], dtype=FLOAT)
    rows, columns = states.flatten(0, 1), slopes.flatten(0, 1)
    sums = KroneckerSums(columns.T @ columns, torch.zeros(2, dtype=FLOAT), rows.T @ rows / len(rows))
    sums.update(states, slopes)
    variances = sums.factors.covariance.diagonal()
    assert variances[0] / variances[1] == pytest.approx(20, rel=0.2)  # positions in a transcript
    assert (rows.square().mean(0)[0] / rows.square().mean(0)[1]).item() == pytest.approx(1, rel=0.1)


def test_without_gradients_the_start_stays():
    start = KroneckerFactors(torch.zeros(5, 5, dtype=FLOAT), random_covariance(5, 3))
    sums = KroneckerSums(start.gradient, torch.zeros(5, dtype=FLOAT), start.covariance)
    states, slopes = random_transcripts()
    sums.update(states, 0 * slopes)
    assert torch.equal(sums.factors.gradient, start.gradient) and torch.equal(sums.factors.covariance, start.covariance)


def test_the_damped_inverse():
    matrix = random_covariance(5, 9)
    damped = matrix + 0.01 * matrix.diagonal().mean() * torch.eye(5, dtype=FLOAT)
    assert torch.allclose(damped_inverse(matrix) @ damped, torch.eye(5, dtype=FLOAT), atol=1e-9)
    assert torch.equal(damped_inverse(torch.zeros(3, 3)), torch.eye(3))
