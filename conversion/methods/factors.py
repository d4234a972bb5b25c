"""The result of a factorisation, and what it needs of the value bias."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from whisper_mla.conversion.source.latent_weights import LatentWeights


@dataclass(frozen=True)
class Factors:
    """One down projection, and the up projections of every attention that reads the latent. All float64.

    `W_K ≈ key_up @ down` and `W_V ≈ value_up @ down`, applied to `x - mean` if there is a mean.

    Attributes:
        down: `[r, d]`, `W_D`; the cached latent is `down x`.
        key_up: `[L, d, r]`, `W_UK`.
        value_up: `[L, d, r]`, `W_UV`.
        mean: `[d]`, the centre around which the factorisation is best, or None for the origin. What it adds to all
            keys alike changes no attention weight; what it adds to the values belongs in the value bias, see
            `value_bias`.
        singular_values: `[d]`, descending, of the whole stack of weights in the method's own norm, whatever the rank.
            With preserved key dimensions: of the stack without the preserved rows.
        preserved_rank: rows of `down` that hold preserved key dimensions, before those that `singular_values` order.
            `d` where the latent is `x` itself.
    """

    down: Tensor
    key_up: Tensor
    value_up: Tensor
    mean: Tensor | None
    singular_values: Tensor
    preserved_rank: int = 0

    @property
    def rank(self) -> int:
        """`r`."""
        return self.down.shape[0]

    @property
    def squared_error(self) -> float:
        """Squared norm of what the method loses, in its own norm: the tail of the squared singular values. A refit of
        the up projections for another aim makes it larger."""
        if self.rank == self.down.shape[1]:
            return 0.0
        return self.singular_values[self.rank - self.preserved_rank :].square().sum().item()

    @property
    def relative_error(self) -> float:
        """Norm of what is lost relative to that of the whole stack that `singular_values` describe, 0 to 1."""
        total = self.singular_values.square().sum().item()
        return (self.squared_error / total) ** 0.5 if total else 0.0

    def truncated(self, rank: int) -> "Factors":
        """The same method's factors of a smaller rank, without another decomposition: the rows are nested.

        Args:
            rank: more than `preserved_rank`, up to this rank.

        Raises:
            ValueError: `rank` out of range.
        """
        if rank == self.rank:
            return self
        if self.preserved_rank == self.down.shape[1]:
            raise ValueError(f"rank={rank}: a latent that is x itself cannot be truncated. Factorise at a lower rank.")
        if not self.preserved_rank < rank < self.rank:
            raise ValueError(f"rank={rank}: expected {self.preserved_rank + 1} to {self.rank}.")
        return replace(self, down=self.down[:rank], key_up=self.key_up[..., :rank], value_up=self.value_up[..., :rank])


def value_bias(weights: LatentWeights, factors: Factors, stock_mean: Tensor | None = None) -> Tensor:
    """What has to be added to `b_V` so that the mean of the values stays that of the stock model.

    Softmax weights sum to 1, so a constant in the values passes through attention unchanged:
    `W_V m - W_UV W_D mean`, where `m = mean` unless given.

    Args:
        weights: what was factorised.
        factors: its factors.
        stock_mean: `[d]`, the mean of the stock model's `x`, where `factors.mean` is that of another input (layers
            below are converted already).

    Returns:
        Tensor: `[L, d]`, float64; zeros if `factors.mean` is None.
    """
    value = weights.value.to(torch.float64)
    if factors.mean is None:
        return value.new_zeros(value.shape[:2])
    stock_mean = factors.mean if stock_mean is None else stock_mean.to(value)
    return value @ stock_mean - factors.value_up @ (factors.down @ factors.mean)
