"""Bits of groups of directions under a budget."""

from itertools import product

import pytest
import torch

from whisper_mla.conversion.errors import ConversionError
from whisper_mla.conversion.ranks.bit_allocation import _NORMAL_ERRORS, allocate_bits, used_bytes
from whisper_mla.conversion.source.latents import ENCODER_OUTPUT_NORM, Latent


def latent(name: str, positions: int) -> Latent:
    norm = ENCODER_OUTPUT_NORM if name == "audio" else name
    return Latent(name, (name,), f"{name}.weight", norm, 2, 24, positions)


COSTS = {
    latent("text", 10): torch.tensor([4.0, 0.5, 0.1]).repeat_interleave(8),
    latent("audio", 30): torch.tensor([9.0, 0.3, 0.1]).repeat_interleave(8),
}


def lost(bits, audio_weight: float) -> float:
    total = 0.0
    for key, cost in COSTS.items():
        row = [*bits[key], *[0] * (3 - len(bits[key]))]
        weight = audio_weight if key.is_cross else 1
        total += weight * sum(cost[8 * i].item() * _NORMAL_ERRORS[number] for i, number in enumerate(row))
    return total


@pytest.mark.parametrize("audio_weight", [1.0, 4.0])
@pytest.mark.parametrize("budget", [150, 220, 300, 420])
def test_close_to_the_best_of_all_allocations(budget, audio_weight):
    """Steps per byte are nearly convex, so that the greedy choice is as good as any that has a step less to spend."""
    found = allocate_bits(COSTS, budget, 8, audio_weight)
    assert used_bytes(found, 8) <= budget
    for row in found.values():
        assert 1 <= len(row) <= 3 and row == sorted(row, reverse=True) and min(row) >= 1 and max(row) <= 8
    rows = [row for row in product(range(9), repeat=3) if row[0] >= max(1, row[1]) and row[1] >= row[2]]
    best = min(
        lost(bits, audio_weight)
        for pair in product(rows, repeat=2)
        if used_bytes(bits := dict(zip(COSTS, pair, strict=True)), 8) <= budget - 30
    )
    assert lost(found, audio_weight) <= best * (1 + 1e-9)


def test_more_bytes_and_more_weight_give_more_bits():
    few, many, heard = (
        allocate_bits(COSTS, 200, 8, 1),
        allocate_bits(COSTS, 400, 8, 1),
        allocate_bits(COSTS, 200, 8, 50),
    )
    text, audio = COSTS
    assert lost(many, 1) < lost(few, 1)
    assert sum(heard[audio]) > sum(few[audio]) and sum(heard[text]) < sum(few[text])


def test_a_budget_that_cannot_be_met():
    with pytest.raises(ConversionError, match="the smallest cache has 120 bytes"):
        allocate_bits(COSTS, 119, 8)
    text, audio = COSTS
    assert allocate_bits(COSTS, 120, 8) == {text: [1], audio: [1]}
