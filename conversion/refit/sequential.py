"""Find latents layer by layer, each on what the converted layers below deliver, and refit its up projections to it."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, WhisperForConditionalGeneration
from transformers.utils.logging import tqdm

from whisper_mla.conversion.calibration.examples import Example, batches, forced_logits
from whisper_mla.conversion.calibration.moments import Moments
from whisper_mla.conversion.calibration.statistics import InputMoments
from whisper_mla.conversion.methods.apply_factors import write_approximation
from whisper_mla.conversion.methods.factorise import Decompositions, Factorised
from whisper_mla.conversion.methods.factors import Factors
from whisper_mla.conversion.source.latent_weights import LatentWeights, latent_weights
from whisper_mla.conversion.source.latents import Latent

from .least_squares import refit


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


@dataclass(frozen=True)
class PairedMoments:
    """What the stock model (`x`) and the partly converted one (`x_new`) hand to the same attention.

    Attributes:
        count: vectors.
        stock_mean, mean: `[d]`, of `x` and of `x_new`.
        covariance: `[d, d]`, of `x_new`.
        cross: `[d, d]`, `E[(x - E x)(x_new - E x_new)^T]`.
    """

    count: int
    stock_mean: Tensor
    mean: Tensor
    covariance: Tensor
    cross: Tensor


class _ReachedError(Exception):
    """The attention has been reached; nothing after it matters."""


@torch.no_grad()
def paired_moments(
    stock: PreTrainedModel,
    converted: PreTrainedModel,
    attention: str,
    examples: Sequence[Example],
    batch_size: int = 8,
) -> PairedMoments:
    """Run both models up to one attention over the same examples.

    Args:
        stock, converted: Whisper models of one shape in evaluation mode, the second with some layers approximated.
        attention: module name.
        examples: at least one.
        batch_size: clips at once.

    Returns:
        PairedMoments: float64, on the models' device.
    """
    both = InputMoments()
    for batch in batches(examples, batch_size, stock):
        states = [_input_of(model, attention, batch) for model in (stock, converted)]
        rows = [
            state[batch["mask"]]
            if attention.endswith("self_attn") and ".decoder." in attention
            else state.flatten(0, 1)
            for state in states
        ]
        both.update(torch.cat(rows, dim=1))
    width = both.mean.shape[0] // 2
    return PairedMoments(
        both.count,
        both.mean[:width],
        both.mean[width:],
        both.covariance[width:, width:],
        both.covariance[:width, width:],
    )


def _input_of(model: PreTrainedModel, attention: str, batch: dict[str, Tensor]) -> Tensor:
    seen = []

    def hook(module, arguments):
        seen.append(arguments[0])
        raise _ReachedError

    handle = model.get_submodule(f"{attention}.k_proj").register_forward_pre_hook(hook)
    try:
        forced_logits(model, batch, through_encoder=True)
    except _ReachedError:
        pass
    finally:
        handle.remove()
    return seen[0]
