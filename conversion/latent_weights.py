"""What a factorisation method gets: the weights that read one latent, and statistics of what they read."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .kronecker import KroneckerFactors


@dataclass(frozen=True)
class LatentWeights:
    """The projections of all attentions that read one latent: of one attention, or of all decoder layers.

    Convention of `nn.Linear`, `y = W x`. `d` is the width of the model, `H` the number of heads, `D = d / H`, and `L`
    the number of attentions that share the latent (1, or the decoder layers for a shared cross-attention latent). Any
    floating dtype and device, all the same; methods work in float64.

    Attributes:
        key: `[L, d, d]`, `W_K` of each.
        value: `[L, d, d]`, `W_V`.
        query: `[L, d, d]`, `W_Q` multiplied by `D**-0.5`, as Whisper scales the query.
        output: `[L, d, d]`, `W_O`.
        num_heads: `H`.
        norm_weight: `[d]`, γ of the layer norm whose output `x` the key and value projections read.
        norm_bias: `[d]`, β of it.

    Raises:
        ValueError: shapes that do not fit each other.
    """

    key: Tensor
    value: Tensor
    query: Tensor
    output: Tensor
    num_heads: int
    norm_weight: Tensor
    norm_bias: Tensor

    def __post_init__(self):
        if self.key.ndim != 3 or self.key.shape[1] != self.key.shape[2] or 0 in self.key.shape:
            raise ValueError(f"key has shape {list(self.key.shape)}: expected [attentions, d, d].")
        for name in ("value", "query", "output"):
            _check_shape(name, getattr(self, name), tuple(self.key.shape))
        for name in ("norm_weight", "norm_bias"):
            _check_shape(name, getattr(self, name), (self.width,))
        if self.num_heads < 1 or self.width % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads}: expected a divisor of d = {self.width}.")

    @property
    def num_attentions(self) -> int:
        """`L`."""
        return self.key.shape[0]

    @property
    def width(self) -> int:
        """`d`."""
        return self.key.shape[1]

    @property
    def head_dim(self) -> int:
        """`D`."""
        return self.width // self.num_heads


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
        _check_shape("covariance", self.covariance, (width, width))
        if self.query.ndim != 4 or self.query.shape[2] != self.query.shape[3]:
            raise ValueError(f"query has shape {list(self.query.shape)}: expected [attentions, heads, D, D].")
        if self.gradient is not None:
            _check_shape("gradient", self.gradient, (width, width))
        statistics = {name: getattr(self, name) for name in ("mean", "covariance", "query", "gradient")}
        if self.kronecker is not None:
            for name in ("gradient", "covariance"):
                _check_shape(f"kronecker.{name}", getattr(self.kronecker, name), (width, width))
                statistics[f"kronecker.{name}"] = getattr(self.kronecker, name)
        for name, statistic in statistics.items():
            if statistic is not None and not torch.isfinite(statistic).all():
                raise ValueError(f"{name} holds NaN or infinite values: calibrate again.")

    def for_weights(self, weights: LatentWeights) -> "Moments":
        """These statistics in float64 on the device of `weights`.

        Raises:
            ValueError: they were taken from a model of other shapes.
        """
        _check_shape("mean", self.mean, (weights.width,))
        heads = (weights.num_attentions, weights.num_heads, weights.head_dim, weights.head_dim)
        _check_shape("query", self.query, heads)
        device = weights.key.device
        return Moments(
            count=self.count,
            mean=self.mean.to(device, torch.float64),
            covariance=self.covariance.to(device, torch.float64),
            query=self.query.to(device, torch.float64),
            gradient=None if self.gradient is None else self.gradient.to(device, torch.float64),
            kronecker=None if self.kronecker is None else self.kronecker.to(device, torch.float64),
        )


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} has shape {list(tensor.shape)}: expected {list(expected)}.")
