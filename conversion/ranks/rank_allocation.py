"""Ranks under a budget: pure functions from error curves and costs to one rank for each latent."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Choice:
    """What is known of one latent when ranks are chosen.

    Attributes:
        errors: `[d + 1]`, the error at each rank, never increasing; zero at `d`.
        cost: bytes per unit of rank.
        minimum, maximum: the ranks allowed; `maximum` d means that the latent may stay exact.
        multiple: ranks are multiples of it (or `d`).
    """

    errors: Tensor
    cost: float
    minimum: int
    maximum: int
    multiple: int

    @property
    def ranks(self) -> list[int]:
        """The ranks to choose from, see `allowed_ranks`."""
        return allowed_ranks(len(self.errors) - 1, self.minimum, self.maximum, self.multiple)


def allowed_ranks(width: int, minimum: int, maximum: int, multiple: int) -> list[int]:
    """Multiples, and the full rank, within bounds; ascending.

    Raises:
        ValueError: there are none.
    """
    allowed = [rank for rank in (*range(multiple, width, multiple), width) if minimum <= rank <= maximum]
    if not allowed:
        raise ValueError(
            f"No multiple of rank_multiple={multiple} lies between min_rank={minimum} and max_rank={maximum}."
        )
    return allowed


def error_by_rank(singular_values: Tensor, width: int) -> Tensor:
    """`[d + 1]`: the squared error of each rank, the tail of the squared singular values; zero at `d`.

    Args:
        singular_values: `[up to d]`, descending.
        width: d.
    """
    squares = singular_values.square()
    errors = torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(width + 1 - len(squares))])
    errors[width:] = 0
    return errors


def rescaled(choice: Choice, factor: float) -> Choice:
    """The same choice with errors of another size."""
    return replace(choice, errors=choice.errors * factor)


def total_cost(choices: Sequence[Choice], ranks: Sequence[int]) -> float:
    """Bytes of all latents at these ranks."""
    return sum(choice.cost * rank for choice, rank in zip(choices, ranks, strict=True))


def smallest_ranks(choices: Sequence[Choice]) -> list[int]:
    """The lowest rank that each latent may have."""
    return [choice.ranks[0] for choice in choices]


def uniform_ranks(choices: Sequence[Choice], budget: float) -> list[int]:
    """The largest equal rank (within each latent's bounds) that fits.

    Args:
        choices: of each latent.
        budget: bytes.

    Raises:
        ValueError: not even the smallest ranks fit.
    """
    _check(choices, budget)
    best = smallest_ranks(choices)
    for rank in sorted({rank for choice in choices for rank in choice.ranks}):
        ranks = [max((r for r in choice.ranks if r <= rank), default=choice.ranks[0]) for choice in choices]
        if total_cost(choices, ranks) <= budget:
            best = ranks
    return best


def greedy_ranks(choices: Sequence[Choice], budget: float) -> list[int]:
    """Start from the smallest ranks; give the next step to the latent that loses most error per byte, while it fits.

    For convex error curves (tails of squared singular values are) and until a step does not fit, no other ranks with
    as few bytes have less error.

    Args:
        choices: of each latent.
        budget: bytes.

    Raises:
        ValueError: not even the smallest ranks fit.
    """
    _check(choices, budget)
    steps = [choice.ranks for choice in choices]
    at = [0] * len(choices)
    left = budget - total_cost(choices, [ranks[0] for ranks in steps])
    while True:
        best, best_gain = None, -1.0
        for i, choice in enumerate(choices):
            if at[i] + 1 == len(steps[i]):
                continue
            rank, following = steps[i][at[i]], steps[i][at[i] + 1]
            price = choice.cost * (following - rank)
            gain = (choice.errors[rank] - choice.errors[following]).item() / price
            if price <= left and gain > best_gain:
                best, best_gain = i, gain
        if best is None:
            return [ranks[i] for ranks, i in zip(steps, at, strict=True)]
        left -= choices[best].cost * (steps[best][at[best] + 1] - steps[best][at[best]])
        at[best] += 1


def _check(choices: Sequence[Choice], budget: float) -> None:
    smallest = total_cost(choices, smallest_ranks(choices))
    if smallest > budget:
        needed = f"the smallest ranks need {smallest:,.0f} bytes"
        raise ValueError(f"A budget of {budget:,.0f} bytes cannot be met: {needed}.")
