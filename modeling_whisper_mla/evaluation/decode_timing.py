"""How long decoding takes, from a given encoder output: by token, and step by step."""

import time
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput

Forbidden = tuple[list[int], list[int]]


def decode(
    model: PreTrainedModel, batch_size: int, num_beams: int, tokens: int, forbidden: Forbidden | None = None
) -> tuple[float, Tensor]:
    """One `generate` of a fixed number of tokens, on random encoder output.

    Args:
        model: stock or Whisper-MLA, on any device.
        batch_size: audios.
        num_beams: hypotheses per audio.
        tokens: new ones.
        forbidden: rule the end out with these tokens, at any place and at the beginning, as Whisper's own generate
            does it; None: by a least length.

    Returns:
        tuple: milliseconds per token, and the tokens `[batch_size, 1 + tokens]`.
    """
    rules: dict[str, Any] = {"min_new_tokens": tokens}
    if forbidden is not None:
        end = model.config.eos_token_id
        rules = {"suppress_tokens": [*forbidden[0], end], "begin_suppress_tokens": forbidden[1]}
    synchronise(model.device)
    start = time.perf_counter()
    output = _generate(model, batch_size, num_beams, tokens, rules)
    synchronise(model.device)
    return (time.perf_counter() - start) * 1000 / tokens, output


def step_times(
    model: PreTrainedModel, batch_size: int, num_beams: int, tokens: int, reads_logits: bool = False
) -> list[float]:
    """Milliseconds of every step but the first, in which stock Whisper projects the audio.

    Args:
        model, batch_size, num_beams, tokens: as of [`decode`].
        reads_logits: have a logits processor in the way, which changes nothing but might: what is quicker because only
            the largest logit is looked at is not done then.
    """
    clock, asks = _Clock(model.device), [_ReadsLogits()] if reads_logits else []
    _generate(model, batch_size, num_beams, tokens, {"suppress_tokens": [model.config.eos_token_id]}, asks, [clock])
    return [1000 * (after - before) for before, after in zip(clock.times, clock.times[1:], strict=False)]


class _Clock(StoppingCriteria):
    """Notes when each step has its token; stops nothing."""

    def __init__(self, device: torch.device):
        self.device, self.times = device, list[float]()

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs) -> Tensor:
        synchronise(self.device)
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class _ReadsLogits(LogitsProcessor):
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores


def _generate(
    model, batch_size: int, num_beams: int, tokens: int, rules: dict[str, Any], processors=(), criteria=()
) -> Tensor:
    config = model.config
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(
        batch_size, config.max_source_positions, config.d_model, generator=generator, dtype=torch.float32
    )
    # Not Whisper's own generate, whose work around the loop is the same for all models.
    return GenerationMixin.generate(
        model,
        encoder_outputs=BaseModelOutput(last_hidden_state=states.to(model.device, model.dtype)),
        decoder_input_ids=torch.full((batch_size, 1), config.decoder_start_token_id, device=model.device),
        logits_processor=LogitsProcessorList(processors),
        stopping_criteria=StoppingCriteriaList(criteria),
        generation_config=GenerationConfig(
            max_new_tokens=tokens,
            **rules,
            num_beams=num_beams,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
            decoder_start_token_id=config.decoder_start_token_id,
            cache_implementation=model.generation_config.cache_implementation,
        ),
    )


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
