"""Logits processors that forbid tokens by writing to these alone.

Transformers' own look for every token of the vocabulary among the forbidden ones, at every step, by sorting: a large
part of a step with int8 weights (`benchmarks/int8_backends.py`).
"""

import copy

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import SuppressTokensAtBeginLogitsProcessor, SuppressTokensLogitsProcessor


class _KnownTokens:
    """Beside a processor: the forbidden tokens that the vocabulary has, looked for once, not at every step."""

    known: Tensor | None = None

    def forbid(self, scores: Tensor, tokens: Tensor) -> Tensor:
        """A copy of `scores` `[rows, vocabulary]` with minus infinity at `tokens` `[n]`; unknown ones are ignored."""
        if self.known is None or self.known.device != scores.device:
            tokens = tokens.to(scores.device, torch.long)  # none at all are a tensor of floats
            self.known = tokens[(tokens >= 0) & (tokens < scores.shape[-1])]
        return scores.index_fill(-1, self.known, -torch.inf)


class SuppressTokens(_KnownTokens, SuppressTokensLogitsProcessor):
    """As the Transformers class, with the same scores."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores` `[rows, vocabulary]` with minus infinity at the forbidden tokens."""
        return self.forbid(scores, self.suppress_tokens)


class SuppressTokensAtBegin(_KnownTokens, SuppressTokensAtBeginLogitsProcessor):
    """As the Transformers class, with the same scores; after the beginning it does nothing."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores` `[rows, vocabulary]`, at the first token with minus infinity at the forbidden ones."""
        is_begin = input_ids.shape[-1] == self.begin_index
        return self.forbid(scores, self.begin_suppress_tokens) if is_begin else scores


_QUICKER = {
    SuppressTokensLogitsProcessor: SuppressTokens,
    SuppressTokensAtBeginLogitsProcessor: SuppressTokensAtBegin,
}


def with_quicker_suppression(processors: LogitsProcessorList) -> LogitsProcessorList:
    """`processors` with those of Transformers that have a quicker one replaced; the given list is left as it is."""
    replaced = LogitsProcessorList()
    for processor in processors:
        quicker = _QUICKER.get(type(processor))
        if quicker is not None:
            processor = copy.copy(processor)
            processor.__class__ = quicker
        replaced.append(processor)
    return replaced


__all__ = ["SuppressTokens", "SuppressTokensAtBegin", "with_quicker_suppression"]
