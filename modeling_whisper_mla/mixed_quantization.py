"""Latents of principal directions in mixed bits: pure functions between latents and the bytes that a cache keeps.

The conversion orders the directions of a latent by what their loss costs, scales them so that an error costs the same
in all of them, drops those that are not worth a bit, and takes the others in groups of neighbours, rotated and scaled
to a root mean square of 1 (`whisper_mla.conversion.methods.mixed_factors`). What is left to do for one position is
here: one scale in float16, the root mean square of the position's values, and codes of 1 to 8 bits of a uniform
quantiser without a zero, `value ≈ scale · step · (code - levels / 2 + 1/2)`; values beyond the outer codes are cut.

The bytes of one position are one row: codes, then the scale. Codes are stored in pieces of 8, 4, 2 and 1 bits whose sum
they are, so that no code crosses a byte.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_FLOAT16_MAX = 65504.0
_PIECES = (8, 4, 2, 1)
# Steps of the best uniform quantiser of a normal variable with 2^1 to 2^8 levels, its standard deviation being 1 (Max,
# "Quantizing for minimum distortion", 1960). Latents have heavier tails: a quarter more loses less.
NORMAL_STEPS = (1.5958, 0.9957, 0.5860, 0.3352, 0.1881, 0.1041, 0.0569, 0.0308)
_WIDER = 1.25


def quantize_mixed(latent: Tensor, bits: Sequence[int], group_size: int) -> Tensor:
    """Round latents and pack them.

    Args:
        latent: `[..., len(bits) · group_size]` of any floating dtype.
        bits: of a code of each group, 1 to 8.
        group_size: values of a group, a multiple of 8.

    Returns:
        Tensor: uint8 `[..., sum(bits) · group_size / 8 + 2]`. A position with a NaN or an infinity comes back as NaN.
    """
    values = latent.float().unflatten(-1, (len(bits), group_size))
    scale = values.square().mean(dim=(-2, -1), keepdim=True).sqrt()
    is_finite = scale.isfinite()
    scale = torch.where(is_finite, scale.clamp(max=_FLOAT16_MAX), torch.nan).half()
    step, half = _steps(bits, latent.device)
    codes = torch.floor(values / (torch.where(scale > 0, scale.float(), 1) * step)) + half
    codes = torch.where(is_finite, codes, 0).clamp(min=torch.zeros_like(half), max=2 * half - 1).to(torch.uint8)
    packed = []
    for piece in _PIECES:
        groups = [i for i, number in enumerate(bits) if number & piece]
        if groups:
            parts = codes[..., groups, :] >> _shifts(bits, groups, piece, latent.device) & (2**piece - 1)
            parts = parts.flatten(-2).unflatten(-1, (8 // piece, -1))
            byte = parts[..., 0, :]
            for i in range(1, 8 // piece):
                byte = byte | (parts[..., i, :] << piece * i)
            packed.append(byte)
    return torch.cat([*packed, scale[..., 0].view(torch.uint8)], dim=-1)


def dequantize_mixed(packed: Tensor, bits: Sequence[int], group_size: int, dtype: torch.dtype) -> Tensor:
    """Latents from their bytes.

    Args:
        packed: `[..., bytes]` of [`quantize_mixed`]. Bytes that are all zero, as in a cache not yet filled, give zeros.
        bits, group_size: as they were packed.
        dtype: of the result.

    Returns:
        Tensor: `[..., len(bits) · group_size]`.
    """
    codes = packed.new_zeros(*packed.shape[:-1], len(bits), group_size)
    start = 0
    for piece in _PIECES:
        groups = [i for i, number in enumerate(bits) if number & piece]
        if groups:
            end = start + len(groups) * group_size * piece // 8
            stored = packed[..., start:end]
            parts = [stored >> piece * i & (2**piece - 1) for i in range(8 // piece)]
            values = torch.cat(parts, dim=-1).unflatten(-1, (len(groups), group_size))
            codes[..., groups, :] |= values << _shifts(bits, groups, piece, packed.device)
            start = end
    # A copy even of one row, which counts as contiguous but may begin at an odd byte.
    scale = packed[..., start:].clone(memory_format=torch.contiguous_format).view(torch.float16).float()[..., None]
    step, half = _steps(bits, packed.device)
    return ((codes.float() - half + 0.5) * (scale * step)).flatten(-2).to(dtype)


def _steps(bits: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Step, and half the number of codes, of each group: `[groups, 1]`, float32."""
    step = torch.tensor([_WIDER * NORMAL_STEPS[number - 1] for number in bits], device=device)
    half = torch.tensor([2.0 ** (number - 1) for number in bits], device=device)
    return step[:, None], half[:, None]


def _shifts(bits: Sequence[int], groups: list[int], piece: int, device: torch.device) -> Tensor:
    """Where a piece begins in the codes of its groups, `[groups, 1]`: after all smaller ones."""
    return torch.tensor([bits[i] & (piece - 1) for i in groups], dtype=torch.uint8, device=device)[:, None]
