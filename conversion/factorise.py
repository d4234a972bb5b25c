"""Find the factors of all latents of a conversion: in one go, or each on what the converted layers below deliver."""

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration
from transformers.utils.logging import tqdm

from .calibration import Statistics
from .factors import Factors
from .latent_weights import LatentWeights, Moments
from .latents import Latent, factorised_weights, latent_weights
from .methods import METHODS
from .quality import HeldOut, approximated, write_approximation
from .refit import refit
from .sequential import paired_moments

# Options that a short search on held-out audio settles unless they are given.
SEARCHED = {"attention": ("balance", (0.25, 0.5, 1.0, 2.0, 4.0)), "fisher": ("floor", (0.01, 0.1, 1.0))}


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


def factorise_sequentially(
    stock: WhisperForConditionalGeneration, latents: Sequence[Latent], decompositions: Decompositions
) -> list[Factorised]:
    """As `factorise`, but each latent is found on the inputs that the converted layers below deliver, and its up
    projections are refitted to reproduce the stock model's keys and values from them.

    Args:
        stock: in float32, in evaluation mode.
        latents: in the order in which the model computes them.
        decompositions: with statistics that still have their examples.

    Raises:
        ValueError: statistics from a file, which no longer have their examples.
    """
    statistics = decompositions.statistics
    if statistics is None or not statistics.examples:
        raise ValueError("sequential=True: needs calibration audio (calibration=), not a statistics file.")
    converted = copy.deepcopy(stock)
    found = []
    for latent in tqdm(latents, desc="Factorising layer by layer", unit="latent"):
        paired = paired_moments(stock, converted, latent.attentions[0], statistics.examples)
        weights = latent_weights(latent, decompositions.weights, decompositions.device)
        moments = replace(
            statistics.moments(latent), count=paired.count, mean=paired.mean.cpu(), covariance=paired.covariance.cpu()
        )
        # What `fisher` decomposes with is not the covariance alone; a refit to that would undo its weighting.
        weighed = moments.kronecker.covariance if decompositions.name == "fisher" and moments.kronecker else None
        factors = decompositions.method(weights, moments, latent.rank)
        factors = refitted(weights, factors, paired.cross, moments, weighed)
        item = Factorised(latent, factors, paired.stock_mean.cpu())
        write_approximation(converted, item.latent, item.factors, item.stock_mean)
        found.append(item)
    return found


def refitted(
    weights: LatentWeights, factors: Factors, cross: Tensor, moments: Moments, weighed: Tensor | None = None
) -> Factors:
    """The factors with up projections fitted to the inputs, centred at their mean; see `refit`.

    Args:
        weights: of the latent.
        factors: whose down projection stays.
        cross: `[d, d]`, `E[(x - E x)(x_new - E x_new)^T]`.
        moments: of `x_new`.
        weighed: `[d, d]`, another estimate of the covariance, in which `x_new` and `x` are the same: the fit is to the
            means of it and of `cross` and the covariance; None: to these alone.
    """
    moments = moments.for_weights(weights)
    covariance = moments.covariance
    if weighed is not None:
        weighed = weighed.to(covariance)
        cross, covariance = (cross.to(covariance) + weighed) / 2, (covariance + weighed) / 2

    def fit(stack: Tensor) -> Tensor:
        return refit(stack.flatten(0, 1), factors.down, cross, covariance).unflatten(0, stack.shape[:2])

    return replace(factors, key_up=fit(weights.key), value_up=fit(weights.value), mean=moments.mean)


def searched_options(method: str, options: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """All completions of a method's options by the values to search; the name is empty where nothing is searched."""
    name, values = SEARCHED.get(method, ("", ()))
    if not name or name in options:
        return "", [options]
    return name, [{**options, name: value} for value in values]


def search_option(
    method: str,
    options: dict[str, Any],
    stock: WhisperForConditionalGeneration,
    latents: Sequence[Latent],
    statistics: Statistics | None,
    held_out: HeldOut | None,
    device: torch.device,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Settle the one option of a method that held-out audio should decide.

    Args:
        method, options: as given by the user.
        stock: in float32.
        latents: at their ranks.
        statistics, held_out: None where there is no calibration.
        device: where to factorise.

    Returns:
        tuple: the options, completed; and what was tried: the option's value and the KL that it gave.
    """
    name, completions = searched_options(method, options)
    if not name or held_out is None or not latents:
        return options, []
    same_encoder = not any(latent.in_encoder for latent in latents)
    tried = []
    for completed in tqdm(completions, desc=f"Searching {name}", unit="value"):
        decompositions = Decompositions(method, completed, stock.state_dict(), statistics, device)
        with approximated(stock, {latent: decompositions.of(latent, latent.rank) for latent in latents}):
            tried.append({name: completed[name], "kl": held_out.measure(stock, same_encoder).kl})
    best = min(tried, key=lambda trial: trial["kl"])
    return {**options, name: best[name]}, tried


def replacement_weights(found: Sequence[Factorised], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors that replace stock ones, in the stock dtype and on the stock device."""
    new: dict[str, Tensor] = {}
    for item in found:
        new.update(factorised_weights(item.latent, weights, item.factors, item.stock_mean))
    return new
