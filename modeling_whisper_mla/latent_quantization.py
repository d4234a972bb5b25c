"""Quantised latents: pure functions between latents and the bytes that a cache keeps of them.

The values of one position are taken in groups of neighbours. A group is rotated by the normalised Hadamard matrix,
which spreads an outlying channel over the whole group (as QuaRot does for whole vectors, arXiv 2404.00456) and is its
own inverse. Then it is rounded asymmetrically: it has a minimum m and a scale s in float16, and codes of 8 or 4 bits,
`rotated ≈ m + s · code` (Jacob et al., arXiv 1712.05877, section 2.1; groups per token as in KIVI, arXiv 2402.02750).
With groups of 32 a value takes 9 or 5 bits.

The bytes of one position are one row: first the codes, then the scales, then the minima. A cache can therefore move,
repeat, cut and reorder positions without knowing what they mean.

Latents whose groups have bits of their own are those of `mixed_quantization.py`.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .kernel_check import kernels_work
from .mixed_quantization import dequantize_mixed, quantize_mixed
from .packing_kernels import kernels_pack, pack, unpack

_FLOAT16_MAX = 65504.0
# Values or bytes that are worked on at a time: some audios, and so few that processors' caches hold them.
_AT_ONCE = 2**20


def quantize(latent: Tensor, bits: int | Sequence[int], group_size: int) -> Tensor:
    """Round latents and pack them.

    Args:
        latent: `[..., width]` of any floating dtype; `width` is a multiple of `group_size`.
        bits: 8 or 4, of a code; or those of each group, see [`quantize_mixed`], also for what is returned.
        group_size: values that share a scale and a minimum, a power of two from 4.

    Returns:
        Tensor: uint8 `[..., width · bits / 8 + 4 · width / group_size]`. Of a group whose rotated values have the range
        R and the minimum m, [`dequantize`] makes one that differs by at most `sqrt(group_size)` times
        `R / (2^bits - 1) / 2 + |m| / 2^11` in Euclidean norm. Rotated values beyond float16's ±65504 are cut. A group
        with a NaN or an infinity comes back as NaN.
    """
    if isinstance(bits, int) and _kernels_serve(latent, latent.shape[-1], group_size):
        return pack(latent, bits, group_size)
    return _in_parts(lambda part: _quantize(part, bits, group_size), latent)


def _quantize(latent: Tensor, bits: int | Sequence[int], group_size: int) -> Tensor:
    if not isinstance(bits, int):
        return quantize_mixed(latent, bits, group_size)
    levels = 2**bits - 1
    groups = _rotate(latent.float().unflatten(-1, (-1, group_size)))
    low, high = torch.aminmax(groups, dim=-1, keepdim=True)
    is_finite = low.isfinite() & high.isfinite()
    low = low.clamp(-_FLOAT16_MAX, _FLOAT16_MAX).half()
    # From the minimum as it is stored, so that the codes make good its rounding.
    scale = ((high.clamp(-_FLOAT16_MAX, _FLOAT16_MAX) - low.float()).clamp(min=0) / levels).half()
    codes = (groups - low.float()) / torch.where(scale > 0, scale.float(), 1)
    codes = torch.where(is_finite, codes, 0).round().clamp(0, levels).to(torch.uint8).flatten(-2)
    if bits == 4:
        first, second = codes.chunk(2, dim=-1)
        codes = first | (second << 4)
    low = torch.where(is_finite, low, torch.nan)
    return torch.cat([codes, scale[..., 0].view(torch.uint8), low[..., 0].view(torch.uint8)], dim=-1)


def dequantize(packed: Tensor, width: int, bits: int | Sequence[int], group_size: int, dtype: torch.dtype) -> Tensor:
    """Latents from their bytes.

    Args:
        packed: `[..., bytes]` of [`quantize`]. Bytes that are all zero, as in a cache not yet filled, give zeros.
        width, bits, group_size: as they were packed.
        dtype: of the result.

    Returns:
        Tensor: `[..., width]`.
    """
    if isinstance(bits, int) and _kernels_serve(packed, width, group_size):
        return unpack(packed, width, bits, group_size, dtype)
    return _in_parts(lambda part: _dequantize(part, width, bits, group_size, dtype), packed)


def _dequantize(packed: Tensor, width: int, bits: int | Sequence[int], group_size: int, dtype: torch.dtype) -> Tensor:
    if not isinstance(bits, int):
        return dequantize_mixed(packed, bits, group_size, dtype)
    code_bytes, groups = width * bits // 8, width // group_size
    codes = packed[..., :code_bytes]
    if bits == 4:
        codes = torch.cat([codes & 15, codes >> 4], dim=-1)
    scale, low = packed[..., code_bytes:].view(torch.float16).float().split(groups, dim=-1)
    values = codes.float().unflatten(-1, (groups, group_size))
    values = values.mul_(scale[..., None]).add_(low[..., None])  # in place: new memory costs more than the arithmetic
    return _rotate(values).flatten(-2).to(dtype)


def round_latent(latent: Tensor, bits: int | Sequence[int], group_size: int) -> Tensor:
    """Latents as a cache would give them back, without a cache.

    Gradients pass as if nothing were rounded (the straight-through estimator, Bengio et al., arXiv 1308.3432), so that
    a model can be trained with its rounding.

    Args:
        latent, bits, group_size: as of [`quantize`].

    Returns:
        Tensor: of the shape and dtype of `latent`.
    """
    packed = quantize(latent.detach(), bits, group_size)
    rounded = dequantize(packed, latent.shape[-1], bits, group_size, latent.dtype)
    return latent + (rounded - latent.detach()) if latent.requires_grad else rounded


def _kernels_serve(tensor: Tensor, width: int, group_size: int) -> bool:
    return kernels_pack(tensor, width, group_size) and kernels_work(tensor.get_device())


def _in_parts(function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """`function` of a batch, in parts where it is large: what it makes in between is several times as large."""
    if torch.compiler.is_compiling() or batch.dim() < 2 or batch.numel() <= _AT_ONCE or len(batch) == 1:
        return function(batch)
    rows = max(1, _AT_ONCE // batch[0].numel())
    result = None
    for start in range(0, len(batch), rows):
        part = function(batch[start : start + rows])
        if result is None:
            result = part.new_empty(len(batch), *part.shape[1:])
        result[start : start + rows] = part
    assert result is not None
    return result


def hadamard(size: int, device: torch.device | None = None) -> Tensor:
    """The normalised Hadamard matrix `[size, size]` in Sylvester's order, float32: symmetric, and its own inverse.

    Args:
        size: a power of two.
        device: where to build it.
    """
    number = torch.arange(size, device=device)
    bits = number[:, None] & number
    shift = 1
    while shift < size:  # the parity of each number's bits gathers in the lowest
        bits, shift = bits ^ (bits >> shift), 2 * shift
    return (1 - 2 * (bits & 1)).float() / size**0.5


def _rotate(groups: Tensor) -> Tensor:
    matrix = hadamard if torch.compiler.is_compiling() else _kept_hadamard
    return groups @ matrix(groups.shape[-1], groups.device)


@functools.cache
def _kept_hadamard(size: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # so that it can also be used where gradients are computed
        return hadamard(size, device)
