"""Ranks for a stated budget of cache bytes or of quality, settled on held-out audio."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import logging
from transformers.utils.logging import tqdm

from .budget import Budget
from .errors import ConversionError
from .factorise import Decompositions, searched_options
from .factors import Factors
from .latents import Latent
from .quality import HeldOut, approximated
from .rank_allocation import (
    Choice,
    error_by_rank,
    greedy_ranks,
    rescaled,
    smallest_ranks,
    total_cost,
    uniform_ranks,
)

logger = logging.get_logger(__name__)
_ALLOCATIONS: dict[str, Callable[[Sequence[Choice], int], list[int]]] = {
    "uniform": uniform_ranks,
    "greedy": greedy_ranks,
}


@dataclass(frozen=True)
class RankChoice:
    """The ranks chosen, and how.

    Attributes:
        ranks: latent name to rank.
        allocation: "uniform"; "greedy", by the errors that the method predicts; or "measured", greedy by predictions
            that were brought to the size of what was measured, latent by latent.
        reason: a sentence for people.
        kl: on held-out audio, by allocation that was measured.
        options: of the method, completed where an option was chosen together with the ranks.
        tried: values of that option and the best KL with each.
    """

    ranks: dict[str, int]
    allocation: str
    reason: str
    kl: dict[str, float]
    options: dict[str, Any]
    tried: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class _Trial:
    """Ranks that were measured."""

    allocation: str
    ranks: list[int]
    kl: float


@dataclass(frozen=True)
class _Candidates:
    """Allocations of ranks to latents, and the KL divergence that they cost; fields as in `choose_ranks`."""

    budget: Budget
    latents: Sequence[Latent]
    stock: PreTrainedModel
    held_out: HeldOut | None
    given: Sequence[Latent]
    bytes_per_value: int

    def choices(self, decompositions: Decompositions) -> list[Choice]:
        """Error curves and costs of the latents."""
        width = decompositions.width
        allowed, multiple = self.budget.ranks(width), self.budget.multiple(width)
        found = []
        for latent in tqdm(self.latents, desc="Error by rank", unit="latent"):
            values = decompositions.of(latent, width, keep=True).singular_values.cpu()
            cost = latent.positions * self.bytes_per_value
            found.append(Choice(error_by_rank(values, width), cost, allowed[0], allowed[-1], multiple))
        return found

    def measured(self, decompositions: Decompositions, ranks: Sequence[int]) -> float:
        """KL divergence with these ranks, latents of given ranks in place."""
        chosen = [*zip(self.latents, ranks, strict=True), *((latent, latent.rank) for latent in self.given)]
        return self._kl({item: decompositions.of(item, rank) for item, rank in chosen if rank < decompositions.width})

    def scales(self, decompositions: Decompositions, choices: Sequence[Choice], ranks: Sequence[int]) -> list[float]:
        """What each latent costs with no other one approximated, relative to what the method predicts.

        A latent that stays exact is measured at the largest rank at which it would not.
        """
        found = []
        bar = tqdm(self.latents, desc="Measuring latents", unit="latent")
        for latent, choice, rank in zip(bar, choices, ranks, strict=True):
            rank = min(rank, max((r for r in choice.ranks if r < decompositions.width), default=0))
            predicted = choice.errors[rank].item()
            if rank == 0 or predicted == 0:
                found.append(1.0)
            else:
                found.append(self._kl({latent: decompositions.of(latent, rank)}) / predicted)
        return found

    def _kl(self, factors: Mapping[Latent, Factors]) -> float:
        assert self.held_out is not None
        with approximated(self.stock, factors):
            return self.held_out.measure(self.stock, not any(latent.in_encoder for latent in factors)).kl


def choose_ranks(
    budget: Budget,
    latents: Sequence[Latent],
    decompositions: Decompositions,
    stock: PreTrainedModel,
    held_out: HeldOut | None,
    given: Sequence[Latent],
    spendable: int | None,
    bytes_per_value: int,
) -> RankChoice:
    """Spend the budget over self-attention and cross-attention together, once evenly and once where it counts.

    Of several allocations the one with the lowest KL divergence on held-out audio is taken, together with the value of
    the option that held-out audio decides (see `searched_options`). The errors that a method predicts are right while
    they are small, and for most methods only up to a scale that differs between layers; so the best of these is
    followed by greedy ranks with the predictions scaled to what each latent costs alone. Without held-out audio the
    greedy allocation is taken for `fisher`, whose errors have one unit in all layers, and else the even one.

    Args:
        budget: with a goal.
        latents: those whose rank is to be chosen.
        decompositions: of the method, with the options that the user gave.
        stock: in float32.
        held_out: None where there is none.
        given: latents of given low ranks, which are in place whenever a choice is measured.
        spendable: bytes, see `Budget.bytes_for`; None for `max_kl`.
        bytes_per_value: of the cache.

    Raises:
        ConversionError: `max_kl` cannot be met; the message says what could be.
    """
    if budget.max_kl is not None and held_out is None:
        raise ConversionError("max_kl: needs held-out audio. Calibrate on at least two clips (calibration=).")
    candidates = _Candidates(budget, latents, stock, held_out, given, bytes_per_value)
    if budget.max_kl is not None:
        return _cheapest(budget.max_kl, candidates, decompositions)
    assert spendable is not None
    if held_out is None:
        best = "greedy" if decompositions.errors_are_comparable else "uniform"
        ranks = _ALLOCATIONS[best](candidates.choices(decompositions), spendable)
        reason = f"{best} ranks; no held-out audio to compare on"
        return _choice(latents, ranks, best, reason, {}, decompositions.options)
    name, all_options = searched_options(decompositions.name, decompositions.options)
    found: list[tuple[dict[str, Any], list[_Trial]]] = []
    for options in all_options:
        with_options = decompositions.with_options(options)
        choices = candidates.choices(with_options)
        allocated = {label: allocate(choices, spendable) for label, allocate in _ALLOCATIONS.items()}
        trials = [_Trial(label, ranks, candidates.measured(with_options, ranks)) for label, ranks in allocated.items()]
        found.append((options, trials))
    options, trials = min(found, key=lambda item: min(trial.kl for trial in item[1]))
    chosen = decompositions.with_options(options)
    trials = [*trials, _by_measured_errors(candidates, chosen, min(trials, key=lambda trial: trial.kl), spendable)]
    first, *others = sorted(trials, key=lambda trial: trial.kl)
    with_others = ", ".join(f"{trial.kl:.2g} with {trial.allocation} ones" for trial in others)
    reason = f"{first.allocation} ranks: KL to stock {first.kl:.2g} on held-out audio, {with_others}"
    kl = {trial.allocation: trial.kl for trial in trials}
    shown = [{name: tried[name], "kl": min(trial.kl for trial in of_it)} for tried, of_it in found if name]
    return _choice(latents, first.ranks, first.allocation, reason, kl, options, shown)


def _by_measured_errors(
    candidates: _Candidates, decompositions: Decompositions, start: _Trial, spendable: int
) -> _Trial:
    """Greedy ranks by errors scaled to what each latent alone costs at about the ranks of `start`."""
    choices = candidates.choices(decompositions)
    scales = candidates.scales(decompositions, choices, start.ranks)
    allocated = greedy_ranks([rescaled(*pair) for pair in zip(choices, scales, strict=True)], spendable)
    return _Trial("measured", allocated, candidates.measured(decompositions, allocated))


def _cheapest(max_kl: float, candidates: _Candidates, decompositions: Decompositions) -> RankChoice:
    """The smallest cache whose KL divergence is within the bound, by bisection on bytes."""
    choices = candidates.choices(decompositions)
    met: dict[str, tuple[list[int], float]] = {}
    missed: list[float] = []
    for name, allocate in _ALLOCATIONS.items():
        low = total_cost(choices, smallest_ranks(choices))
        high = total_cost(choices, [choice.ranks[-1] for choice in choices])
        ranks = allocate(choices, high)
        kl = candidates.measured(decompositions, ranks)
        if kl > max_kl:
            missed.append(kl)
            continue
        # The KL divergence falls with the ranks up to noise, so bisection may miss a slightly smaller cache.
        step = min(choice.cost * choice.multiple for choice in choices)
        while high - low > step:
            middle = (low + high) // 2
            tried = allocate(choices, middle)
            kl_tried = candidates.measured(decompositions, tried)
            if kl_tried <= max_kl:
                ranks, kl, high = tried, kl_tried, middle
            else:
                low = middle
        met[name] = (ranks, kl)
    if not met:
        raise ConversionError(
            f"max_kl={max_kl}: cannot be met with the ranks allowed (max_rank, or ranks given). The best found is "
            f"{min(missed):.3g}."
        )
    best = min(met, key=lambda name: (total_cost(choices, met[name][0]), met[name][1]))
    ranks, kl = met[best]
    reason = f"{best} ranks: the smaller cache with a KL to stock of at most {max_kl} on held-out audio ({kl:.2g})"
    kl_by_allocation = {name: kl for name, (_, kl) in met.items()}
    return _choice(candidates.latents, ranks, best, reason, kl_by_allocation, decompositions.options)


def _choice(latents, ranks, allocation, reason, kl, options, tried=()) -> RankChoice:
    logger.info(reason)
    named = {latent.name: rank for latent, rank in zip(latents, ranks, strict=True)}
    return RankChoice(named, allocation, reason, kl, options, list(tried))


def with_ranks(latents: Sequence[Latent], choice: RankChoice) -> list[Latent]:
    """The latents at the ranks chosen for them."""
    return [replace(latent, rank=choice.ranks.get(latent.name, latent.rank)) for latent in latents]


__all__ = ["RankChoice", "choose_ranks", "with_ranks"]
