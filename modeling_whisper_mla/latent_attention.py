"""The attention module: Whisper's attention on a latent, in two exact forms."""

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.whisper.modeling_whisper import WhisperAttention, eager_attention_forward

from .absorbed_attention import absorb_query, attend, expand_output
from .latent_quantization import dequantize, quantize, round_latent
from .token_times import AlignmentHeads
from .transformers_releases import strict_forward

# Bytes of latents in half precision that may stand in float32 at a time for the weights of alignment heads.
_FLOAT32_BYTES = 32 * 2**20


class WhisperMLAAttention(WhisperAttention):
    """Multi-head latent attention: what is cached per position is one latent, the same for keys, values and all heads.

    The latent is `kv_down_proj(x)`, or `x` itself at full rank, where `k_proj` and `v_proj` are the stock ones and the
    output is that of stock Whisper. It serves decoder self-attention, cross-attention and encoder self-attention.

    Two forms, equal in exact arithmetic, chosen per call by cost:

    - expanded, for many queries: `k_proj` and `v_proj` are called on all latents, then ordinary attention;
    - absorbed, for few queries (decoding): see `absorbed_attention.py`. It reads the weights of `k_proj` and `v_proj`
      directly, so it is taken only where these are plain, unhooked `nn.Linear`: adapters, offload hooks and quantised
      linears keep working in the expanded form.

    Args:
        embed_dim: width of the input and output, `d_model`.
        num_heads: attention heads.
        rank: width of the latent, 1 to `embed_dim`; `embed_dim` means that the latent is the input itself.
        has_down_proj: whether this module owns the down projection. Cross-attention with a latent shared by all layers
            does not: the decoder projects once for all.
        latent_start: where this layer's latent begins in the last axis of the latents handed to cross-attention.
        latent_bits: of a value of this module's own latents, or of those of each group (mixed; the down projection
            then has a bias). They are rounded as soon as they are made, so that attention is the same with and without
            a cache; None: they are not. In cross-attention the decoder rounds.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        rank: int,
        has_down_proj: bool = True,
        latent_start: int = 0,
        latent_bits: int | tuple[int, ...] | None = None,
        **kwargs,
    ):
        super().__init__(embed_dim, num_heads, **kwargs)
        self.latent_bits = latent_bits
        self.rank = rank
        self.latent_start = latent_start
        self.kv_down_proj = None
        is_mixed = isinstance(latent_bits, tuple)
        if rank < embed_dim or is_mixed:
            self.k_proj = nn.Linear(rank, embed_dim, bias=False)
            self.v_proj = nn.Linear(rank, embed_dim, bias=self.v_proj.bias is not None)
            if has_down_proj:
                self.kv_down_proj = nn.Linear(embed_dim, rank, bias=is_mixed)

    def compress(self, hidden_states: Tensor) -> Tensor:
        """The latents of `hidden_states`: `[batch, positions, embed_dim]` to `[batch, positions, rank]`."""
        return hidden_states if self.kv_down_proj is None else self.kv_down_proj(hidden_states)

    def uses_absorbed_form(self, num_queries: int) -> bool:
        """Whether the absorbed form is possible and cheaper for `num_queries` queries per latent sequence.

        Its cost is 4·S·H·r multiply-adds per query, the expanded form's 4·S·d·r once and 4·S·d per query, so the
        absorbed form wins up to about `head_dim` queries.
        """
        return (
            num_queries <= self.head_dim
            and not self.training
            and self.config._attn_implementation in (None, "eager", "sdpa", "flex_attention")
            and is_plain_linear(self.k_proj)
            and is_plain_linear(self.v_proj)
        )

    @strict_forward
    def forward(
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None = None,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        output_attentions: bool | AlignmentHeads = False,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, to the past and present of `hidden_states`, or to `key_value_states` in cross-attention.

        Args:
            hidden_states: `[batch, T, embed_dim]`.
            key_value_states: cross-attention only: the audio's latents `[audios, frames, width]`, already projected by
                the decoder. `batch` is a multiple of `audios`: consecutive rows (beams) read the same audio.
            cache: any Transformers cache, also by its older name past_key_values; this layer's latents go
                to its keys, its values stay zero-width.
            attention_mask: `[batch, 1, T, positions]` as prepared by Transformers for self-attention, or None.
            output_attentions: passed on to the attention function; or the heads of which cross-attention is to
                return the weights, with any attention function.

        Returns:
            tuple: the output `[batch, T, embed_dim]`, and the attention weights `[batch, heads, T, positions]` with
            eager attention, else None; or those of the heads asked for, in float32, None where there are none.

        Raises:
            ValueError: `batch` is not a multiple of `audios`.
            TypeError: an unknown keyword.
        """
        batch, length, _ = hidden_states.shape
        if key_value_states is not None:
            latent = key_value_states
            if latent.shape[-1] != self.rank:  # those of other layers are beside it
                latent = latent[..., self.latent_start : self.latent_start + self.rank]
            register_cross_attention(cache, self.layer_idx, batch, latent)
            # Beams of one audio become further queries on its one latent sequence.
            hidden_states = fold_beams(hidden_states, latent.shape[0])
            attention_mask = None
        else:
            latent = self.compress(hidden_states)
            if cache is not None:
                if isinstance(cache, EncoderDecoderCache):
                    cache = cache.self_attention_cache
                latent = self._cached(latent, cache)
            elif self.latent_bits is not None:
                latent = round_latent(latent, self.latent_bits, self.config.latent_group_size)

        chosen = None
        if isinstance(output_attentions, AlignmentHeads):
            chosen = output_attentions.of_layer(self.layer_idx) if key_value_states is not None else []
            output_attentions = False

        rows, num_queries = hidden_states.shape[:2]
        # Whisper scales the query before attention, which matters in low precision.
        query = (self.q_proj(hidden_states) * self.scaling).view(rows, num_queries, -1, self.head_dim).transpose(1, 2)
        attention = self._absorbed if self.uses_absorbed_form(num_queries) else self._expanded
        output, weights = attention(query, latent, attention_mask, output_attentions=output_attentions, **kwargs)
        output = self.out_proj(output).view(batch, length, -1)
        if chosen is not None:
            weights = self._weights(query, latent, chosen) if chosen else None
        if weights is not None and rows != batch:
            weights = weights.unflatten(2, (-1, length)).transpose(1, 2).flatten(0, 1)
        return output, weights

    def _cached(self, latent: Tensor, cache: Cache) -> Tensor:
        """Add `latent` (`[batch, T, rank]`) to the cache and return those of all positions."""
        bits, dtype = self.latent_bits, latent.dtype
        if bits is not None:
            latent = quantize(latent, bits, self.config.latent_group_size)
        latent = latent[:, None]
        latent = cache.update(latent, latent[..., :0], self.layer_idx)[0][:, 0]
        return latent if bits is None else dequantize(latent, self.rank, bits, self.config.latent_group_size, dtype)

    def _weights(self, query: Tensor, latent: Tensor, heads: list[int]) -> Tensor:
        """Attention weights of some heads: float32 `[rows, len(heads), T, positions]`.

        Scores are computed in float32: rounded to half precision they would move the times that weights tell.
        """
        query = query[:, heads].float()
        if is_plain_linear(self.k_proj):
            weight = self.k_proj.weight.unflatten(0, (-1, self.head_dim))[heads].flatten(0, 1)
            rows = absorb_query(query, weight.float()).flatten(1, 2)  # all heads as queries on one latent
            scores = _products_in_float32(rows, latent).unflatten(1, (len(heads), -1))
        else:
            key = self.k_proj(latent).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            scores = query @ key[:, heads].float().transpose(2, 3)
        return scores.softmax(dim=-1, dtype=torch.float32)

    def _absorbed(self, query: Tensor, latent: Tensor, attention_mask, **kwargs) -> tuple[Tensor, Tensor | None]:
        eager = self.config._attn_implementation in (None, "eager")
        output, weights = attend(
            absorb_query(query, self.k_proj.weight), latent, attention_mask, self.is_causal, return_weights=eager
        )
        return expand_output(output, self.v_proj.weight, self.v_proj.bias), weights

    def _expanded(self, query: Tensor, latent: Tensor, attention_mask, **kwargs) -> tuple[Tensor, Tensor | None]:
        rows, positions, _ = latent.shape
        key = self.k_proj(latent).view(rows, positions, -1, self.head_dim).transpose(1, 2).contiguous()
        value = self.v_proj(latent).view(rows, positions, -1, self.head_dim).transpose(1, 2).contiguous()
        attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention_interface(
            self,
            query.contiguous(),
            key,
            value,
            attention_mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=1.0,
            **kwargs,
        )
        return output.reshape(rows, query.shape[2], -1), weights


