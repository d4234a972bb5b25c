"""What `generate` must do differently for latents: the cache it makes, and one encoder output per audio."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.generation_whisper import WhisperGenerationMixin
from transformers.utils import logging

from .beam_top_k import QuickTopK
from .greedy_decoding import STEPS_BEFORE_ROUNDING, progress_of, reads_largest_only
from .latent_attention import WhisperMLAAttention
from .latent_cache import LatentCache
from .run_time_rounding import rounded_at_run_time
from .self_check import check_release
from .token_suppression import with_quicker_suppression
from .token_times import AlignmentHeads, TokenTimesMixin
from .transformers_releases import CACHE, ENCODER_STEP, NOT_FOR_FORWARDS, with_cache_name

logger = logging.get_logger(__name__)


@dataclass
class CrossLatentOutput(BaseModelOutput):
    """Encoder outputs whose `last_hidden_state` is already what cross-attention reads: `[audios, frames, width]`.

    Handed to the model as `encoder_outputs`, it is not projected again.
    """


def warn_of_expanded_form(model: PreTrainedModel) -> None:
    """Say so, once, if a quantised model would compute keys and values of all positions at every step."""
    if getattr(model, "hf_quantizer", None) is None:
        return
    for name, module in model.named_modules():
        if isinstance(module, WhisperMLAAttention) and module.is_decoder and not module.uses_absorbed_form(1):
            logger.warning_once(
                f"{name}: its k_proj and v_proj are quantised, so every decoding step computes keys and values of all "
                "positions, which is slow. Load the model with modules_to_not_convert=['.*k_proj', '.*v_proj'] in its "
                "quantization_config, or, on a CPU, with quantization_config=Int8WeightsConfig()."
            )
            return


class LatentCacheMixin:
    """Makes `generate` build a [`LatentCache`] where it would build a stock one."""

    def generate(self, *args, **kwargs):
        """As in Transformers. A cache may be given as `cache` or `past_key_values`, whatever the release.

        `cache_implementation="quantized"` decodes as if the model had been loaded with a `latent_dtype`; `cache_config`
        may then say `nbits` (4 or 8; default 4) and `q_group_size` (default: as `fitting_group_size` says).

        Raises:
            RuntimeError: the installed Transformers is outside of the tested range and does not decode rightly.
            ValueError: a quantised cache that cannot be had, see [`run_time_rounding.rounded_at_run_time`].
        """
        rounded, kwargs = rounded_at_run_time(self, kwargs)
        if rounded is not self:
            return rounded.generate(*args, **kwargs)
        check_release()
        warn_of_expanded_form(self)
        kwargs.pop("labels", None)  # Seq2SeqTrainer hands them along; the encoder would refuse them
        return super().generate(*args, **with_cache_name(kwargs, CACHE))

    def prepare_inputs_for_generation(self, *args, **kwargs):
        """As in Transformers, without arguments of `generate` that some ways of decoding hand down unread."""
        kept = {name: value for name, value in kwargs.items() if name not in NOT_FOR_FORWARDS}
        return super().prepare_inputs_for_generation(*args, **kept)

    def _get_logits_processor(self, *args, **kwargs):
        return with_quicker_suppression(super()._get_logits_processor(*args, **kwargs))

    def _get_top_k_continuations(self, *args, **kwargs):
        with QuickTopK():
            return super()._get_top_k_continuations(*args, **kwargs)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        given = model_kwargs.get(CACHE)
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        cache = model_kwargs.get(CACHE)
        if given is None and cache is not None:
            model_kwargs[CACHE] = LatentCache.like(cache, self.config)


class WhisperMLAGenerationMixin(LatentCacheMixin, TokenTimesMixin, WhisperGenerationMixin):
    """Whisper's generation with the latents of each audio held once, whatever the number of hypotheses."""

    def expect_many_steps(self) -> None:
        """Let greedy decoding on a CPU round the vocabulary projection at once, not after some hundred steps."""
        progress = progress_of(self.proj_out)
        if progress is not None:
            progress.steps = max(progress.steps, STEPS_BEFORE_ROUNDING)

    def _sample(self, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        arguments = (input_ids, logits_processor, stopping_criteria, generation_config)
        progress = None
        if reads_largest_only(logits_processor, generation_config, self.proj_out):
            progress = progress_of(self.proj_out)
        if progress is None:
            return super()._sample(*arguments, **kwargs)
        greedy_logits = progress.greedy_logits(self.proj_out, logits_processor)
        if greedy_logits is not None:
            kwargs["greedy_logits"] = greedy_logits
        output = super()._sample(*arguments, **kwargs)
        tokens = output if isinstance(output, Tensor) else output.sequences
        progress.steps += tokens.shape[1] - input_ids.shape[1]
        return output

    def prepare_inputs_for_generation(self, *args, **kwargs):
        """As in Transformers. Several tokens at once, a prompt, are not what rounded logits are quicker for."""
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        if inputs["decoder_input_ids"].shape[1] != 1:
            inputs.pop("greedy_logits", None)
        return inputs

    def _prepare_decoder_input_ids_for_generation(self, batch_size, model_input_name, model_kwargs, *args, **kwargs):
        # Transformers prepends the start token to prompts unless the model type is literally "whisper".
        if model_kwargs.get("decoder_input_ids") is not None:
            return model_kwargs.pop("decoder_input_ids"), model_kwargs
        return super()._prepare_decoder_input_ids_for_generation(
            batch_size, model_input_name, model_kwargs, *args, **kwargs
        )

    def _expand_variables_for_generation(self, *args, generation_config, **kwargs):
        self._keep_attention(generation_config)
        # Whisper repeats the audio for several returned sequences and then forgets how often.
        copies = generation_config.num_return_sequences or 1
        expanded = super()._expand_variables_for_generation(*args, generation_config=generation_config, **kwargs)
        generation_config.audio_copies = copies
        return expanded

    def _encode_each_audio_once(self, inputs_tensor, model_kwargs, model_input_name, generation_config):
        stock = getattr(super(), ENCODER_STEP)
        inputs_tensor = self._without_copies(inputs_tensor, generation_config)
        return stock(inputs_tensor, model_kwargs, model_input_name, generation_config)

    def _without_copies(self, inputs_tensor: Tensor, generation_config) -> Tensor:
        """Audio features `[audios·copies, ...]` reduced to `[audios, ...]` where all copies of each audio are equal.

        They are not in long form once copies have advanced differently; nor is it done when encoder states are to be
        returned for every sequence.
        """
        copies = getattr(generation_config, "audio_copies", 1)
        attentions = generation_config.output_attentions
        wants_states = generation_config.output_hidden_states or (
            attentions and not isinstance(attentions, AlignmentHeads)
        )
        if self.config.cross_cache != "latent" or copies == 1 or wants_states or inputs_tensor.shape[0] % copies:
            return inputs_tensor
        groups = inputs_tensor.unflatten(0, (-1, copies))
        return groups[:, 0] if torch.equal(groups, groups[:, :1].expand_as(groups)) else inputs_tensor

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        encoder_outputs = model_kwargs.get("encoder_outputs")
        if self.config.cross_cache != "latent" or encoder_outputs is None:
            return super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **model_kwargs)
        # Beams read one latent sequence, so only the text is repeated; the projection replaces the encoder output,
        # which is freed here unless the caller holds it.
        del model_kwargs["encoder_outputs"]
        input_ids, model_kwargs = super()._expand_inputs_for_generation(expand_size, False, input_ids, **model_kwargs)
        model_kwargs["encoder_outputs"] = self.compress_encoder_outputs(encoder_outputs)
        return input_ids, model_kwargs

    def _get_candidate_generator(self, *args, inputs_tensor, model_kwargs, assistant_model=None, **kwargs):
        # An assistant without an encoder reads the encoder output, which a projection has replaced: encode once more.
        shares_encoder = assistant_model is not None and not assistant_model.config.is_encoder_decoder
        if shares_encoder and isinstance(model_kwargs.get("encoder_outputs"), CrossLatentOutput):
            if not inputs_tensor.is_floating_point():
                raise ValueError(
                    "assistant_model without an encoder: pass input_features rather than encoder_outputs to "
                    "generate(), because this model keeps only a projection of the encoder output."
                )
            model_kwargs = {**model_kwargs, "encoder_outputs": self.get_encoder()(inputs_tensor)}
        return super()._get_candidate_generator(
            *args, inputs_tensor=inputs_tensor, model_kwargs=model_kwargs, assistant_model=assistant_model, **kwargs
        )


setattr(WhisperMLAGenerationMixin, ENCODER_STEP, WhisperMLAGenerationMixin._encode_each_audio_once)
