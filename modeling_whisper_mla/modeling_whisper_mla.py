"""Whisper with multi-head latent attention: the model classes that users load, on `encoder_and_decoder`."""

import importlib
from collections.abc import Iterable

from torch import Tensor, nn
from transformers import WhisperForCausalLM, WhisperForConditionalGeneration, WhisperModel
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.models.whisper.modeling_whisper import WhisperDecoderWrapper
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple

from .configuration.cache_size import cache_size
from .configuration.configuration_whisper_mla import WhisperMLAConfig
from .encoder_and_decoder import WhisperMLADecoder, WhisperMLAEncoder, WhisperMLAPreTrainedModel
from .freezing import TrainableParameters, freeze_except
from .generation_whisper_mla import CrossLatentOutput, LatentCacheMixin, WhisperMLAGenerationMixin
from .greedy_decoding import GreedyLogits
from .latent_quantization import quantize
from .transformers_releases import strict_forward

logger = logging.get_logger(__name__)


class WhisperMLAModel(WhisperMLAPreTrainedModel, WhisperModel):
    """Encoder and decoder, without the language modelling head."""

    def __init__(self, config: WhisperMLAConfig):
        super(WhisperModel, self).__init__(config)
        self.encoder = WhisperMLAEncoder(config)
        self.decoder = WhisperMLADecoder(config)
        self.post_init()

    @strict_forward(like=WhisperModel.forward)
    def forward(self, *, encoder_outputs: BaseModelOutput | tuple | None = None, **kwargs):
        """As `WhisperModel.forward`; `encoder_outputs` may hold fewer audios than there are decoder rows (see
        `WhisperMLADecoder.forward`) and may be what `compress_encoder_outputs` returned."""
        if isinstance(encoder_outputs, CrossLatentOutput):
            kwargs["encoder_states_are_latent"] = True
        return super().forward(encoder_outputs=encoder_outputs, **kwargs)


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

    @strict_forward(like=WhisperForConditionalGeneration.forward)
    @can_return_tuple
    def forward(
        self,
        *,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        greedy_logits: GreedyLogits | None = None,
        **kwargs,
    ):
        """As `WhisperForConditionalGeneration.forward`.

        Args:
            labels: `[batch, T]`, -100 where no loss is taken.
            num_items_in_batch: labels of the whole batch of an optimiser step, over accumulation steps and processes.
                The loss is then the sum over this call's labels divided by it, so that the parts add up to the mean.
            greedy_logits: where only the largest logits must be exact, as `generate` says in greedy decoding on a CPU;
                without effect where a loss is taken.
        """
        if greedy_logits is not None and labels is None:
            hidden = self.model(return_dict=True, **kwargs)
            kept = {name: value for name, value in hidden.items() if name != "last_hidden_state"}
            return Seq2SeqLMOutput(logits=greedy_logits(hidden[0], self.proj_out.weight), **kept)
        outputs = super().forward(labels=labels, return_dict=True, **kwargs)
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
