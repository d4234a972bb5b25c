"""What a factorisation loses where it counts, predicted from statistics: in the scores and in the outputs."""

from torch import Tensor

from whisper_mla.conversion.calibration.moments import Moments
from whisper_mla.conversion.methods.factors import Factors
from whisper_mla.conversion.source.latent_weights import LatentWeights


def score_error(weights: LatentWeights, moments: Moments, factors: Factors) -> float:
    """Relative RMS error of attention scores: `Σ_h E(q_h^T ΔK_h x')² / Σ_h E(q_h^T K_h x')²`, its root.

    Only what varies over positions counts (`x' = x - E x`); queries and inputs are taken as independent.
    """
    moments = moments.for_weights(weights)
    return _relative_error(weights.key, factors.key_up, factors.down, moments.query, moments.covariance)


def output_error(weights: LatentWeights, moments: Moments, factors: Factors) -> float:
    """Relative RMS error of what attention adds to the residual stream if it averages single positions:
    `Σ_h E|W_O,h ΔV_h x'|² / Σ_h E|W_O,h V_h x'|²`, its root."""
    moments = moments.for_weights(weights)
    heads = weights.output.double().unflatten(-1, (weights.num_heads, weights.head_dim)).transpose(1, 2)
    metric = heads.transpose(-1, -2) @ heads
    return _relative_error(weights.value, factors.value_up, factors.down, metric, moments.covariance)


def _relative_error(weights: Tensor, ups: Tensor, down: Tensor, metrics: Tensor, covariance: Tensor) -> float:
    """Of `[L, d, d]` weights and `[L, H, D, D]` metrics; one attention after the other, to spare memory."""
    lost = whole = 0.0
    for weight, up, metric in zip(weights.double(), ups, metrics, strict=True):
        lost += _energy(weight - up @ down, metric, covariance)
        whole += _energy(weight, metric, covariance)
    return (max(lost, 0.0) / whole) ** 0.5 if whole > 0 else 0.0


def _energy(weight: Tensor, metric: Tensor, covariance: Tensor) -> float:
    """`Σ_h tr(metric_h W_h C W_h^T)` of `[d, d]` weights and `[H, D, D]` metrics."""
    rows = weight.unflatten(0, metric.shape[:2])
    return ((rows @ covariance) * (metric @ rows)).sum().item()
