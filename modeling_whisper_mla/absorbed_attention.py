"""Attention on latents in the absorbed form: pure functions on tensors, no modules.

Keys and values are linear in the latent `c_t` (`[r]`): `k_t,h = W_UK,h c_t`, `v_t,h = W_UV,h c_t + b_V,h`. Hence

    score_h(t) = q_h . k_t,h                = (W_UK,h^T q_h) . c_t
    o_h        = sum_t a_t v_t,h            = W_UV,h (sum_t a_t c_t) + b_V,h        (the a_t sum to 1)

so all heads attend to one latent sequence and keys and values are never materialised (DeepSeek-V2, arXiv 2405.04434,
section 2.1; without the decoupled position part, because Whisper's positions are absolute and already in the input).

Shapes: B batch, H heads, D head dimension, T queries, S latents, r rank.
"""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_mask
from torch.nn.functional import scaled_dot_product_attention

from .decoding_kernel import attend_once, kernel_serves
from .kernel_check import kernels_work

# With so few queries PyTorch's fused kernels leave most of a GPU idle: two matrix products are faster, by a lot in
# float32; in half precision the fused ones are started quicker, which is what counts while steps are not compiled.
# On a CPU fused kernels take 32 queries at a time: more of them, as with beams, are shared out unevenly to threads.
_FEW_QUERIES = 128
_QUERIES_OF_A_BLOCK = 32


def absorb_query(query: Tensor, key_up: Tensor) -> Tensor:
    """Move the key up-projection to the query side: `W_UK,h^T q_h`.

    Args:
        query: `[B, H, T, D]`, already scaled.
        key_up: `[H·D, r]`, the weight of the key up-projection.

    Returns:
        Tensor: `[B, H, T, r]`.
    """
    batch, heads, queries, head_dim = query.shape
    # One matrix product per head for the whole batch: broadcasting the weights over the batch would copy them.
    rows = query.transpose(0, 1).reshape(heads, batch * queries, head_dim)
    absorbed = torch.bmm(rows, key_up.view(heads, head_dim, -1))
    return absorbed.view(heads, batch, queries, -1).transpose(0, 1)


def expand_output(output: Tensor, value_up: Tensor, value_bias: Tensor | None) -> Tensor:
    """Apply the value up-projection to the attended latents: `W_UV,h (sum_t a_t c_t) + b_V,h`.

    Args:
        output: `[B, H, T, r]`, the attention-weighted sums of latents.
        value_up: `[H·D, r]`, the weight of the value up-projection.
        value_bias: `[H·D]` or None.

    Returns:
        Tensor: `[B, T, H·D]`.
    """
    batch, heads, queries, rank = output.shape
    rows = output.transpose(0, 1).reshape(heads, batch * queries, rank)
    weights = value_up.view(heads, -1, rank).transpose(1, 2)
    if value_bias is None:
        heads_out = torch.bmm(rows, weights)
    else:
        heads_out = torch.baddbmm(value_bias.view(heads, 1, -1), rows, weights)
    return heads_out.view(heads, batch, queries, -1).permute(1, 2, 0, 3).reshape(batch, queries, -1)


def attend(
    query: Tensor,
    latent: Tensor,
    attention_mask: Tensor | BlockMask | None,
    is_causal: bool,
    return_weights: bool,
) -> tuple[Tensor, Tensor | None]:
    """Attend to one latent sequence that is key and value of all heads at once.

    Args:
        query: `[B, H, T, r]` from [`absorb_query`].
        latent: `[B, S, r]`.
        attention_mask: `[B or 1, 1, T, S]`, additive or boolean (True = attend), a flex attention block mask, or None.
            None with `is_causal` means a causal prefill from an empty cache, as everywhere in Transformers.
        is_causal: whether queries see no later positions.
        return_weights: compute and return the attention weights (stock Whisper's eager attention does), or run the
            fused kernel, which returns none.

    Returns:
        tuple[Tensor, Tensor | None]: attended latents `[B, H, T, r]`, and the weights `[B, H, T, S]` or None.
    """
    batch, heads, queries, rank = query.shape
    if isinstance(attention_mask, BlockMask):
        attention_mask = create_mask(
            attention_mask.mask_mod, batch, 1, queries, latent.shape[1], device=query.device.type
        )
    if attention_mask is None and is_causal and queries > 1:
        latent = latent[:, :queries]  # a static cache is longer than what has been written to it
        attention_mask = torch.ones(queries, queries, dtype=torch.bool, device=query.device).tril()[None, None]

    rows = query.reshape(batch, 1, heads * queries, rank)
    compiled = torch.compiler.is_compiling()
    if compiled and not return_weights and (queries == 1 or attention_mask is None):
        of_positions = None if attention_mask is None else attention_mask[:, 0, 0]
        if kernel_serves(rows[:, 0], latent, of_positions) and kernels_work(latent.get_device()):
            return attend_once(rows[:, 0], latent, of_positions).view(batch, heads, queries, rank), None
    latent = latent[:, None]
    if not return_weights and not _products_are_quicker(rows, compiled):
        if attention_mask is not None and queries > 1:  # the mask's rows, once for every head
            attention_mask = attention_mask.expand(-1, heads, -1, -1).flatten(1, 2)[:, None]
        output = scaled_dot_product_attention(rows, latent, latent, attention_mask, scale=1.0)
        return output.view(batch, heads, queries, rank), None

    scores = torch.matmul(rows, latent.transpose(2, 3)).view(batch, heads, queries, -1)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = torch.softmax(scores, dim=-1)
    output = torch.matmul(weights.view(batch, 1, heads * queries, -1), latent)
    return output.view(batch, heads, queries, rank), weights if return_weights else None


def _products_are_quicker(rows: Tensor, compiled: bool) -> bool:
    """Whether two matrix products take less time than a fused kernel (`benchmarks/step_parts.py`)."""
    if rows.is_cuda:
        return rows.shape[2] <= _FEW_QUERIES and (compiled or rows.dtype == torch.float32)
    several_blocks = _QUERIES_OF_A_BLOCK < rows.shape[2] <= _FEW_QUERIES
    return several_blocks and rows.dtype == torch.float32 and rows.device.type == "cpu"
