"""Find the factors of all latents of a conversion."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from whisper_mla.conversion.calibration.statistics import Statistics
from whisper_mla.conversion.source.latent_weights import latent_weights
from whisper_mla.conversion.source.latents import Latent

from . import METHODS
from .factors import Factors


@dataclass(frozen=True)
class Factorised:
    """What was found for one latent.

    Attributes:
        latent: with its rank.
        factors: of that rank.
        stock_mean: `[d]`, where the factors' mean is that of an input other than the stock model's; else None.
    """

    latent: Latent
    factors: Factors
    stock_mean: Tensor | None = None


class Decompositions:
    """Factors of a method for any latent and rank; one decomposition per latent serves all ranks.

    Args:
        method: of `METHODS`.
        options: keyword arguments of the method.
        weights: state dict of the stock model.
        statistics: None for methods that need none.
        device: where to compute, in float64.
    """

    def __init__(
        self,
        method: str,
        options: dict[str, Any],
        weights: Mapping[str, Tensor],
        statistics: Statistics | None,
        device: torch.device,
    ):
        self.method, self.options = functools.partial(METHODS[method], **options), options
        self.weights, self.statistics, self.device = weights, statistics, device
        # Preserved key dimensions are rows apart, which a truncation of full-rank factors would lose.
        self._nested = not options.get("preserved_key_dims")
        self._largest: dict[str, Factors] = {}
        self.name = method
        self.width = next(tensor.shape[0] for name, tensor in weights.items() if name.endswith("q_proj.weight"))

    def with_options(self, options: dict[str, Any]) -> "Decompositions":
        """The same with other options of the method; remembers nothing of this one."""
        return Decompositions(self.name, options, self.weights, self.statistics, self.device)

    @property
    def errors_are_comparable(self) -> bool:
        """Whether squared singular values have one unit in all layers (nats), so that ranks can be weighed by them."""
        return self.name == "fisher"

    def of(self, latent: Latent, rank: int, keep: bool = False) -> Factors:
        """Factors of rank `rank`; `keep` remembers those of full rank, for more ranks to come."""
        largest = self._largest.get(latent.name)
        if largest is not None:
            return largest.truncated(rank)
        weights = latent_weights(latent, self.weights, self.device)
        moments = None if self.statistics is None else self.statistics.moments(latent)
        factors = self.method(weights, moments, rank)
        if keep and self._nested and rank == self.width:
            self._largest[latent.name] = factors
        return factors


def factorise(latents: Sequence[Latent], decompositions: Decompositions) -> list[Factorised]:
    """The factors of each latent at its rank, with a progress bar."""
    bar = tqdm(latents, desc="Factorising", unit="latent", disable=not latents)
    return [Factorised(latent, decompositions.of(latent, latent.rank)) for latent in bar]


def compute_device(stock: PreTrainedModel) -> torch.device:
    """Where to factorise a model: where it is, or on a CUDA or XPU device: others have no float64."""
    if stock.device.type in ("cuda", "xpu"):
        return stock.device
    for name in ("cuda", "xpu"):
        if getattr(torch, name).is_available():
            return torch.device(name)
    return torch.device("cpu")
