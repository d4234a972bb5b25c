"""Weighted low-rank approximation, the mathematics that all methods share. Float64.

A method chooses `L` (what an error in each row of `W` costs) and a covariance `C = S S^T` of the input. The best
`U D` of rank r for `|L (W - U D) S|_F` comes from the singular value decomposition of `M = L W S`. Two identities keep
it cheap and stable:

- with the right singular vectors `V` of `M`, `D = V_r^T S^{-1}` and `U = L^{-1} M V_r = W S V_r`: no left weight is
  ever inverted, so a singular `L` does no harm;
- `V` are the eigenvectors of the `[d, d]` matrix `M^T M = S (W^T L^T L W) S`, to which every row of `W` adds its part:
  methods differ only in that sum, the Gram matrix of the weighted weights, and in `C`.

Tolerance of the eigendecomposition against a singular value decomposition of `M`: singular values differ by at most
1e-7 of the largest, which is where small ones disappear. The residual is a projection whatever the accuracy of the
vectors: at `r = d` it vanishes to rounding, below it exceeds the optimum by at most 1e-7 of the largest singular value.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from whisper_mla.conversion.source.latent_weights import LatentWeights

from .factors import Factors

# Smaller eigenvalues than this fraction of the largest are rounding, not directions.
_RESOLUTION = 1e-13
# Variances below this fraction of the squared mean are rounding of float32 inputs that do not vary.
_CONSTANT = 1e-13


@dataclass(frozen=True)
class Whitening:
    """A covariance and its roots, all `[d, d]`, float64, symmetric.

    Attributes:
        covariance: `C`, damped.
        root: `S = C^{1/2}`.
        inverse: `S^{-1}`.
    """

    covariance: Tensor
    root: Tensor
    inverse: Tensor


def whitening(covariance: Tensor, damping: float, mean: Tensor | None = None) -> Whitening:
    """The symmetric root of a damped covariance, `C = covariance + damping · mean(diag covariance) · I`.

    Damping (CARE, SVD-LLM) lets a covariance of few vectors stand for what calibration did not see.

    Args:
        covariance: `[d, d]`, positive semi-definite up to rounding.
        damping: share of the mean variance that is added to all variances.
        mean: `[d]`, to tell a variance from the rounding of constant inputs.

    Raises:
        ValueError: negative damping; a matrix that is no covariance; inputs that do not vary; or a covariance without
            full rank and no damping.
    """
    if not damping >= 0:
        raise ValueError(f"damping={damping}: expected 0 or more.")
    covariance = covariance.to(torch.float64)
    covariance = (covariance + covariance.T) / 2
    variance = covariance.diagonal().mean()
    if variance <= (0 if mean is None else _CONSTANT * mean.square().mean()):
        raise ValueError("covariance is zero: the inputs do not vary. Calibrate on more, and different, audio.")
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
    if eigenvalues[0] < -1e-6 * eigenvalues[-1]:
        raise ValueError(f"covariance has the negative eigenvalue {eigenvalues[0]:.3g}: it is no covariance.")
    eigenvalues = eigenvalues.clamp(min=0) + damping * variance
    if eigenvalues[0] <= _RESOLUTION * eigenvalues[-1]:
        raise ValueError(
            f"damping={damping}: the covariance has no full rank. Calibrate on more vectors, or use damping=0.01."
        )
    roots = eigenvalues.sqrt()
    return Whitening(
        covariance=eigenvectors * eigenvalues @ eigenvectors.T,
        root=eigenvectors * roots @ eigenvectors.T,
        inverse=eigenvectors / roots @ eigenvectors.T,
    )


def right_singular_vectors(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values and right singular vectors of `M`, from `M^T M`.

    Args:
        gram: `M^T M`, `[d, d]`.

    Returns:
        tuple: singular values `[d]`, descending, and the vectors as columns `[d, d]`, in the same order.
    """
    eigenvalues, eigenvectors = torch.linalg.eigh((gram + gram.T) / 2)
    return eigenvalues.flip(0).clamp(min=0).sqrt(), eigenvectors.flip(1)


def weighted_svd(
    weights: LatentWeights, gram: Tensor, rank: int, inputs: Whitening | None = None, mean: Tensor | None = None
) -> Factors:
    """The best joint factorisation of all keys and values in a weighted norm.

    Args:
        weights: what to factorise.
        gram: `[d, d]`, float64, `W^T L^T L W` of the stack of all keys and values.
        rank: 1 to d.
        inputs: the covariance of `x`; None for the identity.
        mean: `[d]`, the centre; see `Factors`.

    Returns:
        Factors: on the device of `weights`.

    Raises:
        ValueError: `rank` out of range.
    """
    check_rank(rank, weights.width)
    if inputs is not None:
        gram = inputs.root @ gram @ inputs.root
    singular_values, vectors = right_singular_vectors(gram)
    vectors = vectors[:, :rank]
    down, decode = vectors.T, vectors
    if inputs is not None:
        down, decode = down @ inputs.inverse, inputs.root @ decode
    return Factors(
        down=down.contiguous(),
        key_up=weights.key.to(torch.float64) @ decode,
        value_up=weights.value.to(torch.float64) @ decode,
        mean=mean,
        singular_values=singular_values,
    )


def gram_of(weight: Tensor) -> Tensor:
    """`W^T W` in float64: `[m, d]` to `[d, d]`."""
    weight = weight.to(torch.float64)
    return weight.T @ weight


def sum_of_blocks(blocks: Iterable[Tensor], inputs: Whitening | None = None, balance: bool = False) -> Tensor:
    """Add the Gram matrices of blocks of rows.

    Args:
        blocks: `W_b^T L_b^T L_b W_b`, `[d, d]` each.
        inputs: the covariance of `x`; None for the identity. Needed only to balance.
        balance: scale every block to `|L_b W_b S|_F = 1` first, so that none is sacrificed to another for its units.
            A block of zeros stays.

    Returns:
        Tensor: `[d, d]`.
    """
    total: Tensor | None = None
    for block in blocks:
        if balance:
            energy = (block.diagonal() if inputs is None else block * inputs.covariance).sum()
            block = block / torch.where(energy > 0, energy, 1.0)
        total = block if total is None else total + block
    if total is None:
        raise ValueError("blocks: expected at least one.")
    return total


def check_rank(rank: int, width: int) -> None:
    """Raise ValueError unless `rank` is 1 to `width`."""
    if not 1 <= rank <= width:
        raise ValueError(f"rank={rank}: expected 1 to {width}, the width of the model.")
