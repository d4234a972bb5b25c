"""Errors where they count: keys in the scores, values in the attention's output."""

from collections.abc import Iterator

import torch
from torch import Tensor

from whisper_mla.conversion.calibration.moments import Moments
from whisper_mla.conversion.source.latent_weights import LatentWeights

from .covariance import required
from .factors import Factors
from .weighted_svd import sum_of_blocks, weighted_svd, whitening


def attention(
    weights: LatentWeights,
    moments: Moments,
    rank: int,
    *,
    damping: float = 1e-2,
    balance: float = 1.0,
) -> Factors:
    """The best factorisation for errors of scores and of outputs, each relative to their variance.

    With `ΔK`, `ΔV` the errors of the weights and `x' = x - E x`, it minimises, summed over attentions,
    `balance² · Σ_h E(q_h^T ΔK_h x')² / Σ_h E(q_h^T W_K,h x')²  +  Σ_h E|W_O,h ΔV_h x'|² / Σ_h E|W_O,h W_V,h x'|²`,
    with `q_h` and `x` taken as independent: a weighted decomposition with
    `L = blockdiag(E[q_h q_h^T]^{1/2} …, (W_O,h^T W_O,h)^{1/2} …)`. Queries keep their mean, inputs do not: only the
    part of a score that varies over positions changes attention weights. `L` is never inverted and may be singular.

    Args:
        weights: what to factorise.
        moments: statistics of `x` and of the queries.
        rank: 1 to d. At d it is exact.
        damping: share of the mean variance added to all variances of `x`, see `whitening`.
        balance: weight of scores against outputs; more than 1 favours keys.

    Returns:
        Factors: centred at the mean. Singular values: of the stack of the weighted blocks; their squares sum to
        `L (balance² + 1)`.

    Raises:
        ValueError: `rank` out of range, `balance` not positive, statistics missing or of another model, or a covariance
            that cannot be used (see `whitening`).
    """
    if not 0 < balance < float("inf"):
        raise ValueError(f"balance={balance}: expected a positive number.")
    moments = required(moments, "attention").for_weights(weights)
    inputs = whitening(moments.covariance, damping, moments.mean)
    keys = sum_of_blocks(key_blocks(weights, moments), inputs, balance=True)
    values = sum_of_blocks(value_blocks(weights), inputs, balance=True)
    return weighted_svd(weights, balance**2 * keys + values, rank, inputs, moments.mean)


def key_blocks(weights: LatentWeights, moments: Moments) -> Iterator[Tensor]:
    """`Σ_h W_K,h^T E[q_h q_h^T] W_K,h` of every attention."""
    for key, query in zip(weights.key, moments.query, strict=True):
        yield _weighted_gram(key, query)


def value_blocks(weights: LatentWeights) -> Iterator[Tensor]:
    """`Σ_h W_V,h^T W_O,h^T W_O,h W_V,h` of every attention."""
    for value, output in zip(weights.value, weights.output, strict=True):
        heads = (
            output.to(torch.float64).unflatten(1, (weights.num_heads, weights.head_dim)).transpose(0, 1)
        )  # [H, d, D]
        yield _weighted_gram(value, heads.transpose(1, 2) @ heads)


def _weighted_gram(weight: Tensor, metric: Tensor) -> Tensor:
    """`Σ_h W_h^T metric_h W_h` of `[d, d]` weights whose rows are heads, and `[H, D, D]` metrics."""
    weight = weight.to(torch.float64)
    return weight.T @ (metric @ weight.view(*metric.shape[:2], -1)).flatten(0, 1)
