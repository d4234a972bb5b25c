"""Where each layer's latents lie in vLLM's cache. Arithmetic only; vLLM is not needed.

The latents of all decoder layers' self-attention lie side by side in one row per text position, those of
cross-attention in one row per audio frame. vLLM gives out blocks of one size to both, so the wider of two rows must be
a whole multiple of the narrower: a block then holds that many times as many narrow rows.
"""

from dataclasses import dataclass
from itertools import accumulate

from ..configuration.configuration_whisper_mla import WhisperMLAConfig


@dataclass(frozen=True)
class CacheLayout:
    """Rows of the cache, in values.

    Attributes:
        text_width: of a row per text position, all layers and padding together.
        audio_width: of a row per audio frame.
        text_starts: where each layer's latent begins in a text row.
        audio_starts: where the latent that each layer reads begins in an audio row; all 0 where they share one.
    """

    text_width: int
    audio_width: int
    text_starts: tuple[int, ...]
    audio_starts: tuple[int, ...]


def cache_layout(config: WhisperMLAConfig) -> CacheLayout:
    """The rows of a model's latents, padded as little as whole multiples allow."""
    ranks = config.cross_kv_ranks
    shared = config.cross_kv_shared or config.cross_latent_is_encoder_output
    text_width, audio_width = matched_widths(
        sum(config.kv_ranks), config.cross_latent_width, config.max_target_positions, config.max_source_positions
    )
    return CacheLayout(
        text_width,
        audio_width,
        _starts(config.kv_ranks),
        (0,) * len(ranks) if shared else _starts(ranks),
    )


def matched_widths(text: int, audio: int, positions: int, frames: int) -> tuple[int, int]:
    """Least widths that hold both rows, one a whole multiple of the other.

    Args:
        text: values needed per text position.
        audio: values needed per audio frame.
        positions: text positions of a full request, which weigh `text` against `audio`.
        frames: audio frames of a request.

    Returns:
        tuple[int, int]: the widths for text and audio with the least values per full request.
    """
    large, small = max(text, audio), min(text, audio)
    candidates = []
    for ratio in range(1, large // small + 2):
        unit = max(small, -(-large // ratio))
        candidates.append((ratio * unit, unit) if text >= audio else (unit, ratio * unit))
    return min(candidates, key=lambda widths: widths[0] * positions + widths[1] * frames)


def _starts(ranks: list[int]) -> tuple[int, ...]:
    return tuple(accumulate(ranks[:-1], initial=0))
