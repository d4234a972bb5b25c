"""Low-rank factorisations of projection weights: pure functions on matrices, in float64.

Convention of `nn.Linear`: `y = W x`. A factorisation of rank r replaces `W` (`[m, d]`) by `up @ down` with `down`
`[r, d]` and `up` `[m, r]`, so that `c = down x` is all that has to be cached.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Factors:
    """`weight` is approximately `up @ down`.

    Attributes:
        down: `[r, d]`, float64.
        up: `[m, r]`, float64.
        singular_values: `[d]`, float64, descending, of the whole weight.
    """

    down: Tensor
    up: Tensor
    singular_values: Tensor

    @property
    def relative_error(self) -> float:
        """Frobenius norm of `weight - up @ down` relative to that of `weight` (Eckart-Young)."""
        energy = self.singular_values.square()
        total = energy.sum().item()
        return (energy[self.down.shape[0] :].sum().item() / total) ** 0.5 if total else 0.0


def joint_svd(weight: Tensor, rank: int) -> Factors:
    """The best rank-`rank` approximation of `weight` in the Frobenius norm.

    For `weight = [W_K; W_V]` this is the joint factorisation of keys and values of Whisper-MLA (arXiv 2603.00563) and
    TransMLA (arXiv 2502.07864); stacked over layers, it is the latent they share. The right singular vectors come from
    the eigendecomposition of the `[d, d]` Gram matrix. `down` has orthonormal rows and `up = weight @ down^T`, so the
    residual is a projection whatever the accuracy of the vectors: at `rank = d` it vanishes to float64 rounding, below
    it exceeds the optimum by at most about 1e-8 of the largest singular value.

    Args:
        weight: `[m, d]`, any floating dtype and device.
        rank: 1 to d.

    Returns:
        Factors: in float64 on the device of `weight`.

    Raises:
        ValueError: `rank` out of range.
    """
    width = weight.shape[1]
    if not 1 <= rank <= width:
        raise ValueError(f"rank={rank}: expected 1 to {width}, the width of the weight.")
    weight = weight.to(torch.float64)
    eigenvalues, eigenvectors = torch.linalg.eigh(weight.T @ weight)  # ascending
    down = eigenvectors[:, -rank:].flip(1).T.contiguous()
    return Factors(down=down, up=weight @ down.T, singular_values=eigenvalues.flip(0).clamp(min=0).sqrt())
