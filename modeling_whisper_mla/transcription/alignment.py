"""When each token was spoken: dynamic time warping over the cross-attention of the alignment heads.

The method of `whisper_mla.token_times`, on the finished tokens of one window, so that neither beams nor other audio of
a batch matter, and in float32, whatever the model's precision.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from whisper_mla.token_times import AlignmentHeads, alignment_matrix, warped_times

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


def _cross_attention(model: PreTrainedModel, encoded: Tensor, tokens: list[int]) -> Tensor:
    """Weights of the alignment heads for `tokens`, `[heads, tokens, frames]`."""
    heads = AlignmentHeads(tuple(pair) for pair in model.generation_config.alignment_heads)  # type: ignore[attr-defined]
    arguments = {
        "encoder_outputs": BaseModelOutput(last_hidden_state=encoded),
        "decoder_input_ids": torch.tensor([tokens], device=encoded.device),
        "use_cache": False,
    }
    if getattr(model.config, "cross_cache", None) == "latent":
        return heads.rows([model(**arguments, output_attentions=heads).cross_attentions], [0])
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the others do not give the weights
    try:
        weights = model(**arguments, output_attentions=True).cross_attentions
    finally:
        model.set_attn_implementation(before)
    return torch.stack([weights[layer][0, head] for layer, head in heads])
