"""A guess of the inputs' covariance from the layer norm before the projection: no data."""

import torch

from whisper_mla.conversion.calibration.moments import Moments
from whisper_mla.conversion.source.latent_weights import LatentWeights

from .factors import Factors
from .weighted_svd import gram_of, sum_of_blocks, weighted_svd, whitening


def layer_norm(
    weights: LatentWeights,
    moments: Moments | None,
    rank: int,
    *,
    damping: float = 1e-2,
    balance: bool = True,
) -> Factors:
    """The best factorisation if the normalised vectors were white: `x = γ z + β`, so covariance `diag(γ²)`, mean β.

    Args:
        weights: what to factorise.
        moments: not used.
        rank: 1 to d. At d it is exact.
        damping: share of the mean of `γ²` added to all of them: a γ of zero may not delete its column for good.
        balance: scale the key block and the value block of every attention to `|W S|_F = 1` before the decomposition.

    Returns:
        Factors: centred at β. Singular values: of the stack of `W_K S` and `W_V S`, `S S^T = diag(γ²)` damped, each
        block divided by its Frobenius norm with `balance`.

    Raises:
        ValueError: `rank` out of range, negative damping, or a γ of zeros.
    """
    scale = weights.norm_weight.to(torch.float64)
    inputs = whitening(scale.square().diag(), damping)
    blocks = (gram_of(block) for layer in zip(weights.key, weights.value, strict=True) for block in layer)
    return weighted_svd(
        weights, sum_of_blocks(blocks, inputs, balance), rank, inputs, weights.norm_bias.to(torch.float64)
    )
