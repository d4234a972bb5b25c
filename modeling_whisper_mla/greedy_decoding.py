"""Greedy decoding on a CPU with the vocabulary projection in 8 bits, and the same tokens.

That projection is a third of a step of whisper-base. Greedy decoding wants its largest logit, and the rule for
timestamps the sum of theirs: these are computed in float32, see [`rounded_projection`]. Whatever else reads logits
(scores, beams, samples, other processors) gets all of them in float32, as before.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList, WhisperTimeStampLogitsProcessor

from .int8_linear import missing_kernel
from .rounded_projection import RoundedProjection, greedy_logits
from .token_suppression import SuppressTokens, SuppressTokensAtBegin
from .transformers_releases import CACHE

# Rounding takes as long as these many steps of one audio save.
STEPS_BEFORE_ROUNDING = 200
_SMALLEST_WEIGHT = 2**20  # values: below, float32 is as quick
_KNOWN_RULES = (SuppressTokens, SuppressTokensAtBegin, WhisperTimeStampLogitsProcessor)


@dataclass(frozen=True)
class GreedyLogits:
    """What one `generate` needs of its logits.

    Attributes:
        number: of the [`RoundedProjection`].
        first_exact: the first of the tokens whose logits are all needed.
        forbidden: tokens below it that are never picked, int64 `[n]`.
        projection: kept alive for as long as this.
    """

    number: int
    first_exact: int
    forbidden: Tensor
    projection: RoundedProjection

    def __call__(self, states: Tensor, weight: Tensor) -> Tensor:
        """Logits `[batch, T, vocabulary]` for `states` `[batch, T, d_model]`."""
        return greedy_logits(states, weight, self.forbidden, self.number, self.first_exact)


class GreedyLogitsMixin:
    """Makes `generate` hand a [`GreedyLogits`] to the forwards of single steps where tokens stay the same."""

    def expect_many_steps(self) -> None:
        """Round the vocabulary projection when greedy decoding begins, not after `STEPS_BEFORE_ROUNDING` steps."""
        if _can_be_rounded(self.proj_out):
            _progress_of(self.proj_out).steps = STEPS_BEFORE_ROUNDING

    def _sample(
        self,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        **kwargs,
    ):
        picks_only = not (
            generation_config.do_sample or generation_config.output_scores or generation_config.output_logits
        )
        first_exact = _first_exact(logits_processor, self.proj_out) if picks_only else None
        arguments = (input_ids, logits_processor, stopping_criteria, generation_config)
        if first_exact is None or not _can_be_rounded(self.proj_out):
            return super()._sample(*arguments, **kwargs)
        progress = _progress_of(self.proj_out)
        projection = progress.rounded(self.proj_out.weight)
        if projection is not None:
            forbidden = _forbidden(logits_processor, first_exact)
            kwargs["greedy_logits"] = GreedyLogits(projection.number, first_exact, forbidden, projection)
        output = super()._sample(*arguments, **kwargs)
        tokens = output if isinstance(output, Tensor) else output.sequences
        progress.steps += tokens.shape[1] - input_ids.shape[1]
        return output

    def prepare_inputs_for_generation(self, *args, **kwargs):
        """As in Transformers; the first step, which has rules of its own, gets all logits."""
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        cache = inputs.get(CACHE)
        if inputs["decoder_input_ids"].shape[1] != 1 or cache is None or cache.get_seq_length() == 0:
            inputs.pop("greedy_logits", None)
        return inputs


class _Progress:
    """Steps that a vocabulary projection has been used for, and what it was rounded to after enough of them."""

    def __init__(self, weight: Tensor):
        self.weight_is = _identity(weight)
        self.steps = 0
        self.projection: RoundedProjection | None = None
        self.lock = threading.Lock()

    def rounded(self, weight: Tensor) -> RoundedProjection | None:
        """The rounded projection, made now if this has been worth it."""
        with self.lock:
            if self.projection is None and self.steps >= STEPS_BEFORE_ROUNDING:
                self.projection = RoundedProjection(weight)
            return self.projection


_progress: WeakKeyDictionary[nn.Module, _Progress] = WeakKeyDictionary()


def _progress_of(linear: nn.Linear) -> _Progress:
    """That of the weight as it is now: one that was trained, merged or replaced since begins anew."""
    progress = _progress.get(linear)
    if progress is None or progress.weight_is != _identity(linear.weight):
        progress = _progress[linear] = _Progress(linear.weight)
    return progress


def _identity(weight: Tensor) -> tuple:
    """Where a weight lies, PyTorch's count of its changes, and sums over a sample: `weight.data` is not counted."""
    return weight.data_ptr(), weight._version, tuple(weight.shape), tuple(weight.detach()[::16].sum(dim=0).tolist())


def _can_be_rounded(linear: nn.Module) -> bool:
    """Whether a projection is nothing but the product with a float32 matrix on the CPU, and large enough."""
    return (
        type(linear) is nn.Linear
        and type(linear.weight) is nn.Parameter
        and linear.bias is None
        and linear.weight.device.type == "cpu"
        and linear.weight.dtype == torch.float32
        and linear.weight.numel() >= _SMALLEST_WEIGHT
        and not linear.weight.is_inference()
        and not (linear._forward_hooks or linear._forward_pre_hooks or hasattr(linear, "_hf_hook"))
        and not torch.is_autocast_enabled("cpu")
        and missing_kernel() is None
    )


def _first_exact(rules: Iterable[Any], linear: nn.Module) -> int | None:
    """The first token whose logit is always needed; None where a rule is unknown or would need most of them."""
    first = vocabulary = linear.out_features
    for rule in rules:
        if type(rule) not in _KNOWN_RULES:
            return None
        if isinstance(rule, WhisperTimeStampLogitsProcessor):
            first = min(first, rule.eos_token_id, rule.no_timestamps_token_id)
    return first if first >= 0.9 * vocabulary else None


def _forbidden(rules: Iterable[Any], first_exact: int) -> Tensor:
    tokens = [rule.suppress_tokens.flatten().long() for rule in rules if isinstance(rule, SuppressTokens)]
    found = torch.cat([torch.empty(0, dtype=torch.long), *tokens])
    return found[(found >= 0) & (found < first_exact)]


__all__ = ["STEPS_BEFORE_ROUNDING", "GreedyLogits", "GreedyLogitsMixin"]
