"""Errors where the model's predictions feel them: the Fisher information of what keys and values read."""

from torch import Tensor

from whisper_mla.conversion.calibration.moments import Moments
from whisper_mla.conversion.source.latent_weights import LatentWeights

from .attention import key_blocks, value_blocks
from .covariance import required
from .factors import Factors
from .weighted_svd import Whitening, sum_of_blocks, weighted_svd, whitening


def fisher(
    weights: LatentWeights,
    moments: Moments,
    rank: int,
    *,
    damping: float = 1e-2,
    floor: float = 0.1,
) -> Factors:
    """The factorisation that loses the least of what the next-token distribution depends on.

    A change `δ` of the vector `x` that keys and values read changes the distribution by `½ δ^T F δ` nats of KL
    divergence, to second order, where `F = E[g g^T]` and `g` is the gradient of the log-likelihood with respect to `x`
    through keys and values, of all attentions that share the latent. With `g` and `x` taken as independent (as in
    K-FAC, arXiv 1503.05671; for low-rank approximation: generalised Fisher-weighted SVD, arXiv 2505.17974) the best
    latent is a weighted decomposition whose left weight is `F` itself, a `[d, d]` matrix, however many attentions read
    the latent. They are not independent, and errors of one transcript add up: where the statistics have the Kronecker
    factors that know this (see `whisper_mla.conversion.calibration.kronecker`), `F` and the covariance are the means of
    both estimates, because the better ones are noisier. Unlike queries and output projections (`attention`), `F` knows
    what later layers make of an error, and its unit is the same in every layer.

    `F` is local: directions to which the model is indifferent at the moment matter once the error is large. A share of
    the metric of `attention` keeps these.

    Args:
        weights: what to factorise.
        moments: statistics of `x`, with gradients.
        rank: 1 to d. At d it is exact.
        damping: share of the mean variance added to all variances of `x`, see `whitening`.
        floor: size of that share, relative to the whole of the Fisher term; 0 or more.

    Returns:
        Factors: centred at the mean. Half the sum of the squared singular values beyond the rank is the expected KL
        divergence per token in nats, of this latent alone and while it is small, plus the floor's part.

    Raises:
        ValueError: `rank` out of range, `floor` negative, statistics missing, without gradients or of another model,
            or a covariance that cannot be used (see `whitening`).
    """
    moments = required(moments, "fisher")
    gram, inputs = fisher_gram(weights, moments, damping=damping, floor=floor)
    return weighted_svd(weights, gram, rank, inputs, moments.for_weights(weights).mean)


def fisher_gram(
    weights: LatentWeights, moments: Moments, *, damping: float = 1e-2, floor: float = 0.1
) -> tuple[Tensor, Whitening]:
    """What `fisher` decomposes with: `A`, `[d, d]`, what an error of `x` costs, in nats, with the share of `attention`;
    and the covariance. Arguments and errors as there."""
    if not 0 <= floor < float("inf"):
        raise ValueError(f"floor={floor}: expected 0 or more.")
    moments = moments.for_weights(weights)
    if moments.gradient is None:
        raise ValueError(
            "moments.gradient=None: fisher needs statistics with gradients. Calibrate again with them (--fisher), or "
            "choose another method."
        )
    gradient, covariance = moments.gradient, moments.covariance
    if moments.kronecker is not None:
        gradient = (gradient + moments.kronecker.gradient) / 2
        covariance = (covariance + moments.kronecker.covariance) / 2
    inputs = whitening(covariance, damping, moments.mean)
    energy = (gradient * inputs.covariance).sum()
    if energy <= 0:
        raise ValueError("moments.gradient is zero: the model's predictions do not depend on this latent at all.")
    blocks = [*key_blocks(weights, moments), *value_blocks(weights)]
    general = sum_of_blocks(blocks, inputs, balance=True) / len(blocks)
    return gradient + floor * energy * general, inputs
