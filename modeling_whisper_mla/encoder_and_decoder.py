"""Encoder and decoder with latent attention, and the base of all model classes.

Each class is the Transformers class of the same name without "MLA", with the attention modules and the cache replaced.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import WhisperPreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.models.whisper.modeling_whisper import (
    WhisperDecoder,
    WhisperDecoderLayer,
    WhisperEncoder,
    WhisperEncoderLayer,
    WhisperPositionalEmbedding,
)
from transformers.utils.generic import merge_with_config_defaults

from .audio_blocks import audio_blocks, decode_blocks
from .configuration.configuration_whisper_mla import WhisperMLAConfig
from .hub.saved_folder import SavedFolderMixin
from .int8_weights import register_int8_weights
from .latent_attention import WhisperMLAAttention
from .latent_cache import LatentCache
from .latent_quantization import dequantize, round_latent
from .token_times import AlignmentHeads
from .transformers_releases import CACHE, strict_forward

register_int8_weights()  # before a config.json that names the method is acted upon


class WhisperMLAEncoderLayer(WhisperEncoderLayer):
    """A Whisper encoder layer whose self-attention is low-rank, if `audio_kv_rank` says so."""

    def __init__(self, config: WhisperMLAConfig, layer_idx: int):
        super().__init__(config)
        rank = config.audio_kv_ranks[layer_idx]
        if rank < config.d_model:
            self.self_attn = WhisperMLAAttention(
                config.d_model,
                config.encoder_attention_heads,
                rank,
                dropout=config.attention_dropout,
                config=config,
            )


class WhisperMLADecoderLayer(WhisperDecoderLayer):
    """A Whisper decoder layer whose self-attention and cross-attention read latents."""

    def __init__(self, config: WhisperMLAConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        common: dict[str, Any] = {
            "dropout": config.attention_dropout,
            "is_decoder": True,
            "layer_idx": layer_idx,
            "config": config,
        }
        heads = config.decoder_attention_heads
        self.self_attn = WhisperMLAAttention(
            config.d_model,
            heads,
            config.kv_ranks[layer_idx],
            latent_bits=config.text_latent_bits[layer_idx],
            is_causal=True,
            **common,
        )
        if config.cross_cache == "latent":
            ranks = config.cross_kv_ranks
            shared = config.cross_kv_shared or config.cross_latent_is_encoder_output
            self.encoder_attn = WhisperMLAAttention(
                config.d_model,
                heads,
                ranks[layer_idx],
                has_down_proj=not shared,
                latent_start=0 if shared else sum(ranks[:layer_idx]),
                **common,
            )


class WhisperMLAPreTrainedModel(SavedFolderMixin, WhisperPreTrainedModel):
    """Base of all Whisper-MLA models: configuration, capabilities, saving and loading."""

    config: WhisperMLAConfig
    config_class = WhisperMLAConfig
    _no_split_modules = ["WhisperMLAEncoderLayer", "WhisperMLADecoderLayer"]  # noqa: RUF012
    # The absorbed form needs heads as wide as the latent, which flash-attn does not serve. PyTorch's own flash kernel
    # is used through "sdpa" wherever it can be.
    _supports_flash_attn = False

    def _flash_attn_can_dispatch(self, *args, **kwargs):
        raise ValueError(
            f"attn_implementation: {type(self).__name__} does not run with flash_attention. Its heads are at most 256 "
            "wide, but all our heads read one latent of up to d_model values. Use 'sdpa', which takes PyTorch's own "
            "flash kernel where it fits, or 'eager'."
        )


class WhisperMLAEncoder(WhisperMLAPreTrainedModel, WhisperEncoder):
    """Whisper's audio encoder; stock unless `audio_kv_rank` is set."""

    def __init__(self, config: WhisperMLAConfig):
        # Not WhisperEncoder's own __init__, which would build every layer twice.
        super(WhisperEncoder, self).__init__(config)
        self.dropout = config.dropout
        self.layerdrop = config.encoder_layerdrop
        self.num_mel_bins = config.num_mel_bins
        self.padding_idx = config.pad_token_id
        self.max_source_positions = config.max_source_positions
        self.embed_scale = math.sqrt(config.d_model) if config.scale_embedding else 1.0
        self.conv1 = nn.Conv1d(config.num_mel_bins, config.d_model, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(config.d_model, config.d_model, kernel_size=3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(config.max_source_positions, config.d_model)
        self.embed_positions.requires_grad_(False)
        self.layers = nn.ModuleList([WhisperMLAEncoderLayer(config, i) for i in range(config.encoder_layers)])
        self.layer_norm = nn.LayerNorm(config.d_model)
        self.gradient_checkpointing = False
        self.post_init()

    @strict_forward(like=WhisperEncoder.forward)
    def forward(self, *, input_features: Tensor, **kwargs):
        if isinstance(kwargs.get("output_attentions"), AlignmentHeads):
            kwargs["output_attentions"] = False  # those are the decoder's
        # A feature extractor gives float32, which the convolutions of a half-precision model refuse.
        return super().forward(input_features.to(self.conv1.weight.dtype), **kwargs)


class WhisperMLADecoder(WhisperMLAPreTrainedModel, WhisperDecoder):
    """Whisper's text decoder on latents.

    Attributes:
        cross_kv_down_proj: projects the encoder output to the latent that all layers share, `[d_model]` to
            `[cross_kv_rank]`; None where cross-attention is exact or has one latent per layer.
    """

    def __init__(self, config: WhisperMLAConfig):
        super(WhisperDecoder, self).__init__(config)
        self.dropout = config.dropout
        self.layerdrop = config.decoder_layerdrop
        self.padding_idx = config.pad_token_id
        self.max_target_positions = config.max_target_positions
        self.max_source_positions = config.max_source_positions
        self.embed_scale = math.sqrt(config.d_model) if config.scale_embedding else 1.0
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model, self.padding_idx)
        self.embed_positions = WhisperPositionalEmbedding(self.max_target_positions, config.d_model)
        self.layers = nn.ModuleList([WhisperMLADecoderLayer(config, i) for i in range(config.decoder_layers)])
        self.layer_norm = nn.LayerNorm(config.d_model)
        self.cross_kv_down_proj = None
        if config.cross_kv_shared and not config.cross_latent_is_encoder_output:
            is_mixed = isinstance(config.audio_latent_bits, tuple)
            self.cross_kv_down_proj = nn.Linear(config.d_model, config.cross_latent_width, bias=is_mixed)
        self.gradient_checkpointing = False
        self.post_init()

    def cross_latent(self, encoder_hidden_states: Tensor) -> Tensor:
        """What cross-attention reads of the audio.

        Args:
            encoder_hidden_states: `[audios, frames, d_model]`.

        Returns:
            Tensor: `[audios, frames, cross_latent_width]`: the encoder output itself where cross-attention is exact,
            the shared latent, or the latents of all layers side by side.
        """
        if self.config.cross_latent_is_encoder_output:
            return encoder_hidden_states
        if self.cross_kv_down_proj is not None:
            return self.cross_kv_down_proj(encoder_hidden_states)
        return torch.cat([layer.encoder_attn.compress(encoder_hidden_states) for layer in self.layers], dim=-1)

    @strict_forward(like=WhisperDecoder.forward)
    @merge_with_config_defaults
    def forward(
        self,
        *,
        encoder_hidden_states: Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        use_cache: bool | None = None,
        encoder_states_are_latent: bool = False,
        **kwargs,
    ):
        """As `WhisperDecoder.forward`.

        Args:
            encoder_hidden_states: `[audios, frames, d_model]`, of which `batch` (rows of `input_ids`) is a multiple:
                consecutive rows read the same audio.
            encoder_states_are_latent: `encoder_hidden_states` is what `compress_encoder_outputs` returned: projected,
                and packed where `latent_dtype` rounds the audio's latent.
        """
        bits, group_size = self.config.audio_latent_bits, self.config.latent_group_size
        if encoder_hidden_states is not None and not encoder_states_are_latent:
            encoder_hidden_states = self.cross_latent(encoder_hidden_states)
            if bits is not None:
                encoder_hidden_states = round_latent(encoder_hidden_states, bits, group_size)
        # An empty plain cache has no place for cross-attention; stock Whisper replaces it likewise.
        is_plain = type(cache) is DynamicCache and cache.get_seq_length() == 0
        if use_cache and (cache is None or (is_plain and encoder_hidden_states is not None)):
            cache = LatentCache(self.config)
        kwargs |= {CACHE: cache, "use_cache": use_cache}
        forward = super().forward
        if encoder_hidden_states is None or bits is None or not encoder_states_are_latent:
            return forward(encoder_hidden_states=encoder_hidden_states, **kwargs)

        packed, width, dtype = encoder_hidden_states, self.config.cross_latent_width, self.layer_norm.weight.dtype

        def unpack(block: slice) -> Tensor:  # once for all layers
            return dequantize(packed[block], width, bits, group_size, dtype)

        blocks = audio_blocks(packed, width, dtype, kwargs)
        if len(blocks) == 1:
            return forward(encoder_hidden_states=unpack(blocks[0]), **kwargs)
        return decode_blocks(forward, unpack, blocks, kwargs, self.config)
