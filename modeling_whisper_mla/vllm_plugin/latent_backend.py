"""An attention backend of vLLM whose cache holds one latent per position instead of keys and values.

vLLM's own backends store keys and values, twice the latent, and take only some widths of heads; those for multi-head
latent attention are made for DeepSeek's, with its rotary part, its widths and causal attention only. This one is
written in PyTorch operations: it reads latents out of vLLM's blocks and attends with [`attend`], at any width.

Shapes: T tokens of this step, H heads, r rank, B blocks, N rows of a block, C values of a row.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionImpl,
    AttentionMetadataBuilder,
    AttentionType,
    CommonAttentionMetadata,
)
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

from ..absorbed_attention import attend


@register_backend(AttentionBackendEnum.CUSTOM)
class LatentBackend(AttentionBackend):
    """One latent per position, written and read in `forward`."""

    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float32, torch.float16, torch.bfloat16]
    supported_kv_cache_dtypes: ClassVar[list] = ["auto", "float32", "float16", "bfloat16"]
    forward_includes_kv_cache_update = True

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"

    @classmethod
    def supports_attn_type(cls, attn_type: str) -> bool:
        return attn_type in (AttentionType.DECODER, AttentionType.ENCODER_DECODER)

    @staticmethod
    def get_impl_cls() -> type["LatentAttentionImpl"]:
        return LatentAttentionImpl

    @staticmethod
    def get_builder_cls() -> type["LatentMetadataBuilder"]:
        return LatentMetadataBuilder


@dataclass
class Rows:
    """Requests of a step that have the same number of queries `q`, `n` of them.

    Attributes:
        tokens: `[n, q]`, their places among the step's tokens.
        blocks: `[n, blocks]`, those that hold their latents.
        length: positions to read of each, the longest of the requests'.
        mask: `[n, 1, q, length]`, True where a query sees a position; None: everywhere.
    """

    tokens: Tensor
    blocks: Tensor
    length: int
    mask: Tensor | None


@dataclass
class LatentMetadata:
    """What attention needs to know of a step, the same for all layers.

    Attributes:
        num_actual_tokens: tokens without padding.
        slot_mapping: `[written]`, where the step's latents go: block · N + row.
        rows: all requests, by number of queries.
        read: the latents that were read last, by where they begin: layers that share a latent read it once.
        scratch: the memory that latents are read into, kept from step to step because new memory costs more than the
            reading.
    """

    num_actual_tokens: int
    slot_mapping: Tensor
    rows: list[Rows]
    scratch: list[Tensor]
    read: tuple[int, list[Tensor]] | None = field(default=None)

    def gather(self, latents: Tensor) -> list[Tensor]:
        """The latents of each of `rows`, `[n, length, r]`, out of blocks `[B, N, r]`."""
        _, per_block, rank = latents.shape
        sizes = [rows.blocks.numel() * per_block * rank for rows in self.rows]
        if not self.scratch or self.scratch[0].numel() < sum(sizes):
            self.scratch[:] = [latents.new_empty(sum(sizes))]
        parts = self.scratch[0][: sum(sizes)].split(sizes)
        found = []
        for rows, part in zip(self.rows, parts, strict=True):
            torch.index_select(latents, 0, rows.blocks.flatten(), out=part.view(-1, per_block, rank))
            found.append(part.view(rows.blocks.shape[0], -1, rank)[:, : rows.length])
        return found


class LatentMetadataBuilder(AttentionMetadataBuilder[LatentMetadata]):
    """Sorts the requests of each step by their number of queries."""

    def __init__(self, kv_cache_spec, layer_names, vllm_config, device):
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.scratch: list[Tensor] = []

    def build(self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False):
        common = common_attn_metadata
        starts = common.query_start_loc_cpu[: common.num_reqs + 1].tolist()
        by_queries: dict[int, list[int]] = {}
        for request, (start, end) in enumerate(pairwise(starts)):
            if end > start:
                by_queries.setdefault(end - start, []).append(request)
        rows = [self._rows(queries, requests, starts, common) for queries, requests in by_queries.items()]
        return LatentMetadata(common.num_actual_tokens, common.slot_mapping, rows, self.scratch)

    def _rows(self, queries: int, requests: list[int], starts: list[int], common: CommonAttentionMetadata) -> Rows:
        device = common.seq_lens.device
        within = torch.arange(queries, device=device)
        tokens = torch.tensor([starts[request] for request in requests], device=device)[:, None] + within
        chosen = torch.tensor(requests, device=device)
        lengths = common.seq_lens[chosen]
        length = int(lengths.max())
        blocks = common.block_table_tensor[chosen, : -(-length // self.kv_cache_spec.block_size)]
        positions = torch.arange(length, device=device)
        # The last query of a request is its newest position.
        newest = lengths[:, None] - (queries - 1 - within if common.causal else torch.zeros_like(within))
        mask = positions < newest[:, None, :, None]
        return Rows(tokens, blocks.long(), length, None if bool(mask.all()) else mask)


class LatentAttentionImpl(AttentionImpl):
    """Attention of `num_heads` absorbed queries on one latent per position.

    Args:
        head_size: the rank.
        scale: 1.0: queries come scaled.
        start: where this layer's latent begins in a row of the cache.
    """

    def __init__(
        self,
        num_heads,
        head_size,
        scale,
        num_kv_heads=1,
        alibi_slopes=None,
        sliding_window=None,
        kv_cache_dtype="auto",
        logits_soft_cap=None,
        attn_type=AttentionType.DECODER,
        kv_sharing_target_layer_name=None,
        start: int = 0,
    ):
        self.num_heads, self.head_size, self.scale, self.num_kv_heads = num_heads, head_size, scale, num_kv_heads
        self.kv_cache_dtype = kv_cache_dtype
        self.kv_sharing_target_layer_name = kv_sharing_target_layer_name
        self.start, self.end = start, start + head_size

    def forward(
        self, layer, query, key, value, kv_cache, attn_metadata, output, output_scale=None, output_block_scale=None
    ):
        """Write the latents `key` (`[written, 1, r]` or None), then attend.

        Args:
            query: `[T, H, r]`, absorbed.
            kv_cache: `[B, 1, N, C]`.
            output: `[T, H, r]`, filled with attended latents.
        """
        if attn_metadata is None:  # vLLM measures memory
            return output.fill_(0)
        latents = kv_cache[:, 0, :, self.start : self.end]
        if key is not None:
            slots = attn_metadata.slot_mapping[: key.shape[0]]
            latents[slots // latents.shape[1], slots % latents.shape[1]] = key[: slots.shape[0], 0].to(latents.dtype)
        elif attn_metadata.read is not None and attn_metadata.read[0] != self.start:
            attn_metadata.read = None
        if key is not None or attn_metadata.read is None:
            attn_metadata.read = (self.start, attn_metadata.gather(latents))
        for rows, latent in zip(attn_metadata.rows, attn_metadata.read[1], strict=True):
            attended, _ = attend(query[rows.tokens].transpose(1, 2), latent, rows.mask, False, return_weights=False)
            output[rows.tokens] = attended.transpose(1, 2)
        return output
