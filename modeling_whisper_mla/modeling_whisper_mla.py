"""Whisper with multi-head latent attention: the model classes.

Each class is the Transformers class of the same name without "MLA", with the attention modules and the cache replaced.
"""

import importlib
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import WhisperForCausalLM, WhisperForConditionalGeneration, WhisperModel, WhisperPreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import (
    WhisperDecoder,
    WhisperDecoderLayer,
    WhisperDecoderWrapper,
    WhisperEncoder,
    WhisperEncoderLayer,
    WhisperPositionalEmbedding,
)
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults

from .configuration.cache_size import cache_size
from .configuration.configuration_whisper_mla import WhisperMLAConfig
from .freezing import TrainableParameters, freeze_except
from .generation_whisper_mla import CrossLatentOutput, LatentCacheMixin, WhisperMLAGenerationMixin
from .hub.saved_folder import SavedFolderMixin
from .latent_attention import WhisperMLAAttention
from .latent_cache import LatentCache
from .latent_quantization import dequantize, quantize, round_latent
from .transformers_releases import CACHE, strict_forward

logger = logging.get_logger(__name__)


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
            latent_bits=config.text_latent_bits,
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

    forward = strict_forward(WhisperEncoder.forward)


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
            self.cross_kv_down_proj = nn.Linear(config.d_model, config.cross_latent_width, bias=False)
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

    @strict_forward
    @merge_with_config_defaults
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
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
        elif encoder_hidden_states is not None and bits is not None:  # once for all layers
            width, dtype = self.config.cross_latent_width, self.layer_norm.weight.dtype
            encoder_hidden_states = dequantize(encoder_hidden_states, width, bits, group_size, dtype)
        # An empty plain cache has no place for cross-attention; stock Whisper replaces it likewise.
        is_plain = type(cache) is DynamicCache and cache.get_seq_length() == 0
        if use_cache and (cache is None or (is_plain and encoder_hidden_states is not None)):
            cache = LatentCache(self.config)
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=encoder_hidden_states,
            **{CACHE: cache},
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            use_cache=use_cache,
            **kwargs,
        )


class WhisperMLAModel(WhisperMLAPreTrainedModel, WhisperModel):
    """Encoder and decoder, without the language modelling head."""

    def __init__(self, config: WhisperMLAConfig):
        super(WhisperModel, self).__init__(config)
        self.encoder = WhisperMLAEncoder(config)
        self.decoder = WhisperMLADecoder(config)
        self.post_init()

    @strict_forward
    def forward(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        cache: EncoderDecoderCache | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        decoder_position_ids: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ):
        """As `WhisperModel.forward`; `encoder_outputs` may hold fewer audios than there are decoder rows (see
        `WhisperMLADecoder.forward`) and may be what `compress_encoder_outputs` returned."""
        if isinstance(encoder_outputs, CrossLatentOutput):
            kwargs["encoder_states_are_latent"] = True
        return super().forward(
            input_features,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            **{CACHE: cache},
            decoder_inputs_embeds=decoder_inputs_embeds,
            decoder_position_ids=decoder_position_ids,
            use_cache=use_cache,
            **kwargs,
        )


