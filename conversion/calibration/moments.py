"""What a factorisation method gets of calibration: statistics of what the projections around one latent read."""

from dataclasses import dataclass

import torch
from torch import Tensor

from whisper_mla.conversion.source.latent_weights import LatentWeights, check_shape

from .kronecker import KroneckerFactors


@dataclass(frozen=True)
class Moments:
    """Statistics of what the key and value projections read, and of the queries that read them.

    Attributes:
        count: vectors of `x` that were seen.
        mean: `[d]`, E[x].
        covariance: `[d, d]`, E[(x - mean)(x - mean)^T].
        query: `[L, H, D, D]`, E[q_h q_h^T] of the scaled queries (with bias, mean not removed).
        gradient: `[d, d]`, sum over positions of the Fisher information of `x` as keys and values read it, per
            predicted token, in nats: a small change `δ` of every `x` costs `½ Σ δ^T gradient δ` of KL per token. None
            where it was not gathered.
        kronecker: the Fisher information as a Kronecker product, of whole transcripts; None where not gathered.

    Raises:
        ValueError: no vectors, values that are not finite, or shapes that do not fit each other.
    """

    count: int
    mean: Tensor
    covariance: Tensor
    query: Tensor
    gradient: Tensor | None = None
    kronecker: KroneckerFactors | None = None

    def __post_init__(self):
        if self.count < 1:
            raise ValueError(f"count={self.count}: statistics of at least one vector are needed.")
        width = self.mean.shape[0]
        check_shape("covariance", self.covariance, (width, width))
        if self.query.ndim != 4 or self.query.shape[2] != self.query.shape[3]:
            raise ValueError(f"query has shape {list(self.query.shape)}: expected [attentions, heads, D, D].")
        if self.gradient is not None:
            check_shape("gradient", self.gradient, (width, width))
        statistics = {name: getattr(self, name) for name in ("mean", "covariance", "query", "gradient")}
        if self.kronecker is not None:
            for name in ("gradient", "covariance"):
                check_shape(f"kronecker.{name}", getattr(self.kronecker, name), (width, width))
                statistics[f"kronecker.{name}"] = getattr(self.kronecker, name)
        for name, statistic in statistics.items():
            if statistic is not None and not torch.isfinite(statistic).all():
                raise ValueError(f"{name} holds NaN or infinite values: calibrate again.")

    def for_weights(self, weights: LatentWeights) -> "Moments":
        """These statistics in float64, where they are needed.

        Args:
            weights: whose device they move to, and whose shapes they must have.

        Raises:
            ValueError: they were taken from a model of other shapes.
        """
        check_shape("mean", self.mean, (weights.width,))
        heads = (weights.num_attentions, weights.num_heads, weights.head_dim, weights.head_dim)
        check_shape("query", self.query, heads)
        device = weights.key.device
        return Moments(
            count=self.count,
            mean=self.mean.to(device, torch.float64),
            covariance=self.covariance.to(device, torch.float64),
            query=self.query.to(device, torch.float64),
            gradient=None if self.gradient is None else self.gradient.to(device, torch.float64),
            kronecker=None if self.kronecker is None else self.kronecker.to(device, torch.float64),
        )
