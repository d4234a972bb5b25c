"""When each token was spoken: dynamic time warping over the cross-attention of the alignment heads.

Whisper's method (https://github.com/openai/whisper, timing.py), with Transformers' own warping and median filter. It
runs on the finished tokens of one window, so that neither beams nor other audio of a batch matter, and in float32,
whatever the model's precision.
"""

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter

from .timestamp_tokens import SECONDS


def token_end_times(
    model: PreTrainedModel, encoded: Tensor, prompt: list[int], tokens: list[int], seconds: float
) -> list[float]:
    """The time at which each generated token ends.

    Args:
        model: with `alignment_heads` in its generation config.
        encoded: encoder output of the window, `[1, frames, width]`.
        prompt: the tokens that the window was decoded from.
        tokens: generated, the end token included if there is one.
        seconds: of audio in the window.

    Returns:
        list[float]: one time for each of `tokens`, in seconds from the beginning of the window, never falling and
        from 0 to `seconds`. As in Transformers the last one, commonly the end token, has the time of the one before.
    """
    if len(tokens) < 2:
        return [0.0] * len(tokens)
    attention = _cross_attention(model, encoded, [*prompt, *tokens[:-1]])
    frames = max(1, min(round(seconds / SECONDS), attention.shape[-1]))
    matrix = alignment_matrix(attention[:, len(prompt) :, :frames], model.config.median_filter_width)
    times = [min(max(time, 0.0), seconds) for time in warped_times(matrix)]
    return [*times, times[-1]]


def alignment_matrix(attention: Tensor, filter_width: int) -> Tensor:
    """Normalise each head over the tokens, smooth over the frames, and average the heads.

    Args:
        attention: `[heads, tokens, frames]`.
        filter_width: frames of the median filter, odd.

    Returns:
        Tensor: float32 `[tokens, frames]`, finite: a frame to which all tokens attend alike tells nothing, and is 0.
    """
    attention = attention.float()
    deviation, mean = torch.std_mean(attention, dim=-2, keepdim=True, unbiased=False)
    normalised = torch.nan_to_num((attention - mean) / deviation, nan=0.0, posinf=0.0, neginf=0.0)
    return _median_filter(normalised[None], filter_width)[0].mean(dim=0)


def warped_times(matrix: Tensor) -> list[float]:
    """The time at which the cheapest path enters each row of `matrix` `[tokens, frames]`, in seconds."""
    rows, frames = _dynamic_time_warping(-matrix.cpu().double().numpy())
    enters = np.pad(np.diff(rows), (1, 0), constant_values=1).astype(bool)
    return (frames[enters] * SECONDS).tolist()


def _cross_attention(model: PreTrainedModel, encoded: Tensor, tokens: list[int]) -> Tensor:
    """Weights of the alignment heads for `tokens`, `[heads, tokens, frames]`."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the others do not give the weights
    try:
        weights = model(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
            decoder_input_ids=torch.tensor([tokens], device=encoded.device),
            output_attentions=True,
            use_cache=False,
        ).cross_attentions
    finally:
        model.set_attn_implementation(before)
    heads = model.generation_config.alignment_heads  # type: ignore[attr-defined]  # Whisper's own field
    return torch.stack([weights[layer][0, head] for layer, head in heads])
