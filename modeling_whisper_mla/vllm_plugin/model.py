"""The model that vLLM runs: its own Whisper, with the decoder's attention on latents.

Audio, prompts, languages, tasks, timestamps and the speech-to-text protocol are inherited from vLLM's Whisper.
"""

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import SpeechToTextConfig, VllmConfig
from vllm.config.speech_to_text import SpeechToTextParams
from vllm.inputs import PromptType
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models import whisper
from vllm.model_executor.models.utils import make_layers, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY

from .cache_layout import cache_layout
from .encoded_audio import EncodedAudio
from .latent_layers import LatentCrossAttention, LatentSelfAttention
from .refusals import check_audio
from .served_weights import served_weights


class WhisperMLADecoderLayer(whisper.WhisperDecoderLayer):
    """A decoder layer whose two attentions read latents.

    Args:
        layer: its number.
        prefix: name of the decoder's layers, without the number.
    """

    def __init__(self, *, vllm_config: VllmConfig, layer: int, prefix: str):
        nn.Module.__init__(self)
        config = vllm_config.model_config.hf_config
        layout = cache_layout(config)

        def attention(kind: type, name: str, rank: int, start: int, row_width: int, has_down_proj: bool, writes: bool):
            return kind(
                config.d_model,
                config.decoder_attention_heads,
                rank,
                start,
                row_width,
                kind is LatentCrossAttention,
                has_down_proj,
                writes,
                owner=f"{prefix}.0.{name}.attn" if layer else None,
                vllm_config=vllm_config,
                prefix=f"{prefix}.{layer}.{name}",
            )

        rank, cross_rank = config.kv_ranks[layer], config.cross_kv_ranks[layer]
        shared = config.cross_kv_shared or config.cross_latent_is_encoder_output
        self.self_attn = attention(
            LatentSelfAttention,
            "self_attn",
            rank,
            layout.text_starts[layer],
            layout.text_width,
            has_down_proj=rank < config.d_model,
            writes=True,
        )
        # One latent for all layers is made by the first of them.
        writes = layer == 0 or not shared
        self.encoder_attn = attention(
            LatentCrossAttention,
            "encoder_attn",
            cross_rank,
            layout.audio_starts[layer],
            layout.audio_width,
            has_down_proj=writes and cross_rank < config.d_model,
            writes=writes,
        )
        self.mlp = whisper.WhisperMLP(
            embed_dim=config.d_model,
            ffn_dim=config.decoder_ffn_dim,
            act_fn=config.activation_function,
            quant_config=vllm_config.quant_config,
            prefix=f"{prefix}.{layer}.mlp",
        )
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.encoder_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)


@support_torch_compile(dynamic_arg_dims={"input_ids": 0, "positions": -1})
class WhisperMLADecoder(whisper.WhisperDecoder):
    """vLLM's Whisper decoder with layers of ours."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        nn.Module.__init__(self)
        config = vllm_config.model_config.hf_config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model, config.pad_token_id)
        self.embed_positions = whisper.WhisperPositionalEmbedding(config.max_target_positions, config.d_model)

        def layer(prefix: str) -> WhisperMLADecoderLayer:
            layers, number = prefix.rsplit(".", 1)
            return WhisperMLADecoderLayer(vllm_config=vllm_config, layer=int(number), prefix=layers)

        self.start_layer, self.end_layer, self.layers = make_layers(
            config.decoder_layers, layer, prefix=f"{prefix}.layers"
        )
        self.layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, input_ids, positions: torch.Tensor, encoder_hidden_states: torch.Tensor | None):
        """As `WhisperDecoder.forward`; vLLM compiles by these annotations."""
        return whisper.WhisperDecoder.forward(self, input_ids, positions, encoder_hidden_states)


class WhisperMLAModel(whisper.WhisperModel):
    """vLLM's Whisper encoder, and our decoder."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        nn.Module.__init__(self)
        self.encoder = whisper.WhisperEncoder(vllm_config=vllm_config, prefix=f"{prefix}.encoder")
        self.decoder = WhisperMLADecoder(vllm_config=vllm_config, prefix=f"{prefix}.decoder")


class WhisperMLAMultiModalProcessor(whisper.WhisperMultiModalProcessor):
    """vLLM's, which leaves prompts as they are: a previous text comes before `<|startoftranscript|>`, and vLLM would
    put that token once more in front of it."""

    skip_decoder_start_token = True


@MULTIMODAL_REGISTRY.register_processor(
    WhisperMLAMultiModalProcessor,
    info=whisper.WhisperProcessingInfo,
    dummy_inputs=whisper.WhisperDummyInputsBuilder,
)
class WhisperMLAForConditionalGeneration(whisper.WhisperForConditionalGeneration):
    """Whisper-MLA for `/v1/audio/transcriptions` and `/v1/audio/translations`."""

    supports_lora: ClassVar[bool] = False  # adapters name the projections of stock Whisper

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        nn.Module.__init__(self)
        config = vllm_config.model_config.hf_config
        self.config = config
        self.dtype = vllm_config.model_config.dtype
        with self._mark_composite_model(
            vllm_config,
            language_targets=WhisperMLADecoder,
            tower_targets={"audio": whisper.WhisperEncoder},
        ):
            self.model = WhisperMLAModel(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        head = ParallelLMHead(
            config.vocab_size,
            config.d_model,
            quant_config=vllm_config.quant_config,
            prefix=maybe_prefix(prefix, "proj_out"),
        )
        self.proj_out = head.tie_weights(self.model.decoder.embed_tokens)
        self.logits_processor = LogitsProcessor(config.vocab_size)
        self.encoded_audio = EncodedAudio(self.model.get_encoder_outputs)

    def embed_multimodal(self, **kwargs: object) -> tuple[Tensor, ...]:
        """As `WhisperForConditionalGeneration.embed_multimodal`, but audio that was just heard is not encoded again."""
        features = self._parse_and_validate_audio_input(**kwargs)["input_features"]
        return tuple(self.encoded_audio(window) for window in features)

    @classmethod
    def get_generation_prompt(cls, stt_params: SpeechToTextParams) -> PromptType:
        """As `WhisperForConditionalGeneration.get_generation_prompt`; the text of a request's `prompt` follows the
        token that Whisper has for it (vLLM 0.32 writes `<|prev|>`, which its tokenizers do not know)."""
        check_audio(stt_params.audio)
        prompt = super().get_generation_prompt(stt_params)
        decoder_prompt = prompt["decoder_prompt"]
        decoder_prompt["prompt"] = decoder_prompt["prompt"].replace("<|prev|>", "<|startofprev|>", 1)
        return prompt

    @classmethod
    def get_language_detection_prompt(cls, audio: np.ndarray, stt_config: SpeechToTextConfig) -> PromptType:
        check_audio(audio)
        return super().get_language_detection_prompt(audio, stt_config)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        return super().load_weights(served_weights(weights))
