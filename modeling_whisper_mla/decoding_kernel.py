"""Attention of few queries to one latent sequence on a GPU, by a kernel that reads every latent once.

A latent is key and value at once: what has been read for the scores serves for the output too. PyTorch's fused kernels
read it twice, and with heads as wide as a latent they keep few of a GPU's processors busy. Here the positions are
shared out among programs, and what these have found is put together at the end (flash-decoding, Dao et al., 2023; the
running softmax is that of Milakov and Gimelshein, arXiv 1805.02867). Scores and sums are in float32.
"""

import torch
from torch import Tensor

from .kernel_operator import kernel_operator

try:
    import triton
    import triton.language as tl
except ImportError:  # it comes with PyTorch for GPUs
    triton = None

# Searched for on an H200: `benchmarks/results/gpu_first_look.md`.
_POSITIONS, _ROWS, _WARPS, _STAGES = 32, 16, 4, 2
_PROGRAMS = 264
_MOST_PARTS = 64
_MOST_ROWS, _MOST_CHUNKS = 4 * _ROWS, 6


if triton is not None:

    @triton.jit
    def _attend_to_part(
        query,  # [audios, rows, WIDTH]
        latent,  # [audios, positions, WIDTH]
        mask,  # [audios or 1, positions] bytes: 0 where nothing is to be attended to
        partial,  # [audios, parts, rows, WIDTH] float32
        weight,  # [audios, parts, rows] float32: the logarithm of the sum of exponentials
        rows,
        positions,
        part_length,
        query_audio,  # strides
        query_row,
        latent_audio,
        latent_position,
        mask_audio,
        mask_position,
        WIDTH: tl.constexpr,
        CHUNK: tl.constexpr,  # of the width, a power of two: what is summed at a time
        ROWS: tl.constexpr,
        POSITIONS: tl.constexpr,
        HAS_MASK: tl.constexpr,
    ):
        audio, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
        row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
        is_row = (row < rows)[:, None]
        column = tl.arange(0, CHUNK)[None, :]
        asked_rows = query + audio * query_audio + row[:, None] * query_row + column
        sums = ()
        for _ in tl.static_range(WIDTH // CHUNK):
            sums = sums + (tl.zeros([ROWS, CHUNK], tl.float32),)  # type: ignore[assignment]  # noqa: RUF005
        highest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        end = tl.minimum(positions, (part + 1) * part_length)
        for start in range(part * part_length, end, POSITIONS):
            position = start + tl.arange(0, POSITIONS)
            present = position < end
            block = latent + audio * latent_audio + position.to(tl.int64)[:, None] * latent_position + column
            scores = tl.zeros([ROWS, POSITIONS], tl.float32)
            for chunk in tl.static_range(WIDTH // CHUNK):
                asked = tl.load(asked_rows + chunk * CHUNK, mask=is_row, other=0.0)
                values = tl.load(block + chunk * CHUNK, mask=present[:, None], other=0.0)
                scores = tl.dot(asked, tl.trans(values), scores)
            if HAS_MASK:
                allowed = tl.load(mask + audio * mask_audio + position * mask_position, mask=present, other=0)
                present = present & (allowed != 0)
            scores = tl.where(present[None, :], scores, float("-inf"))
            higher = tl.maximum(highest, tl.max(scores, 1))
            # Where nothing was to be attended to so far the highest is -inf, and -inf - -inf is no number.
            base = tl.where(higher == float("-inf"), 0.0, higher)
            scores = tl.exp(scores - base[:, None])
            kept = tl.exp(highest - base)
            total = total * kept + tl.sum(scores, 1)
            highest = higher
            shares = scores.to(latent.dtype.element_ty)
            new = ()
            for chunk in tl.static_range(WIDTH // CHUNK):
                values = tl.load(block + chunk * CHUNK, mask=(position < end)[:, None], other=0.0)
                new = new + (tl.dot(shares, values, sums[chunk] * kept[:, None]),)  # type: ignore[assignment]  # noqa: RUF005
            sums = new
        share = tl.where(total > 0, 1.0 / tl.where(total > 0, total, 1.0), 0.0)
        place = (audio * tl.num_programs(1) + part) * rows + row
        for chunk in tl.static_range(WIDTH // CHUNK):
            own = partial + place[:, None] * WIDTH + column + chunk * CHUNK
            tl.store(own, sums[chunk] * share[:, None], mask=is_row)
        tl.store(weight + place, tl.where(total > 0, highest + tl.log(total), float("-inf")), mask=row < rows)

    @triton.jit
    def _put_together(
        partial, weight, output, rows, parts, WIDTH: tl.constexpr, CHUNK: tl.constexpr, PARTS: tl.constexpr
    ):
        """The mean of the parts, weighted by their sums of exponentials."""
        audio, row = tl.program_id(0).to(tl.int64), tl.program_id(1)
        part, column = tl.arange(0, PARTS), tl.program_id(2) * CHUNK + tl.arange(0, CHUNK)
        place = (audio * parts + part) * rows + row
        logarithm = tl.load(weight + place, mask=part < parts, other=float("-inf"))
        highest = tl.max(logarithm, 0)
        share = tl.exp(logarithm - tl.where(highest == float("-inf"), 0.0, highest))
        total = tl.sum(share, 0)
        share = share / tl.where(total > 0, total, 1.0)
        values = tl.load(partial + place[:, None] * WIDTH + column[None, :], mask=(part < parts)[:, None], other=0.0)
        found = tl.sum(values * share[:, None], 0)
        tl.store(output + (audio * rows + row) * WIDTH + column, found.to(output.dtype.element_ty))


def kernel_serves(query: Tensor, latent: Tensor, mask: Tensor | None) -> bool:
    """Whether [`attend_once`] can be called, and is faster than what PyTorch has.

    Args:
        query, latent, mask: of [`attend_once`].
    """
    width = latent.shape[-1]
    return (
        triton is not None
        and latent.is_cuda
        and _positions_at_once(width, latent.get_device()) > 0
        and query.dtype == latent.dtype
        and latent.dtype in (torch.float16, torch.bfloat16)
        and latent.stride(-1) == query.stride(-1) == 1
        and _chunk(width) >= 16
        and width <= _MOST_CHUNKS * _chunk(width)
        and query.shape[1] <= _MOST_ROWS
        and (mask is None or mask.dtype == torch.bool)
        and not (torch.is_grad_enabled() and (query.requires_grad or latent.requires_grad))
    )


@kernel_operator(lambda query, latent, mask=None: query.new_empty(query.shape))
def attend_once(query: Tensor, latent: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attended latents, as `softmax(query latent^T) latent`.

    Args:
        query: `[audios, rows, width]`, float16 or bfloat16 on a GPU, already scaled.
        latent: `[audios, positions, width]` of the same dtype.
        mask: `[audios or 1, positions]` boolean, True = attend, for all rows; or None. Rows that may attend to nothing
            get zeros.

    Returns:
        Tensor: `[audios, rows, width]`, contiguous, of the dtype of `query`.
    """
    (audios, rows, width), positions, chunk = query.shape, latent.shape[1], _chunk(latent.shape[2])
    row_blocks, block = -(-rows // _ROWS), _positions_at_once(width, latent.get_device())
    parts = max(1, min(_MOST_PARTS, -(-positions // block), _PROGRAMS // (audios * row_blocks)))
    part_length = -(-positions // (parts * block)) * block
    parts = -(-positions // part_length)
    partial = query.new_empty(audios, parts, rows, width, dtype=torch.float32)
    weight = query.new_empty(audios, parts, rows, dtype=torch.float32)
    output = query.new_empty(audios, rows, width)
    given = latent if mask is None else mask.view(torch.uint8)  # something has to be pointed at
    _attend_to_part[(audios, parts, row_blocks)](
        query,
        latent,
        given,
        partial,
        weight,
        rows,
        positions,
        part_length,
        query.stride(0),
        query.stride(1),
        latent.stride(0),
        latent.stride(1),
        given.stride(0) if given.shape[0] > 1 else 0,
        given.stride(1),
        WIDTH=width,
        CHUNK=chunk,
        ROWS=_ROWS,
        POSITIONS=block,
        HAS_MASK=mask is not None,
        num_warps=_WARPS,
        num_stages=_STAGES,
    )
    _put_together[(audios, rows, width // chunk)](
        partial, weight, output, rows, parts, WIDTH=width, CHUNK=chunk, PARTS=_MOST_PARTS
    )
    return output


@torch.compiler.assume_constant_result
def _positions_at_once(width: int, device: int) -> int:
    """How many positions' latents, beside the queries, the shared memory of a processor of the GPU holds; or 0."""
    if device < 0:
        return _POSITIONS  # Triton's interpreter, on the CPU
    memory = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 48 * 2**10) - 4 * 2**10
    return next((few for few in (_POSITIONS, _POSITIONS // 2) if (_ROWS + few) * width * 2 <= memory), 0)


def _chunk(width: int) -> int:
    """The highest power of two that divides `width`, at most 256."""
    return min(256, width & -width)


__all__ = ["attend_once", "kernel_serves"]
