"""Factors whose latent is to be rounded in mixed bits: scaled and rotated, so that a cache only has to round.

Multiplied with its singular value, every direction of a weighted decomposition has a variance that is what its loss
costs, and an error costs the same in all of them. Groups of neighbours are then rotated by the Hadamard matrix, which
gives the values of a group one size, and divided by it. All of this is linear and goes into the projections.
"""

from dataclasses import replace

import torch
from torch import Tensor

from whisper_mla.latent_quantization import hadamard

from .factors import Factors

# A direction of which the metric knows nothing still needs a scale, relative to the first.
_SMALLEST = 1e-6


def for_mixed_bits(factors: Factors, group_size: int) -> Factors:
    """The same factorisation with a latent of groups whose root mean square is 1.

    Args:
        factors: of a method that takes calibration; their rank is a multiple of `group_size`.
        group_size: values of a group.

    Returns:
        Factors: with the same products of up and down projections, up to rounding.
    """
    sizes = factors.singular_values[: factors.rank]
    sizes = sizes.clamp(min=_SMALLEST * sizes[0].item())
    of_groups = sizes.square().unflatten(0, (-1, group_size)).mean(dim=1).sqrt().repeat_interleave(group_size)
    rotation = hadamard(group_size, sizes.device).to(sizes)

    def rotate(rows: Tensor) -> Tensor:  # `[..., r]`; the matrix is its own inverse
        return (rows.unflatten(-1, (-1, group_size)) @ rotation).flatten(-2)

    down = rotate((factors.down * sizes[:, None]).T).T / of_groups[:, None]
    key_up, value_up = (rotate(up / sizes) * of_groups for up in (factors.key_up, factors.value_up))
    return replace(factors, down=down.contiguous(), key_up=key_up, value_up=value_up)


def centre(factors: Factors) -> Tensor:
    """`[r]`, float64: what a down projection adds so that the mean of its latents is 0."""
    if factors.mean is None:
        return torch.zeros(factors.rank, dtype=factors.down.dtype, device=factors.down.device)
    return -(factors.down @ factors.mean)


__all__ = ["centre", "for_mixed_bits"]
