"""Ranks for a stated budget of cache bytes or of quality, settled on held-out audio."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from transformers.utils import logging
from transformers.utils.logging import tqdm

from .errors import ConversionError
from .factorise import Decompositions
from .latents import Latent
from .quality import HeldOut, approximated
from .rank_allocation import Choice, greedy_ranks, smallest_ranks, total_cost, uniform_ranks

logger = logging.get_logger(__name__)
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class Budget:
    """What the user allows; exactly one of the first three.

    Attributes:
        cache_cut: share of the stock decode cache to save, above 0 and below 1.
        cache_bytes: bytes of the decode cache of one stream, or a text such as "12MB".
        max_kl: KL divergence to stock per token on held-out audio, in nats.
        rank_multiple: ranks are multiples of it; None: 16, or 4 where d_model is below 512.
        min_rank, max_rank: bounds for every latent; None: none.
    """

    cache_cut: float | None = None
    cache_bytes: int | str | None = None
    max_kl: float | None = None
    rank_multiple: int | None = None
    min_rank: int | None = None
    max_rank: int | None = None

    @property
    def is_given(self) -> bool:
        """Whether there is a budget at all."""
        return any(value is not None for value in (self.cache_cut, self.cache_bytes, self.max_kl))

    def check(self) -> None:
        """Raise `ConversionError` where a value makes no sense."""
        goals = {"cache_cut": self.cache_cut, "cache_bytes": self.cache_bytes, "max_kl": self.max_kl}
        given = {name: value for name, value in goals.items() if value is not None}
        if len(given) > 1:
            raise ConversionError(f"{', '.join(given)}: give one of them.")
        if self.cache_cut is not None and not 0 < self.cache_cut < 1:
            raise ConversionError(f"cache_cut={self.cache_cut}: expected a share between 0 and 1, such as 0.95.")
        if self.max_kl is not None and not 0 < self.max_kl < float("inf"):
            raise ConversionError(f"max_kl={self.max_kl}: expected a positive number of nats, such as 0.01.")
        if self.cache_bytes is not None and parse_bytes(self.cache_bytes) < 1:
            raise ConversionError(f"cache_bytes={self.cache_bytes}: expected at least one byte.")
        for name in ("rank_multiple", "min_rank", "max_rank"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConversionError(f"{name}={value!r}: expected an integer, at least 1.")
            if value is not None and not given:
                raise ConversionError(f"{name}={value!r}: only with cache_cut, cache_bytes or max_kl.")


@dataclass(frozen=True)
class RankChoice:
    """The ranks chosen, and how.

    Attributes:
        ranks: latent name to rank.
        allocation: "uniform" or "greedy".
        reason: a sentence for people.
        kl: on held-out audio, by allocation that was measured.
    """

    ranks: dict[str, int]
    allocation: str
    reason: str
    kl: dict[str, float]


def parse_bytes(size: int | str) -> int:
    """ "12MB" to 12,000,000; KiB, MiB and GiB are powers of 1024.

    Raises:
        ConversionError: not a size.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", str(size))
    if not match or match[2].lower() not in _UNITS:
        raise ConversionError(f"cache_bytes={size!r}: expected bytes, or a size such as 12MB or 1.5GiB.")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def choose_ranks(
    budget: Budget,
    latents: Sequence[Latent],
    decompositions: Decompositions,
    stock: torch.nn.Module,
    held_out: HeldOut | None,
    stock_bytes: int,
    fixed_bytes: int,
    bytes_per_value: int,
) -> RankChoice:
    """Spend the budget over self-attention and cross-attention together, once evenly and once where it counts.

    Of both allocations the one with the lower KL divergence on held-out audio is taken; without such audio the greedy
    one for `fisher`, whose errors have one unit in all layers, and else the even one.

    Args:
        budget: with a goal.
        latents: those whose rank is to be chosen.
        decompositions: of the method.
        stock: in float32.
        held_out: None where there is none.
        stock_bytes: decode cache of the stock model, one stream.
        fixed_bytes: of it, what latents of given ranks will need.
        bytes_per_value: of the cache.

    Raises:
        ConversionError: the budget cannot be met; the message says what could be.
    """
    width = decompositions.width
    multiple = budget.rank_multiple or (16 if width >= 512 else 4)
    choices = []
    for latent in tqdm(latents, desc="Error by rank", unit="latent"):
        spectrum = decompositions.of(latent, width, keep=True).singular_values.cpu().square()
        errors = torch.cat([spectrum.flip(0).cumsum(0).flip(0), spectrum.new_zeros(width + 1 - len(spectrum))])
        errors[width:] = 0
        top = min(budget.max_rank or width, width)
        choices.append(Choice(errors, latent.positions * bytes_per_value, budget.min_rank or 1, top, multiple))

    def measured(ranks: list[int]) -> float:
        assert held_out is not None
        chosen = zip(latents, ranks, strict=True)
        factors = {latent: decompositions.of(latent, rank) for latent, rank in chosen if rank < width}
        with approximated(stock, factors):
            return held_out.measure(stock, same_encoder=True).kl

    allocations: dict[str, Callable[[Sequence[Choice], int], list[int]]] = {
        "uniform": uniform_ranks,
        "greedy": greedy_ranks,
    }
    try:
        smallest = total_cost(choices, smallest_ranks(choices))
        if budget.max_kl is not None:
            return _cheapest(budget.max_kl, latents, choices, allocations, measured if held_out else None)
        limit = (
            parse_bytes(budget.cache_bytes)
            if budget.cache_bytes is not None
            else int(stock_bytes * (1 - (budget.cache_cut or 0)))
        )
        if smallest + fixed_bytes > limit:
            smallest += fixed_bytes
            goal = f"cache_cut={budget.cache_cut}" if budget.cache_cut else f"cache_bytes={budget.cache_bytes}"
            raise ConversionError(
                f"{goal}: cannot be met. The smallest possible cache is {smallest:,} bytes (a cut of "
                f"{1 - smallest / stock_bytes:.4f}), with ranks of {multiple}; see min_rank and rank_multiple."
            )
        found = {name: allocate(choices, limit - fixed_bytes) for name, allocate in allocations.items()}
    except ValueError as error:
        raise error if isinstance(error, ConversionError) else ConversionError(str(error)) from error
    if held_out is None:
        best = "greedy" if decompositions.errors_are_comparable else "uniform"
        return _choice(latents, found[best], best, f"{best} ranks; no held-out audio to compare on", {})
    kl = {name: measured(ranks) for name, ranks in found.items()}
    best = min(kl, key=lambda name: kl[name])
    other = "uniform" if best == "greedy" else "greedy"
    reason = f"{best} ranks: KL to stock {kl[best]:.2g} on held-out audio, {kl[other]:.2g} with {other} ranks"
    return _choice(latents, found[best], best, reason, kl)


