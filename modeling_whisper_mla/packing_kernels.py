"""Rounding and packing of latents on a GPU, and the way back: what `latent_quantization.py` says, in one kernel each.

Element by element these would be some thirty kernels, for a decoding step of each layer.
"""

import torch
from torch import Tensor

from .kernel_operator import kernel_operator

try:
    import triton
    import triton.language as tl
except ImportError:  # it comes with PyTorch for GPUs
    triton = None

_VALUES = 4096  # that a program works on


if triton is not None:

    @triton.jit
    def _rotation(GROUP: tl.constexpr):
        """The normalised Hadamard matrix: the sign is the parity of what the two numbers have in common."""
        common = tl.arange(0, GROUP)[:, None] & tl.arange(0, GROUP)[None, :]
        common ^= common >> 8
        common ^= common >> 4
        common ^= common >> 2
        common ^= common >> 1
        return (1 - 2 * (common & 1)).to(tl.float32) / tl.sqrt(tl.full([GROUP, GROUP], GROUP, tl.float32))

    @triton.jit
    def _unpack(
        packed,  # [count, bytes]
        halves,  # the same as float16
        output,  # [count, WIDTH]
        count,
        BITS: tl.constexpr,
        GROUP: tl.constexpr,
        WIDTH: tl.constexpr,
        CHUNK: tl.constexpr,
        ROWS: tl.constexpr,
    ):
        row_bytes: tl.constexpr = WIDTH * BITS // 8 + 4 * (WIDTH // GROUP)
        groups: tl.constexpr = CHUNK // GROUP
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        is_row = (row < count)[:, None]
        column = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
        code = tl.load(
            packed + row[:, None] * row_bytes + (column % (WIDTH * BITS // 8))[None, :], mask=is_row, other=0
        )
        if BITS == 4:  # the values of the second half are the high bits
            code = (code >> (4 * (column // (WIDTH // 2)))[None, :]) & 15
        group = WIDTH * BITS // 16 + tl.program_id(1) * groups + tl.arange(0, groups)
        scales = halves + row[:, None] * (row_bytes // 2) + group[None, :]
        scale = tl.load(scales, mask=is_row, other=0.0).to(tl.float32)
        low = tl.load(scales + WIDTH // GROUP, mask=is_row, other=0.0).to(tl.float32)
        values = tl.reshape(code, (ROWS, groups, GROUP)).to(tl.float32) * scale[:, :, None] + low[:, :, None]
        values = tl.dot(tl.reshape(values, (ROWS * groups, GROUP)), _rotation(GROUP), input_precision="tf32x3")
        values = tl.reshape(values, (ROWS, CHUNK)).to(output.dtype.element_ty)
        tl.store(output + row[:, None] * WIDTH + column[None, :], values, mask=is_row)

    @triton.jit
    def _codes(values, GROUP: tl.constexpr, LEVELS: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr):
        """Codes `[ROWS, CHUNK]`, scales and minima `[ROWS, groups]` of values."""
        groups: tl.constexpr = CHUNK // GROUP
        values = tl.reshape(values, (ROWS * groups, GROUP))
        values = tl.dot(values, _rotation(GROUP), input_precision="tf32x3")
        low, high = tl.min(values, 1), tl.max(values, 1)
        # Comparisons with no number are false, and such a number may get lost in a minimum.
        is_finite = tl.min(tl.where(tl.abs(values) < float("inf"), 1, 0), 1) > 0
        low = tl.minimum(tl.maximum(low, -65504.0), 65504.0).to(tl.float16)
        high = tl.minimum(tl.maximum(high, -65504.0), 65504.0)
        start = low.to(tl.float32)
        scale = (tl.maximum(high - start, 0.0) / LEVELS).to(tl.float16)
        step = tl.where(scale > 0, scale.to(tl.float32), 1.0)
        codes = (values - start[:, None]) / step[:, None]
        codes = tl.where(is_finite[:, None], codes, 0.0)
        codes = (codes + 12582912.0) - 12582912.0  # rounds to the nearest, to even numbers between: float32 has 24 bits
        codes = tl.minimum(tl.maximum(codes, 0.0), LEVELS).to(tl.uint8)
        low = tl.where(is_finite, low, float("nan"))
        return (
            tl.reshape(codes, (ROWS, CHUNK)),
            tl.reshape(scale, (ROWS, groups)),
            tl.reshape(low, (ROWS, groups)).to(tl.float16),
        )

    @triton.jit
    def _store_float16(place, values, mask):
        """As two bytes: a compiler that follows what is written must not meet one memory under two types."""
        number = values.to(tl.uint16, bitcast=True)
        tl.store(place, (number & 255).to(tl.uint8), mask=mask)
        tl.store(place + 1, (number >> 8).to(tl.uint8), mask=mask)

    @triton.jit
    def _pack(
        latent,  # [count, WIDTH]
        packed,  # [count, bytes]
        count,
        BITS: tl.constexpr,
        GROUP: tl.constexpr,
        WIDTH: tl.constexpr,
        CHUNK: tl.constexpr,  # of half the width
        ROWS: tl.constexpr,
    ):
        row_bytes: tl.constexpr = WIDTH * BITS // 8 + 4 * (WIDTH // GROUP)
        groups: tl.constexpr = CHUNK // GROUP
        half: tl.constexpr = WIDTH // 2
        levels: tl.constexpr = 2**BITS - 1
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        is_row = (row < count)[:, None]
        column = (tl.program_id(1) * CHUNK + tl.arange(0, CHUNK))[None, :]
        own = latent + row[:, None] * WIDTH + column
        first = tl.load(own, mask=is_row, other=0.0).to(tl.float32)
        second = tl.load(own + half, mask=is_row, other=0.0).to(tl.float32)
        first, first_scale, first_low = _codes(first, GROUP, levels, ROWS, CHUNK)
        second, second_scale, second_low = _codes(second, GROUP, levels, ROWS, CHUNK)
        place = packed + row[:, None] * row_bytes + column
        if BITS == 4:
            tl.store(place, first | (second << 4), mask=is_row)
        else:
            tl.store(place, first, mask=is_row)
            tl.store(place + half, second, mask=is_row)
        group = (tl.program_id(1) * groups + tl.arange(0, groups))[None, :]
        scales = packed + row[:, None] * row_bytes + WIDTH * BITS // 8 + 2 * group
        step: tl.constexpr = 2 * (half // GROUP)
        _store_float16(scales, first_scale, is_row)
        _store_float16(scales + step, second_scale, is_row)
        _store_float16(scales + 2 * step, first_low, is_row)
        _store_float16(scales + 3 * step, second_low, is_row)


def kernels_pack(tensor: Tensor, width: int, group_size: int) -> bool:
    """Whether [`pack`] and [`unpack`] serve latents or bytes on this device, of such a width and group size."""
    return triton is not None and tensor.is_cuda and 16 <= group_size <= 256 and width % (2 * group_size) == 0


@kernel_operator(
    lambda packed, width, bits, group_size, dtype: packed.new_empty((*packed.shape[:-1], width), dtype=dtype)
)
def unpack(packed: Tensor, width: int, bits: int, group_size: int, dtype: torch.dtype) -> Tensor:
    """As `dequantize`, for bits that are the same for all groups: `[..., bytes]` to `[..., width]`.

    Args:
        packed: uint8 on a GPU, of [`pack`] or `quantize`.
        width, bits, group_size, dtype: of `dequantize`, such that [`kernels_pack`].
    """
    rows = packed.reshape(-1, packed.shape[-1])
    output = torch.empty(*packed.shape[:-1], width, dtype=dtype, device=packed.device)
    chunk = _chunk(width, group_size)
    count = max(1, _VALUES // chunk)
    _unpack[(-(-rows.shape[0] // count), width // chunk)](
        rows,
        rows.view(torch.float16),
        output,
        rows.shape[0],
        BITS=bits,
        GROUP=group_size,
        WIDTH=width,
        CHUNK=chunk,
        ROWS=count,
    )
    return output


@kernel_operator(
    lambda latent, bits, group_size: latent.new_empty(
        (*latent.shape[:-1], _row_bytes(latent.shape[-1], bits, group_size)), dtype=torch.uint8
    )
)
def pack(latent: Tensor, bits: int, group_size: int) -> Tensor:
    """As `quantize`, for bits that are the same for all groups: `[..., width]` to uint8 `[..., bytes]`.

    Args:
        latent: of any floating dtype, on a GPU.
        bits, group_size: of `quantize`, such that [`kernels_pack`].
    """
    width = latent.shape[-1]
    rows = latent.reshape(-1, width)
    packed = torch.empty(
        *latent.shape[:-1], _row_bytes(width, bits, group_size), dtype=torch.uint8, device=latent.device
    )
    chunk = _chunk(width // 2, group_size)
    count = max(1, _VALUES // chunk)
    _pack[(-(-rows.shape[0] // count), width // 2 // chunk)](
        rows,
        packed,
        rows.shape[0],
        BITS=bits,
        GROUP=group_size,
        WIDTH=width,
        CHUNK=chunk,
        ROWS=count,
    )
    return packed


def _row_bytes(width: int, bits: int, group_size: int) -> int:
    return width * bits // 8 + 4 * (width // group_size)


def _chunk(width: int, group_size: int) -> int:
    """The highest power of two that divides `width`, at most 256, at least a group."""
    return max(group_size, min(256, width & -width))


__all__ = ["kernels_pack", "pack", "unpack"]
