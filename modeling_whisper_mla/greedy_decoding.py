"""Greedy decoding on a CPU with the vocabulary projection in 8 bits, and the same tokens.

Greedy decoding wants the largest logit, and the rule for timestamps the sum of theirs: these are computed in float32,
see [`rounded_projection`]. Whatever else reads logits (scores, beams, samples, other processors) gets all of them in
float32, as before.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, MinLengthLogitsProcessor, MinNewTokensLengthLogitsProcessor

from .int8_linear import missing_kernel
from .rounded_projection import RoundedProjection, greedy_logits
from .token_suppression import SuppressTokens, SuppressTokensAtBegin, TimestampRules

# Rounding takes as long as these many steps of one audio save.
STEPS_BEFORE_ROUNDING = 200
_SMALLEST_WEIGHT = 2**20  # values: below, float32 is as quick
_NOT_YET_THE_END = (MinLengthLogitsProcessor, MinNewTokensLengthLogitsProcessor)
_KNOWN_RULES = (SuppressTokens, SuppressTokensAtBegin, TimestampRules, *_NOT_YET_THE_END)


@dataclass(frozen=True)
class GreedyLogits:
    """What one `generate` needs of its logits.

    Attributes:
        number: of the [`RoundedProjection`].
        first_exact: the first of the tokens whose logits are all needed.
        forbidden: tokens below it that may not be picked at this step or another, int64 `[n]`.
        projection: kept alive for as long as this.
    """

    number: int
    first_exact: int
    forbidden: Tensor
    projection: RoundedProjection

    def __call__(self, states: Tensor, weight: Tensor) -> Tensor:
        """Logits `[batch, T, vocabulary]` for `states` `[batch, T, d_model]`."""
        return greedy_logits(states, weight, self.forbidden, self.number, self.first_exact)


class Progress:
    """Steps that a vocabulary projection has been used for, and what it was rounded to after enough of them.

    Attributes:
        steps: of greedy decoding so far.
        projection: None until rounding is worth it.
    """

    def __init__(self, weight: Tensor):
        self.weight_is = _identity(weight)
        self.steps = 0
        self.projection: RoundedProjection | None = None
        self._lock = threading.Lock()

    def greedy_logits(self, linear: nn.Linear, rules: Iterable[Any]) -> GreedyLogits | None:
        """What a `generate` with these processors hands to its steps; rounds `linear` if that is worth it by now."""
        with self._lock:
            if self.projection is None and self.steps >= STEPS_BEFORE_ROUNDING:
                self.projection = RoundedProjection(linear.weight)
        first_exact = _first_exact(rules, linear)
        if self.projection is None or first_exact is None:
            return None
        return GreedyLogits(self.projection.number, first_exact, _forbidden(rules, first_exact), self.projection)


_progress: WeakKeyDictionary[nn.Module, Progress] = WeakKeyDictionary()


def progress_of(linear: nn.Linear) -> Progress | None:
    """That of the weight as it is now: one that was trained, merged or replaced since begins anew.

    Returns:
        Progress | None: None where the projection is more than the product with a float32 matrix on the CPU, or small.
    """
    if not _can_be_rounded(linear):
        return None
    progress = _progress.get(linear)
    if progress is None or progress.weight_is != _identity(linear.weight):
        progress = _progress[linear] = Progress(linear.weight)
    return progress


def reads_largest_only(rules: Iterable[Any], config: GenerationConfig, linear: nn.Linear) -> bool:
    """Whether decoding with these processors picks the largest logit and returns none."""
    needs_all = config.do_sample or config.output_scores or config.output_logits
    return not needs_all and _first_exact(rules, linear) is not None


def _identity(weight: Tensor) -> tuple:
    """Where a weight lies, PyTorch's count of its changes, and sums over a sample: `weight.data` is not counted."""
    return weight.data_ptr(), weight._version, tuple(weight.shape), tuple(weight.detach()[::16].sum(dim=0).tolist())


def _can_be_rounded(linear: nn.Linear) -> bool:
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


def _first_exact(rules: Iterable[Any], linear: nn.Linear) -> int | None:
    """The first token whose logit is always needed; None where a rule is unknown or would need most of them."""
    first = vocabulary = linear.out_features
    for rule in rules:
        if type(rule) not in _KNOWN_RULES:
            return None
        if isinstance(rule, TimestampRules):
            first = min(first, rule.eos_token_id, rule.no_timestamps_token_id)
    return first if first >= 0.9 * vocabulary else None


def _forbidden(rules: Iterable[Any], first_exact: int) -> Tensor:
    """Tokens that the rules forbid at any step; at others they may be picked."""
    names = ("suppress_tokens", "begin_suppress_tokens")
    tokens = [getattr(rule, name) for rule in rules for name in names if hasattr(rule, name)]
    tokens += [rule.eos_token_id for rule in rules if isinstance(rule, _NOT_YET_THE_END)]
    found = torch.cat([torch.empty(0, dtype=torch.long), *(part.flatten().long() for part in tokens)])
    return found[(found >= 0) & (found < first_exact)]


__all__ = ["STEPS_BEFORE_ROUNDING", "GreedyLogits", "Progress", "progress_of", "reads_largest_only"]
