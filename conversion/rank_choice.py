"""Ranks for a stated budget of cache bytes or of quality, settled on held-out audio."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel
from transformers.utils import logging
from transformers.utils.logging import tqdm

from .errors import ConversionError
from .factorise import Decompositions
from .latents import Latent
from .quality import HeldOut, approximated
from .rank_allocation import Choice, allowed_ranks, greedy_ranks, smallest_ranks, total_cost, uniform_ranks

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
        if self.cache_cut is not None and not (_is_number(self.cache_cut) and 0 < self.cache_cut < 1):
            raise ConversionError(f"cache_cut={self.cache_cut!r}: expected a share between 0 and 1, such as 0.95.")
        if self.max_kl is not None and not (_is_number(self.max_kl) and 0 < self.max_kl < float("inf")):
            raise ConversionError(f"max_kl={self.max_kl!r}: expected a positive number of nats, such as 0.01.")
        if self.cache_bytes is not None and parse_bytes(self.cache_bytes) < 1:
            raise ConversionError(f"cache_bytes={self.cache_bytes}: expected at least one byte.")
        for name in ("rank_multiple", "min_rank", "max_rank"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConversionError(f"{name}={value!r}: expected an integer, at least 1.")
            if value is not None and not given:
                raise ConversionError(f"{name}={value!r}: only with cache_cut, cache_bytes or max_kl.")

    def multiple(self, width: int) -> int:
        """What ranks of a model of `width` are multiples of."""
        return self.rank_multiple or (16 if width >= 512 else 4)

    def ranks(self, width: int) -> list[int]:
        """The ranks to choose from in a model of `width`.

        Raises:
            ConversionError: there are none.
        """
        try:
            return allowed_ranks(width, self.min_rank or 1, min(self.max_rank or width, width), self.multiple(width))
        except ValueError as error:
            raise ConversionError(str(error)) from error

    def bytes_for(
        self, latents: Sequence[Latent], width: int, stock_bytes: int, fixed_bytes: int, bytes_per_value: int
    ) -> int | None:
        """What latents whose rank is to be chosen may cost; None for `max_kl`.

        Args:
            latents: those whose rank is to be chosen.
            width: of the model.
            stock_bytes: decode cache of the stock model, one stream.
            fixed_bytes: what latents of given ranks need.
            bytes_per_value: of the cache.

        Raises:
            ConversionError: the smallest ranks need more; the message says how much.
        """
        if self.max_kl is not None:
            return None
        if self.cache_bytes is not None:
            goal, limit = f"cache_bytes={self.cache_bytes}", parse_bytes(self.cache_bytes)
        else:
            goal, limit = f"cache_cut={self.cache_cut}", int(stock_bytes * (1 - (self.cache_cut or 0)))
        rank = self.ranks(width)[0]
        smallest = fixed_bytes + rank * bytes_per_value * sum(latent.positions for latent in latents)
        if smallest > limit:
            raise ConversionError(
                f"{goal}: cannot be met. The smallest possible cache is {smallest:,} bytes (a cut of "
                f"{1 - smallest / stock_bytes:.4f}), at rank {rank}; see min_rank and rank_multiple."
            )
        return limit - fixed_bytes


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


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


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
    stock: PreTrainedModel,
    held_out: HeldOut | None,
    given: Sequence[Latent],
    spendable: int | None,
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
        given: latents of given low ranks, which are in place whenever a choice is measured.
        spendable: bytes, see `Budget.bytes_for`; None for `max_kl`.
        bytes_per_value: of the cache.

    Raises:
        ConversionError: `max_kl` cannot be met; the message says what could be.
    """
    if budget.max_kl is not None and held_out is None:
        raise ConversionError("max_kl: needs held-out audio. Calibrate on at least two clips (calibration=).")
    width = decompositions.width
    allowed, multiple = budget.ranks(width), budget.multiple(width)
    choices = []
    for latent in tqdm(latents, desc="Error by rank", unit="latent"):
        spectrum = decompositions.of(latent, width, keep=True).singular_values.cpu().square()
        errors = torch.cat([spectrum.flip(0).cumsum(0).flip(0), spectrum.new_zeros(width + 1 - len(spectrum))])
        errors[width:] = 0
        choices.append(Choice(errors, latent.positions * bytes_per_value, allowed[0], allowed[-1], multiple))
    in_place = {latent: decompositions.of(latent, latent.rank) for latent in given} if held_out else {}
    same_encoder = not any(latent.in_encoder for latent in given)

    def measured(ranks: list[int]) -> float:
        assert held_out is not None
        chosen = zip(latents, ranks, strict=True)
        factors = {latent: decompositions.of(latent, rank) for latent, rank in chosen if rank < width}
        with approximated(stock, {**in_place, **factors}):
            return held_out.measure(stock, same_encoder).kl

    allocations: dict[str, Callable[[Sequence[Choice], int], list[int]]] = {
        "uniform": uniform_ranks,
        "greedy": greedy_ranks,
    }
    if budget.max_kl is not None:
        return _cheapest(budget.max_kl, latents, choices, allocations, measured)
    assert spendable is not None
    found = {name: allocate(choices, spendable) for name, allocate in allocations.items()}
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
    met: dict[str, tuple[list[int], float]] = {}
    missed: list[float] = []
    for name, allocate in allocations.items():
        low = total_cost(choices, smallest_ranks(choices))
        high = total_cost(choices, [choice.ranks[-1] for choice in choices])
        ranks = allocate(choices, high)
        kl = measured(ranks)
        if kl > max_kl:
            missed.append(kl)
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
        met[name] = (ranks, kl)
    if not met:
        raise ConversionError(
            f"max_kl={max_kl}: cannot be met with the ranks allowed (max_rank, or ranks given). The best found is "
            f"{min(missed):.3g}."
        )
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