def _cheapest(max_kl, latents, choices, allocations, measured) -> RankChoice:
    """The smallest cache whose KL divergence is within the bound, by bisection on bytes."""
    if measured is None:
        raise ConversionError("max_kl: needs held-out audio. Calibrate on at least two clips (calibration=).")
    results = {}
    for name, allocate in allocations.items():
        low = total_cost(choices, smallest_ranks(choices))
        high = total_cost(choices, [choice.ranks[-1] for choice in choices])
        ranks = allocate(choices, high)
        kl = measured(ranks)
        if kl > max_kl:
            results[name] = (None, kl)
            continue
        # The KL divergence falls with the ranks up to noise, so bisection may miss a slightly smaller cache.
        step = min(choice.cost * choice.multiple for choice in choices)
        while high - low > step:
            middle = (low + high) // 2
            tried = allocate(choices, middle)
            kl_tried = measured(tried)
            if kl_tried <= max_kl:
                ranks, kl, high = tried, kl_tried, middle
            else:
                low = middle
        results[name] = (ranks, kl)
    met = {name: (ranks, kl) for name, (ranks, kl) in results.items() if ranks is not None}
    if not met:
        best = min(kl for _, kl in results.values())
        raise ConversionError(f"max_kl={max_kl}: cannot be met within max_rank. The best found is {best:.3g}.")
    best = min(met, key=lambda name: (total_cost(choices, met[name][0]), met[name][1]))
    ranks, kl = met[best]
    reason = f"{best} ranks: the smaller cache with a KL to stock of at most {max_kl} on held-out audio ({kl:.2g})"
    return _choice(latents, ranks, best, reason, {name: kl for name, (_, kl) in met.items()})


def _choice(latents, ranks, allocation, reason, kl) -> RankChoice:
    logger.info(reason)
    named = {latent.name: rank for latent, rank in zip(latents, ranks, strict=True)}
    return RankChoice(named, allocation, reason, kl)


def with_ranks(latents: Sequence[Latent], choice: RankChoice) -> list[Latent]:
    """The latents at the ranks chosen for them."""
    return [replace(latent, rank=choice.ranks.get(latent.name, latent.rank)) for latent in latents]


__all__ = ["Budget", "RankChoice", "choose_ranks", "parse_bytes", "with_ranks"]
