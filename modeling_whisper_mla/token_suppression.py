"""Logits processors that forbid tokens by writing to these alone.

Transformers' own look for every token of the vocabulary among the forbidden ones, at every step, by sorting: a large
part of a step with int8 weights (`benchmarks/int8_backends.py`).
"""

import copy

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import SuppressTokensAtBeginLogitsProcessor, SuppressTokensLogitsProcessor


class SuppressTokens(SuppressTokensLogitsProcessor):
    """As the class above it, with the same scores."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores` `[rows, vocabulary]` with minus infinity at the forbidden tokens."""
        return forbid(scores, self.suppress_tokens)


class SuppressTokensAtBegin(SuppressTokensAtBeginLogitsProcessor):
    """As the class above it, with the same scores; after the beginning it does nothing."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores` `[rows, vocabulary]`, at the first token with minus infinity at the forbidden ones."""
        return forbid(scores, self.begin_suppress_tokens) if input_ids.shape[-1] == self.begin_index else scores


_QUICKER = {
    SuppressTokensLogitsProcessor: SuppressTokens,
    SuppressTokensAtBeginLogitsProcessor: SuppressTokensAtBegin,
}


def forbid(scores: Tensor, tokens: Tensor) -> Tensor:
    """A copy of `scores` `[rows, vocabulary]` with minus infinity at `tokens` `[n]`; unknown ones are ignored."""
    tokens = tokens.to(scores.device)
    known = tokens[(tokens >= 0) & (tokens < scores.shape[-1])]
    return scores.index_fill(-1, known, -torch.inf)


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


__all__ = ["SuppressTokens", "SuppressTokensAtBegin", "forbid", "with_quicker_suppression"]
