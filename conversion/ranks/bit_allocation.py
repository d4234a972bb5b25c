"""Bits for groups of directions of all latents under a budget of bytes: reverse water-filling with whole bits."""

import heapq
from collections.abc import Mapping, Sequence

from torch import Tensor

from whisper_mla.configuration.cache_size import latent_bytes
from whisper_mla.conversion.errors import ConversionError
from whisper_mla.conversion.source.latents import Latent

# Mean squared error of the best uniform quantiser of a normal variable of variance 1, by bits (Max, 1960).
_NORMAL_ERRORS = (1.0, 0.3634, 0.1188, 0.03744, 0.01154, 0.003495, 0.00104, 3.04e-4, 8.77e-5)
# What the audio's errors cost, in units of what the Fisher information says: its rounded frames are no small changes,
# and those of speech are larger than the mean. Measured on whisper-tiny.en and whisper-base (audio_latent_study.md).
_AUDIO_WEIGHT = 4.0


def allocate_bits(
    costs: Mapping[Latent, Tensor], budget: float, group_size: int, audio_weight: float = _AUDIO_WEIGHT
) -> dict[Latent, list[int]]:
    """Bits of a value for each group of neighbouring directions of each latent.

    Each step goes to the group where it removes most of the expected cost per byte. Groups of which even one bit is not
    worth its bytes are dropped, so that bits and ranks are chosen together.

    Args:
        costs: for each latent `[d]`, descending: what the loss of each direction costs, in one unit for all.
        budget: bytes of all latents at full length.
        group_size: directions of a group.
        audio_weight: factor of the cost of the audio's latent.

    Returns:
        dict: for each latent the bits of its groups, 1 to 8, never increasing; at least one group.

    Raises:
        ConversionError: one bit for one group of each latent is more than the budget.
    """
    sizes = {
        latent: [value * (audio_weight if latent.is_cross else 1) for value in _of_groups(cost, group_size)]
        for latent, cost in costs.items()
    }
    bits = {latent: [1] + [0] * (len(size) - 1) for latent, size in sizes.items()}
    spent = used_bytes(bits, group_size)
    if spent > budget:
        raise ConversionError(
            f"The budget of {budget:,.0f} bytes cannot be met with latent_dtype='mixed': the smallest cache has "
            f"{spent:,} bytes."
        )
    queue: list[tuple[float, int, int, int]] = []
    latents = list(costs)

    def offer(which: int, group: int) -> None:
        """Put the best next step of a group on the queue."""
        latent = latents[which]
        now, size = bits[latent][group], sizes[latent][group]
        highest = 8 if group == 0 else bits[latent][group - 1]
        steps = [
            (size * (_NORMAL_ERRORS[now] - _NORMAL_ERRORS[then]) / ((then - now) * latent.positions), then)
            for then in range(now + 1, highest + 1)
        ]
        if steps:
            gain, then = max(steps)
            heapq.heappush(queue, (-gain, which, group, then))

    for which, latent in enumerate(latents):
        for group in range(len(bits[latent])):
            offer(which, group)
    while queue:
        _, which, group, then = heapq.heappop(queue)
        latent = latents[which]
        now = bits[latent][group]
        price = (then - now) * group_size // 8 * latent.positions
        if then <= now or spent + price > budget:
            continue
        bits[latent][group] = then
        spent += price
        offer(which, group)
        if group + 1 < len(bits[latent]):
            offer(which, group + 1)  # which may now have more
    return {latent: [number for number in row if number] for latent, row in bits.items()}


def _of_groups(cost: Tensor, group_size: int) -> list[float]:
    return cost.unflatten(0, (-1, group_size)).mean(dim=1).tolist()


def used_bytes(bits: Mapping[Latent, Sequence[int]], group_size: int) -> int:
    """Bytes of the cache of one audio at full length."""
    return sum(latent.positions * latent_bytes(0, row, group_size, 0) for latent, row in bits.items())


__all__ = ["allocate_bits", "used_bytes"]