class WhisperMLAForConditionalGeneration(
    WhisperMLAGenerationMixin, WhisperMLAPreTrainedModel, WhisperForConditionalGeneration
):
    """Whisper-MLA for speech recognition and translation: `WhisperForConditionalGeneration` on latents."""

    # Trainer passes num_items_in_batch, and forward divides by it (stock Whisper ignores it).
    accepts_loss_kwargs = True

    def __init__(self, config: WhisperMLAConfig):
        super(WhisperForConditionalGeneration, self).__init__(config)
        self.model = WhisperMLAModel(config)
        self.proj_out = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.max_target_positions = config.max_target_positions
        self.post_init()

    @strict_forward
    @can_return_tuple
    def forward(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        cache: EncoderDecoderCache | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        decoder_position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs,
    ):
        """As `WhisperForConditionalGeneration.forward`.

        Args:
            labels: `[batch, T]`, -100 where no loss is taken.
            num_items_in_batch: labels of the whole batch of an optimiser step, over accumulation steps and processes.
                The loss is then the sum over this call's labels divided by it, so that the parts add up to the mean.
        """
        outputs = super().forward(
            input_features,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            **{CACHE: cache},
            decoder_inputs_embeds=decoder_inputs_embeds,
            decoder_position_ids=decoder_position_ids,
            labels=labels,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        if labels is not None and num_items_in_batch is not None:
            outputs.loss = outputs.loss * (labels.ne(-100).sum().to(outputs.loss.device) / num_items_in_batch)
        return outputs

    def compress_encoder_outputs(self, encoder_outputs: BaseModelOutput | tuple) -> BaseModelOutput | tuple:
        """Project and pack encoder outputs once, for a decoding loop of one's own (`generate` does it by itself).

        Args:
            encoder_outputs: of `get_encoder()`, `last_hidden_state` `[audios, frames, d_model]`.

        Returns:
            The same object where cross-attention reads it as it is or has stock keys and values; else a
            [`CrossLatentOutput`] with `last_hidden_state` `[audios, frames, cross_latent_width]`, or uint8
            `[audios, frames, bytes]` where `latent_dtype` rounds it.
        """
        bits = self.config.audio_latent_bits
        as_it_is = self.config.cross_latent_is_encoder_output and bits is None
        if self.config.cross_cache != "latent" or as_it_is or isinstance(encoder_outputs, CrossLatentOutput):
            return encoder_outputs
        latent = self.model.decoder.cross_latent(encoder_outputs[0])
        if bits is not None:
            latent = quantize(latent, bits, self.config.latent_group_size)
        if not isinstance(encoder_outputs, BaseModelOutput):
            encoder_outputs = BaseModelOutput(*encoder_outputs)
        return CrossLatentOutput(
            last_hidden_state=latent,
            hidden_states=encoder_outputs.hidden_states,
            attentions=encoder_outputs.attentions,
        )

    def cache_nbytes(self, batch_size: int = 1, positions: int = 448, num_beams: int = 1) -> int:
        """Bytes that decoding holds: self-attention latents of all beams, and the audio's latents once per audio.

        Args:
            batch_size: audios decoded at once.
            positions: text positions in the cache.
            num_beams: hypotheses per audio.

        Returns:
            int: bytes, in the model's dtype where latents are not rounded. Computed from the configuration; nothing is
            allocated.

        Raises:
            ValueError: an argument below 1.
        """
        return cache_size(self.config, batch_size, positions, num_beams, self.dtype.itemsize).total

    def freeze_except(self, part: str | Iterable[str]) -> TrainableParameters:
        """Freeze all parameters but those of `part`, and log what trains; see [`whisper_mla.freezing.freeze_except`].

        Raises:
            ValueError: an unknown part, or one of which nothing would train.
        """
        report = freeze_except(self, part)
        logger.warning(f"{report}.")
        return report

    @classmethod
    def from_whisper(cls, source, **kwargs) -> "WhisperMLAForConditionalGeneration":
        """Convert a stock Whisper checkpoint; see [`whisper_mla.conversion.from_whisper`] for all arguments."""
        return import_conversion("from_whisper").from_whisper(source, model_class=cls, **kwargs)

    def to_whisper(self) -> WhisperForConditionalGeneration:
        """The stock model with the same outputs; see [`whisper_mla.conversion.to_whisper`]."""
        return import_conversion("to_whisper").to_whisper(self)


class _WhisperMLADecoderWrapper(WhisperMLAPreTrainedModel, WhisperDecoderWrapper):
    """Gives the decoder of [`WhisperMLAForCausalLM`] the parameter names of the full model."""

    def __init__(self, config: WhisperMLAConfig):
        super(WhisperDecoderWrapper, self).__init__(config)
        config.is_encoder_decoder = False
        self.decoder = WhisperMLADecoder(config)
        self.post_init()


class WhisperMLAForCausalLM(LatentCacheMixin, WhisperMLAPreTrainedModel, WhisperForCausalLM):
    """The decoder alone, as the assistant in speculative decoding: it reads the main model's encoder output."""

    def __init__(self, config: WhisperMLAConfig):
        super(WhisperForCausalLM, self).__init__(config)
        config.is_encoder_decoder = False
        self.model = _WhisperMLADecoderWrapper(config)
        self.proj_out = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    forward = strict_forward(WhisperForCausalLM.forward)


def import_conversion(module: str):
    """A module of the package's converter, which does not ride along in checkpoints."""
    try:
        return importlib.import_module(f"whisper_mla.conversion.{module}")
    except ModuleNotFoundError as error:
        raise ImportError("Converting needs the package: pip install whisper-mla") from error


__all__ = [
    "WhisperMLAForCausalLM",
    "WhisperMLAForConditionalGeneration",
    "WhisperMLAModel",
    "WhisperMLAPreTrainedModel",
]
