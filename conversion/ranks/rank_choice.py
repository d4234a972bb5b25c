"""Ranks for a stated budget of cache bytes or of quality, settled on held-out audio."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import logging
from transformers.utils.logging import tqdm

from whisper_mla.conversion.errors import ConversionError
from whisper_mla.conversion.methods.apply_factors import approximated
from whisper_mla.conversion.methods.factorise import Decompositions
from whisper_mla.conversion.methods.factors import Factors
from whisper_mla.conversion.source.latents import Latent

from .budget import Budget
from .option_search import searched_options
from .quality import HeldOut
from .rank_allocation import Choice, error_by_rank, greedy_ranks, rescaled, smallest_ranks, total_cost, uniform_ranks

logger = logging.get_logger(__name__)
_ALLOCATIONS: dict[str, Callable[[Sequence[Choice], float], list[int]]] = {
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


class _Measured:
    """Error curves of one set of options, and the KL divergence that ranks cost; arguments as of `choose_ranks`."""

    def __init__(
        self,
        budget: Budget,
        latents: Sequence[Latent],
        decompositions: Decompositions,
        stock: PreTrainedModel,
        held_out: HeldOut | None,
        given: Sequence[Latent],
        bytes_per_value: int,
    ):
        self.latents, self.decompositions, self.stock, self.held_out = latents, decompositions, stock, held_out
        width = decompositions.width
        self.choices = []
        for latent in tqdm(latents, desc="Error by rank", unit="latent"):
            values = decompositions.of(latent, width, keep=True).singular_values.cpu()
            cost, allowed = latent.bytes_per_rank(bytes_per_value), budget.ranks(width, latent)
            multiple = budget.multiple(width, latent)
            self.choices.append(Choice(error_by_rank(values, width), cost, allowed[0], allowed[-1], multiple))
        self._in_place = {latent: decompositions.of(latent, latent.rank) for latent in given} if held_out else {}

    def kl(self, ranks: Sequence[int]) -> float:
        """With these ranks, latents of given ranks in place."""
        chosen = zip(self.latents, ranks, strict=True)
        low = {item: self.decompositions.of(item, rank) for item, rank in chosen if rank < self.decompositions.width}
        return self._kl({**self._in_place, **low})

    def scales(self, ranks: Sequence[int]) -> list[float]:
        """What each latent costs with no other one approximated, relative to what the method predicts.

        A latent that stays exact is measured at the largest rank at which it would not.
        """
        found = []
        bar = tqdm(self.latents, desc="Measuring latents", unit="latent")
        for latent, choice, rank in zip(bar, self.choices, ranks, strict=True):
            rank = min(rank, max((r for r in choice.ranks if r < self.decompositions.width), default=0))
            predicted = choice.errors[rank].item()
            if rank == 0 or predicted == 0:
                found.append(1.0)
            else:
                found.append(self._kl({latent: self.decompositions.of(latent, rank)}) / predicted)
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
    spendable: float | None,
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
        bytes_per_value: of the model's dtype.

    Raises:
        ConversionError: `max_kl` cannot be met; the message says what could be.
    """
    if budget.max_kl is not None and held_out is None:
        raise ConversionError("max_kl: needs held-out audio. Calibrate on at least two clips (calibration=).")

    def with_options(options: dict[str, Any]) -> _Measured:
        tried = decompositions.with_options(options)
        return _Measured(budget, latents, tried, stock, held_out, given, bytes_per_value)

    if budget.max_kl is not None:
        return _cheapest(budget.max_kl, with_options(decompositions.options))
    assert spendable is not None
    if held_out is None:
        label = "greedy" if decompositions.errors_are_comparable else "uniform"
        ranks = _ALLOCATIONS[label](with_options(decompositions.options).choices, spendable)
        reason = f"{label} ranks; no held-out audio to compare on"
        return _choice(latents, label, ranks, reason, {}, decompositions.options)
    name, completions = searched_options(decompositions.name, decompositions.options)
    best: tuple[float, _Measured, list[_Trial]] | None = None
    shown = []
    for options in completions:
        measured = with_options(options)
        trials = [
            _tried(label, allocate(measured.choices, spendable), measured) for label, allocate in _ALLOCATIONS.items()
        ]
        lowest = min(trial.kl for trial in trials)
        if name:
            shown.append({name: options[name], "kl": lowest})
        if best is None or lowest < best[0]:
            best = lowest, measured, trials
    assert best is not None
    _, measured, trials = best
    scales = measured.scales(min(trials, key=lambda trial: trial.kl).ranks)
    rescaled_choices = [rescaled(*pair) for pair in zip(measured.choices, scales, strict=True)]
    trials.append(_tried("measured", greedy_ranks(rescaled_choices, spendable), measured))
    first, *others = sorted(trials, key=lambda trial: trial.kl)
    with_others = ", ".join(f"{trial.kl:.2g} with {trial.allocation} ones" for trial in others)
    reason = f"{first.allocation} ranks: KL to stock {first.kl:.2g} on held-out audio, {with_others}"
    kl = {trial.allocation: trial.kl for trial in trials}
    return _choice(latents, first.allocation, first.ranks, reason, kl, measured.decompositions.options, shown)


def _tried(allocation: str, ranks: list[int], measured: _Measured) -> _Trial:
    return _Trial(allocation, ranks, measured.kl(ranks))


def _cheapest(max_kl: float, measured: _Measured) -> RankChoice:
    """The smallest cache whose KL divergence is within the bound, by bisection on bytes."""
    choices = measured.choices
    met: list[_Trial] = []
    missed: list[float] = []
    for label, allocate in _ALLOCATIONS.items():
        low = total_cost(choices, smallest_ranks(choices))
        high = total_cost(choices, [choice.ranks[-1] for choice in choices])
        best = _tried(label, allocate(choices, high), measured)
        if best.kl > max_kl:
            missed.append(best.kl)
            continue
        # The KL divergence falls with the ranks up to noise, so bisection may miss a slightly smaller cache.
        step = min(choice.cost * choice.multiple for choice in choices)
        while high - low > step:
            middle = (low + high) / 2
            trial = _tried(label, allocate(choices, middle), measured)
            if trial.kl <= max_kl:
                best, high = trial, middle
            else:
                low = middle
        met.append(best)
    if not met:
        raise ConversionError(
            f"max_kl={max_kl}: cannot be met with the ranks allowed (max_rank, or ranks given). The best found is "
            f"{min(missed):.3g}."
        )
    first = min(met, key=lambda trial: (total_cost(choices, trial.ranks), trial.kl))
    reason = (
        f"{first.allocation} ranks: the smaller cache with a KL to stock of at most {max_kl} on held-out audio "
        f"({first.kl:.2g})"
    )
    kl = {trial.allocation: trial.kl for trial in met}
    return _choice(measured.latents, first.allocation, first.ranks, reason, kl, measured.decompositions.options)


def _choice(latents, allocation, ranks, reason, kl, options, tried=()) -> RankChoice:
    logger.info(reason)
    named = {latent.name: rank for latent, rank in zip(latents, ranks, strict=True)}
    return RankChoice(named, allocation, reason, kl, options, list(tried))


def with_ranks(latents: Sequence[Latent], choice: RankChoice) -> list[Latent]:
    """The latents at the ranks chosen for them."""
    return [replace(latent, rank=choice.ranks.get(latent.name, latent.rank)) for latent in latents]


__all__ = ["RankChoice", "choose_ranks", "with_ranks"]