def _products_in_float32(query: Tensor, latent: Tensor) -> Tensor:
    """`[rows, T, rank]` in float32 times `[rows, positions, rank]` of any dtype, of which only some rows are in float32
    at a time."""
    if latent.dtype == torch.float32:
        return torch.matmul(query, latent.transpose(1, 2))
    together = max(1, _FLOAT32_BYTES // (4 * latent[0].numel()))
    parts = zip(query.split(together), latent.split(together), strict=True)
    return torch.cat([torch.matmul(part, rows.float().transpose(1, 2)) for part, rows in parts])


def is_plain_linear(module: nn.Module) -> bool:
    """Whether `module` computes exactly `x W^T + b` from a weight that can be read directly.

    False for adapters, quantised linears and tensor subclasses, for modules with hooks or a replaced forward (device
    offload), and for weights that are gathered only on call.
    """
    if type(module) is not nn.Linear:
        return False
    weight = module._parameters["weight"]  # nn.Module looks for attributes at length, and this is asked at every step
    return (
        type(weight) is nn.Parameter
        and weight.shape == (module.out_features, module.in_features)
        and weight.device.type != "meta"
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and ("forward" not in module.__dict__ or _only_moves_inputs(module))
    )


def _only_moves_inputs(module: nn.Module) -> bool:
    """Whether the forward was replaced by Accelerate only to bring inputs to the weights (a device_map), not weights to
    the inputs (offload)."""
    hook = getattr(module, "_hf_hook", None)
    return type(hook).__name__ == "AlignDevicesHook" and not hook.offload


def fold_beams(hidden_states: Tensor, audios: int) -> Tensor:
    """Turn the rows that read the same audio into queries: `[audios·g, T, d]` to `[audios, g·T, d]`, without a copy."""
    batch, length, width = hidden_states.shape
    if batch % audios:
        raise ValueError(
            f"{batch} decoder rows cannot share the latents of {audios} audios: the number of rows must be a multiple "
            "of the number of audios."
        )
    return hidden_states.reshape(audios, batch // audios * length, width)


def register_cross_attention(cache: Cache | None, layer_idx: int, batch: int, latent: Tensor) -> None:
    """Tell `cache` that this layer's cross-attention needs nothing stored.

    Whisper's `generate` reads keys and values of every cross-attention layer when it splits its outputs per sequence,
    so these exist with zero bytes.
    """
    if isinstance(cache, EncoderDecoderCache) and not cache.is_updated.get(layer_idx):
        nothing = latent.new_empty(batch, 1, 0, 0)
        cache.cross_attention_cache.update(nothing, nothing, layer_idx)
        cache.is_updated[layer_idx] = True
