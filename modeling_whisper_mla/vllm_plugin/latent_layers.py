"""The decoder's attention modules in vLLM: queries absorbed, one latent per position cached.

The modules of a layer hold what [`served_weights`] yields. Heads are split over tensor-parallel processes, latents are
replicated.
"""

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.attention.cross_attention import create_cross_attention_backend
from vllm.model_executor.layers.linear import ColumnParallelLinear, ReplicatedLinear, RowParallelLinear
from vllm.model_executor.utils import set_weight_attrs
from vllm.v1.attention.backend import AttentionType
from vllm.v1.kv_cache_interface import CrossAttentionSpec, FullAttentionSpec, KVCacheSpec

from ..absorbed_attention import absorb_query, expand_output
from .latent_backend import LatentBackend

# Rows of a text block where the user names no --block-size: small ones waste little at the end of a request.
BLOCK_SIZE = 16


class CachedLatents(Attention):
    """vLLM's attention layer on one latent per position.

    Args:
        num_heads: of this process.
        rank: width of the latent that is read.
        start: where it begins in a row of the cache.
        row_width: values of a row.
        is_cross: whether rows are audio frames; else text positions.
        owner: name of the layer whose blocks are used; None: this one has them.
    """

    def __init__(
        self,
        num_heads: int,
        rank: int,
        start: int,
        row_width: int,
        is_cross: bool,
        owner: str | None,
        vllm_config: VllmConfig,
        prefix: str,
    ):
        super().__init__(
            num_heads,
            rank,
            1.0,
            num_kv_heads=1,
            cache_config=vllm_config.cache_config,
            prefix=prefix,
            attn_type=AttentionType.ENCODER_DECODER if is_cross else AttentionType.DECODER,
            kv_sharing_target_layer_name=owner,
            attn_backend=create_cross_attention_backend(LatentBackend) if is_cross else LatentBackend,
            start=start,
        )
        self.row_width = row_width
        self.is_cross = is_cross

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> KVCacheSpec:
        """Rows of `row_width` values and nothing beside them: vLLM makes blocks of text and audio equally large."""
        cache = vllm_config.cache_config
        spec = CrossAttentionSpec if self.is_cross else FullAttentionSpec
        return spec(
            block_size=cache.block_size if cache.user_specified_block_size else BLOCK_SIZE,
            num_kv_heads=1,
            head_size=self.row_width,
            head_size_v=0,
            dtype=self.kv_cache_torch_dtype,
        )


class LatentAttention(nn.Module):
    """Attention on latents; the arguments are those of [`CachedLatents`].

    Args:
        embed_dim: width of input and output, `d_model`.
        total_heads: of all processes.
        has_down_proj: whether the latent is a projection that this layer makes.
        writes: whether this layer makes the latents that it reads.
    """

    def __init__(
        self,
        embed_dim: int,
        total_heads: int,
        rank: int,
        start: int,
        row_width: int,
        is_cross: bool,
        has_down_proj: bool,
        writes: bool,
        owner: str | None,
        vllm_config: VllmConfig,
        prefix: str,
    ):
        super().__init__()
        self.num_heads = total_heads // get_tensor_model_parallel_world_size()
        self.head_dim = embed_dim // total_heads
        self.writes = writes
        quant_config = vllm_config.quant_config
        self.query_proj = ColumnParallelLinear(
            embed_dim, embed_dim, quant_config=quant_config, prefix=f"{prefix}.query_proj"
        )
        self.key_up = head_rows(self.num_heads * self.head_dim, rank)
        self.value_up = head_rows(self.num_heads * self.head_dim, rank)
        self.kv_down_proj = None
        if has_down_proj:
            self.kv_down_proj = ReplicatedLinear(embed_dim, rank, bias=False, prefix=f"{prefix}.kv_down_proj")
        self.out_proj = RowParallelLinear(embed_dim, embed_dim, quant_config=quant_config, prefix=f"{prefix}.out_proj")
        self.attn = CachedLatents(
            self.num_heads, rank, start, row_width, is_cross, owner, vllm_config, prefix=f"{prefix}.attn"
        )

    def attend(self, hidden_states: Tensor, source: Tensor | None) -> Tensor:
        """Attention of `hidden_states` `[T, d]`; `source` `[written, d]` is what latents are made of, or None."""
        latent = source
        if source is not None and self.kv_down_proj is not None:
            latent, _ = self.kv_down_proj(source)
        query, _ = self.query_proj(hidden_states)
        heads = (query * self.head_dim**-0.5).view(1, -1, self.num_heads, self.head_dim).transpose(1, 2)
        absorbed = absorb_query(heads, self.key_up)[0].transpose(0, 1).flatten(1)
        attended = self.attn(absorbed.contiguous(), latent, latent)
        attended = attended.view(1, -1, self.num_heads, self.key_up.shape[1]).transpose(1, 2)
        output, _ = self.out_proj(expand_output(attended, self.value_up, None)[0])
        return output


class LatentSelfAttention(LatentAttention):
    """Self-attention: each layer makes its own latents."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.attend(hidden_states, hidden_states)


class LatentCrossAttention(LatentAttention):
    """Cross-attention: the audio's latents are made in the step that brings the encoder output."""

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor | None) -> Tensor:
        return self.attend(hidden_states, encoder_hidden_states if self.writes else None)


def head_rows(rows: int, rank: int) -> nn.Parameter:
    """A parameter `[rows, rank]` that loads this process's share of the checkpoint's rows."""
    parameter = nn.Parameter(torch.empty(rows, rank), requires_grad=False)

    def load(parameter: nn.Parameter, loaded: Tensor) -> None:
        first = get_tensor_model_parallel_rank() * rows
        parameter.data.copy_(loaded[first : first + rows])

    set_weight_attrs(parameter, {"weight_loader": load})
    return parameter
