"""When each token was spoken: dynamic time warping over the cross-attention of the alignment heads.

Whisper's method (https://github.com/openai/whisper, timing.py), with Transformers' own warping and median filter.
Transformers keeps the attention weights of every layer and head at every step, those of the encoder too, and computes
them all with eager attention. Here attention stays as fast as it is, and gives the rows of the alignment heads only, in
float32.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter


class AlignmentHeads(tuple):
    """Pairs `(layer, head)` of the decoder's cross-attention whose weights tell when a token was spoken.

    As `output_attentions` of a forward of a model with latent cross-attention it asks for the weights of these heads
    only: `cross_attentions` are then those of the layers that have any, each float32 `[batch, heads, T, frames]`.
    """

    def of_layer(self, layer: int) -> list[int]:
        """Its heads in one layer, in order."""
        return [head for number, head in self if number == layer]

    def rows(self, steps: Sequence[Sequence[Tensor]], batch_indices: Sequence[int]) -> Tensor:
        """The weights of one sequence.

        Args:
            steps: `cross_attentions` of each forward.
            batch_indices: the row of the batch that belongs to the sequence, for each forward.

        Returns:
            Tensor: `[heads, tokens, frames]`, heads in the order of the pairs.
        """
        layers = sorted({layer for layer, _ in self})
        found = []
        for layer, head in self:
            place, row = layers.index(layer), self.of_layer(layer).index(head)
            found.append(torch.cat([step[place][i, row] for step, i in zip(steps, batch_indices, strict=True)]))
        return torch.stack(found)


def alignment_matrix(attention: Tensor, filter_width: int) -> Tensor:
    """Normalise each head over the tokens, smooth over the frames, and average the heads.

    Args:
        attention: `[heads, tokens, frames]`.
        filter_width: frames of the median filter, odd.

    Returns:
        Tensor: float32 `[tokens, frames]`, finite: a frame to which all tokens attend alike tells nothing, and is 0.
    """
    smooth = []
    for head in attention:  # one by one: the filter takes many times the memory of what it filters
        head = head.float()
        deviation, mean = torch.std_mean(head, dim=-2, keepdim=True, unbiased=False)
        normalised = torch.nan_to_num((head - mean) / deviation, nan=0.0, posinf=0.0, neginf=0.0)
        smooth.append(_median_filter(normalised[None, None], filter_width)[0, 0])
    return torch.stack(smooth).mean(dim=0)


def warped_times(matrix: Tensor, seconds_per_frame: float = 0.02) -> list[float]:
    """The time at which the cheapest path enters each row of `matrix` `[tokens, frames]`, in seconds."""
    rows, frames = _dynamic_time_warping(-matrix.cpu().double().numpy())
    enters = np.pad(np.diff(rows), (1, 0), constant_values=1).astype(bool)
    return (frames[enters] * seconds_per_frame).tolist()


class TokenTimesMixin:
    """Whisper's `generate(return_token_timestamps=True)` from the weights of the alignment heads alone."""

    def _set_return_outputs(
        self, return_dict_in_generate, return_token_timestamps, logprob_threshold, generation_config
    ):
        asked = {name: getattr(generation_config, name, None) for name in ("output_attentions", "output_scores")}
        wanted = super()._set_return_outputs(  # type: ignore[misc]
            return_dict_in_generate=return_dict_in_generate,
            return_token_timestamps=return_token_timestamps,
            logprob_threshold=logprob_threshold,
            generation_config=generation_config,
        )
        config: Any = self.config  # type: ignore[attr-defined]
        heads = getattr(generation_config, "alignment_heads", None)
        if not return_token_timestamps or not heads or asked["output_attentions"] or config.cross_cache != "latent":
            return wanted
        heads = AlignmentHeads(tuple(pair) for pair in heads)
        generation_config.alignment_heads = generation_config.output_attentions = heads
        # Scores of the whole vocabulary at every step, which times do not need.
        if not wanted and logprob_threshold is None and getattr(generation_config, "logprob_threshold", None) is None:
            generation_config.output_scores = asked["output_scores"]
        generation_config.attention_before = config._attn_implementation
        return wanted

    def _keep_attention(self, generation_config) -> None:
        """Undo Whisper's switch to eager attention, for ever and for all callers, where it is not needed."""
        before = getattr(generation_config, "attention_before", None)
        if before is not None:
            self.config._attn_implementation = before  # type: ignore[attr-defined]

    def _extract_token_timestamps(
        self, generate_outputs, alignment_heads, time_precision=0.02, num_frames=None, num_input_ids=None
    ) -> Tensor:
        """As in Transformers: the time of every token of `generate_outputs.sequences`, `[sequences, tokens]`."""
        if not isinstance(alignment_heads, AlignmentHeads):
            return super()._extract_token_timestamps(  # type: ignore[misc]
                generate_outputs, alignment_heads, time_precision, num_frames, num_input_ids
            )
        steps, sequences = generate_outputs.cross_attentions, generate_outputs.sequences
        beams = generate_outputs.get("beam_indices")
        if beams is not None:  # those of a sequence that has ended are -1; its times are not used
            steps = steps[: int((beams != -1).sum(-1).max())]
            beams = beams[:, : len(steps)].clamp(min=0).tolist()
        times = torch.zeros(len(sequences), num_input_ids + len(steps), device=sequences.device)
        filter_width = self.config.median_filter_width  # type: ignore[attr-defined]
        for number in range(len(sequences)):
            indices = beams[number] if beams is not None else [number] * len(steps)
            # Tokens that were given have no time; so has the last one, which no step reads: that of the one before.
            attention = alignment_heads.rows(steps, indices)[:, num_input_ids:]
            if attention.shape[1]:
                frames = _frames(num_frames, number, len(sequences))
                found = warped_times(alignment_matrix(attention[..., :frames], filter_width), time_precision)
                times[number, num_input_ids:] = torch.tensor([*found, found[-1]])
        for name in ("cross_attentions", "decoder_attentions", "encoder_attentions"):
            if generate_outputs.get(name) is not None:
                generate_outputs[name] = ()  # long form would keep those of every window
        return times


def _frames(num_frames, number: int, sequences: int) -> int | None:
    """Frames of the encoder that hold audio, of two mel frames each; None: all."""
    if num_frames is None or isinstance(num_frames, int):
        return None if num_frames is None else num_frames // 2
    copies = max(1, sequences // len(num_frames))
    return int(num_frames[min(number // copies, len(num_frames) - 1)]) // 2
