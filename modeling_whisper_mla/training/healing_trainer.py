"""The trainer that heals a converted model: cross-entropy, and distillation from the stock model it came from."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Seq2SeqTrainer, TrainerCallback
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import shift_tokens_right
from transformers.utils import logging

from .arguments import HealingArguments
from .losses import IGNORED, cross_entropy, distillation_divergence, relative_error
from .teacher import can_share_encoder, check_teacher, decoder_attentions, decoder_layers, recorded_outputs

logger = logging.get_logger(__name__)


class HealingTrainer(Seq2SeqTrainer):
    """[`Seq2SeqTrainer`] for Whisper, stock or converted, whose loss does not depend on how a batch is divided.

    The loss of an optimiser step is a mean over its labels, however many processes and accumulation steps they come
    from (stock Whisper's own loss under Trainer is multiplied by the number of processes).

    With `args.loss="distillation"` the teacher reads the student's encoder output, so that it costs a decoder pass
    only, if the student's encoder is frozen and equal to the teacher's. Otherwise (an encoder that trains or has an
    `audio_kv_rank`) it encodes by itself. A shared encoder output is that of the audio as SpecAugment masked it. The
    evaluation loss is the cross-entropy in every case.

    Args:
        teacher: for distillation; it is put in evaluation mode and frozen.
        args: [`HealingArguments`].
        kwargs: those of `Seq2SeqTrainer`.

    Attributes:
        shares_encoder: whether the teacher reads the student's encoder output; None without a teacher.

    Raises:
        ValueError: no parameter of the model trains, no teacher for a distillation, or one that does not fit (see
            `check_teacher`).
    """

    args: HealingArguments
    model: nn.Module

    def __init__(
        self, model: PreTrainedModel, args: HealingArguments, teacher: PreTrainedModel | None = None, **kwargs
    ):
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError("model: none of its parameters trains. Freeze less (see freeze_except).")
        self.teacher: PreTrainedModel | None = None
        self.shares_encoder: bool | None = None
        if args.loss == "distillation":
            if teacher is None:
                raise ValueError("loss='distillation': a teacher is needed, the stock model that was converted.")
            student = _whisper_of(model)
            check_teacher(student, teacher, bool(args.hidden_state_weight or args.attention_output_weight))
            self.teacher = teacher.eval().requires_grad_(False)
            self.shares_encoder = can_share_encoder(student, teacher)
            how = "reads the student's encoder output" if self.shares_encoder else "encodes the audio by itself"
            logger.warning(f"The teacher {how}.")
        super().__init__(model=model, args=args, **kwargs)
        # Makes Trainer count the labels of the whole step; compute_loss divides by that number.
        self.model_accepts_loss_kwargs = True
        self._dtype = _whisper_of(model).dtype
        self._parts: dict[str, Tensor] = {}
        self._parts_since = 0
        if self.teacher is not None:
            # A shared encoder of the teacher never runs, so it need not take memory on the device.
            for module in (self.teacher.model.decoder, self.teacher.proj_out):
                module.to(args.device)
            if not self.shares_encoder:
                self.teacher.to(args.device)  # type: ignore[arg-type]
        self.add_callback(StepInEveryEpoch())
        self._student_modules, self._teacher_modules = self._compared_modules(_whisper_of(model))

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        # Generation does not run under autocast, so audio must come in the dtype of the weights.
        inputs = super()._prepare_inputs(inputs)
        return {**inputs, "input_features": inputs["input_features"].to(self._dtype)}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ):
        """The loss of one part of a batch.

        Args:
            model: the student, wrapped or not.
            inputs: `input_features` `[batch, mel bins, frames]` and `labels` `[batch, T]`.
            return_outputs: return the model's outputs too.
            num_items_in_batch: labels of the whole step; None: those of this part.

        Returns:
            Tensor, or a tuple of it and the outputs: a scalar.
        """
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        config = _whisper_of(self.accelerator.unwrap_model(model)).config
        inputs["decoder_input_ids"] = shift_tokens_right(labels, config.pad_token_id, config.decoder_start_token_id)
        with recorded_outputs(self._student_modules) as states:
            outputs = model(**inputs, use_cache=False)
        num_items = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        parts = {"cross_entropy": cross_entropy(outputs.logits, labels, num_items)}
        loss = parts["cross_entropy"]
        if self.teacher is not None and self.model.training:
            parts |= self._distillation(inputs, labels, outputs, states, num_items)
            loss = sum(getattr(self.args, f"{name}_weight") * value for name, value in parts.items())
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # Gradients are averaged over the processes, whose parts must add up instead.
            parts = {name: value * self.accelerator.num_processes for name, value in parts.items()}
            loss = loss * self.accelerator.num_processes
        if self.model.training:
            if not self._parts:
                self._parts_since = self.state.global_step
            for name, value in parts.items():
                self._parts[name] = self._parts.get(name, 0) + value.detach()
        outputs["loss"] = loss
        return (loss, outputs) if return_outputs else loss

    def _distillation(
        self, inputs: dict[str, Tensor], labels: Tensor, outputs, states: list[Tensor], num_items
    ) -> dict[str, Tensor]:
        """The parts of the loss that compare with the teacher; those of weight 0 are left out."""
        assert self.teacher is not None
        audio: dict[str, Any] = {"input_features": inputs["input_features"]}
        if self.shares_encoder:
            audio = {"encoder_outputs": BaseModelOutput(last_hidden_state=outputs.encoder_last_hidden_state)}
        with torch.no_grad(), self.accelerator.autocast(), recorded_outputs(self._teacher_modules) as wanted:
            taught = self.teacher(
                **_as_dtype(audio, self.teacher.dtype),
                decoder_input_ids=inputs["decoder_input_ids"],
                use_cache=False,
            )
        args, parts = self.args, {}
        if args.divergence_weight:
            parts["divergence"] = distillation_divergence(
                outputs.logits, taught.logits, labels, num_items, args.temperature
            )
        if args.hidden_state_weight:
            parts["hidden_state"] = relative_error(
                self._hidden_states(states), self._hidden_states(wanted), labels, num_items
            )
        if args.attention_output_weight:
            parts["attention_output"] = relative_error(
                self._attention_outputs(states), self._attention_outputs(wanted), labels, num_items
            )
        return parts

    def _compared_modules(self, student: PreTrainedModel) -> tuple[list[nn.Module], list[nn.Module]]:
        """Modules of student and teacher whose outputs are recorded: per layer its two attentions, then itself."""
        if self.teacher is None or not (self.args.hidden_state_weight or self.args.attention_output_weight):
            return [], []
        student_modules, teacher_modules = (
            [*decoder_attentions(model), *decoder_layers(model)] for model in (student, self.teacher)
        )
        return student_modules, teacher_modules

    @staticmethod
    def _hidden_states(states: list[Tensor]) -> list[Tensor]:
        return states[2::3]

    @staticmethod
    def _attention_outputs(states: list[Tensor]) -> list[Tensor]:
        return [state for index, state in enumerate(states) if index % 3 != 2]

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """As `Trainer.log`; adds the unweighted parts of a distillation's loss, averaged since the last log."""
        if "loss" in logs and len(self._parts) > 1:
            steps = max(self.state.global_step - self._parts_since, 1)
            for name, value in self._parts.items():
                logs[name] = self.accelerator.reduce(value, "mean").item() / steps
        if "loss" in logs:
            self._parts = {}
        super().log(logs, *args, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None, **gen_kwargs):
        """As `Seq2SeqTrainer.prediction_step`; in each utterance's own language, which its labels begin with."""
        generation_config = _whisper_of(self.model).generation_config
        languages = {token: name for name, token in (getattr(generation_config, "lang_to_id", None) or {}).items()}
        if "labels" in inputs and languages and getattr(generation_config, "is_multilingual", True):
            spoken = [languages.get(token) for token in inputs["labels"][:, 0].tolist()]
            if all(spoken):
                gen_kwargs = {**getattr(self, "_gen_kwargs", {}), **gen_kwargs, "language": spoken}
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignore_keys, **gen_kwargs)


class StepInEveryEpoch(TrainerCallback):
    """Ends a run that would not end: over a stream with fewer batches than one step accumulates, none is ever made."""

    _step = -1

    def on_epoch_begin(self, args, state, control, **kwargs):
        self._step = state.global_step

    def on_epoch_end(self, args, state, control, **kwargs):
        if state.global_step == self._step and not control.should_training_stop:
            raise ValueError(
                f"train_dataset: fewer batches than gradient_accumulation_steps={args.gradient_accumulation_steps} on "
                f"{args.world_size} processes, so no step is ever made. Reduce it, or the batch size."
            )


def _whisper_of(model: Any) -> PreTrainedModel:
    """The Whisper inside an adapter model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _as_dtype(audio: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    if "input_features" in audio:
        return {"input_features": audio["input_features"].to(dtype)}
    return {"encoder_outputs": BaseModelOutput(audio["encoder_outputs"].last_hidden_state.to(dtype))}
