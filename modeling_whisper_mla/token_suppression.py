"""Logits processors that forbid tokens by writing to these alone.

Transformers' own look for every token of the vocabulary among the forbidden ones, at every step, by sorting, and those
for timestamps go through all logits several times: a large part of a step with int8 weights
(`benchmarks/int8_backends.py`, `benchmarks/step_parts.py`).
"""

import copy

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import (
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    WhisperTimeStampLogitsProcessor,
)

# What is nearer to each other, in relation to its size, is compared as Transformers computes it.
_NEAR = 1e-4


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


class TimestampRules(WhisperTimeStampLogitsProcessor):
    """As the Transformers class, with the same scores; on a CPU with fewer passes over them."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores` `[rows, vocabulary]` with minus infinity where the tokens so far, `[rows, length]`, forbid it."""
        if scores.device.type != "cpu":
            return super().__call__(input_ids, scores)
        scores = scores.clone()
        text, times = scores[:, : self.timestamp_begin], scores[:, self.timestamp_begin :]
        scores[:, self.no_timestamps_token_id] = -torch.inf
        for row, tokens in enumerate(input_ids[:, self.begin_index :].tolist()):
            is_time = [token >= self.timestamp_begin for token in tokens]
            opens = is_time[-1:] == [True] and is_time[-2:-1] == [False]  # a time that wants its pair, or the end
            if opens:
                text[row, : self.eos_token_id] = -torch.inf
            elif is_time[-1:] == [True]:
                times[row] = -torch.inf
            if any(is_time):
                last = max(place for place, found in enumerate(is_time) if found)
                times[row, : tokens[last] - self.timestamp_begin + (not opens)] = -torch.inf
        if input_ids.shape[1] == self.begin_index:
            text[:] = -torch.inf
            if self.max_initial_timestamp_index is not None:
                times[:, self.max_initial_timestamp_index + 1 :] = -torch.inf
        if self._detect_timestamp_from_logprob:
            text[self._times_are_likelier(scores)] = -torch.inf
        return scores

    def _times_are_likelier(self, scores: Tensor) -> Tensor:
        """Of each row, whether all timestamps together are likelier than the likeliest text token: boolean `[rows]`."""
        times = scores[:, self.timestamp_begin :].float().logsumexp(dim=-1)
        text = scores[:, : self.timestamp_begin].float().amax(dim=-1)
        if not ((times - text).abs() > _NEAR * (1 + text.abs())).all():
            logprobs = scores.float().log_softmax(dim=-1)
            times = logprobs[:, self.timestamp_begin :].logsumexp(dim=-1)
            text = logprobs[:, : self.timestamp_begin].amax(dim=-1)
        return times > text


_QUICKER = {
    SuppressTokensLogitsProcessor: SuppressTokens,
    SuppressTokensAtBeginLogitsProcessor: SuppressTokensAtBegin,
    WhisperTimeStampLogitsProcessor: TimestampRules,
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


__all__ = ["SuppressTokens", "SuppressTokensAtBegin", "TimestampRules", "with_quicker_suppression"]
