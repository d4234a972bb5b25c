"""The Fisher information of a projection as one Kronecker product, the positions of a transcript taken together.

A projection that changes every `x` of a transcript by `δ_s = E x_s` (`E = U D - I`, the same at all positions) changes
a log-likelihood by `Σ_s g_s · δ_s = tr(E^T G)` with `G = Σ_s g_s x_s^T`. The KL divergence of small errors is
`½ E[tr(E^T G)²]`, a quadratic form in d² variables, too large to use; a Kronecker product makes it `½ tr(A E B E^T)`.

Taken position by position (`A = E[Σ g g^T]`, `B = cov x`: K-FAC-expand, arXiv 2311.00636) it overlooks that errors of
one transcript add up where they have a direction in common, and that some `x` matter more than others. The maximum
likelihood estimate of a matrix normal distribution of `G` does not: `A ∝ E[G B^-1 G^T]` and `B ∝ E[G^T A^-1 G]`, in
turns (Dutilleul, "The MLE algorithm for the matrix normal distribution", 1999). One turn is taken here, from K-FAC.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def damped_inverse(matrix: Tensor, damping: float = 1e-2) -> Tensor:
    """`(M + damping · mean(diag M) · I)^-1`; the identity for a matrix of zeros.

    Args:
        matrix: `[d, d]`, positive semi-definite.
        damping: share of the mean variance that is added before the matrix is inverted.
    """
    size = matrix.diagonal().mean()
    if size <= 0:
        return torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return torch.linalg.inv(matrix + damping * size * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device))


@dataclass(frozen=True)
class KroneckerFactors:
    """`A` and `B`, `[d, d]` each, float64; see this module.

    Attributes:
        gradient: in the unit and with the trace of K-FAC's.
        covariance: of the size of K-FAC's: the mean eigenvalue relative to it is 1.
    """

    gradient: Tensor
    covariance: Tensor

    def to(self, *arguments) -> "KroneckerFactors":
        """On another device, or in another dtype, as `Tensor.to`."""
        return KroneckerFactors(self.gradient.to(*arguments), self.covariance.to(*arguments))


class KroneckerSums:
    """Streaming sums for one turn, float64; the products of each transcript are in the dtype of its states.

    Args:
        gradient: `[d, d]`, `A` of K-FAC.
        mean, covariance: `[d]` and `[d, d]`, of `x`; `B` of K-FAC.

    Attributes:
        sums: `[d, d]` each, of `A` and `B`.
    """

    def __init__(self, gradient: Tensor, mean: Tensor, covariance: Tensor):
        self._start = KroneckerFactors(gradient, covariance)
        self._mean = mean
        self._gradient_inverse, self._covariance_inverse = damped_inverse(gradient), damped_inverse(covariance)
        self.sums = [torch.zeros_like(gradient), torch.zeros_like(covariance)]

    def update(self, states: Tensor, slopes: Tensor) -> None:
        """Add transcripts.

        Args:
            states: `[batch, positions, d]`, `x`.
            slopes: `[batch, positions, d]`, `g`; zero at padding.
        """
        states = states - self._mean.to(states)
        slopes = slopes.to(states)
        if states.shape[1] > states.shape[2]:  # G, which is [d, d], is less than what is between positions
            products = slopes.transpose(1, 2) @ states
            self.sums[0] += (products @ self._covariance_inverse.to(states) @ products.transpose(1, 2)).sum(dim=0)
            self.sums[1] += (products.transpose(1, 2) @ self._gradient_inverse.to(states) @ products).sum(dim=0)
            return
        between = slopes @ self._gradient_inverse.to(states) @ slopes.transpose(1, 2)
        self.sums[1] += (states.transpose(1, 2) @ between @ states).sum(dim=0)
        between = states @ self._covariance_inverse.to(states) @ states.transpose(1, 2)
        self.sums[0] += (slopes.transpose(1, 2) @ between @ slopes).sum(dim=0)

    @property
    def factors(self) -> KroneckerFactors:
        """After one turn; K-FAC's own where nothing, or no gradient, was seen."""
        gradient, covariance = self.sums
        size = gradient.trace()
        relative = (self._covariance_inverse * covariance).sum() / len(covariance)
        if size <= 0 or relative <= 0:
            return self._start
        return KroneckerFactors(gradient * (self._start.gradient.trace() / size), covariance / relative)
