"""How large the decode cache is: pure arithmetic on a configuration, nothing is allocated."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import WhisperConfig

from .configuration_whisper_mla import WhisperMLAConfig


@dataclass(frozen=True)
class CacheSize:
    """Bytes of a decode cache by part.

    Attributes:
        self_attention: decoder self-attention, all layers, all beams.
        cross_attention: what cross-attention reads: the shared latent (or encoder output), once per audio, or per-layer
            keys and values, once per beam.
    """

    self_attention: int
    cross_attention: int

    @property
    def total(self) -> int:
        return self.self_attention + self.cross_attention


def cache_size(
    config: WhisperConfig, batch_size: int = 1, positions: int = 448, num_beams: int = 1, bytes_per_value: int = 2
) -> CacheSize:
    """Bytes that decoding holds for `batch_size` audios.

    Args:
        config: of a stock Whisper or of a Whisper-MLA model.
        batch_size: audios decoded at once.
        positions: text positions in the cache, at most `max_target_positions` (448).
        num_beams: hypotheses per audio (beams or returned sequences).
        bytes_per_value: 2 for float16 and bfloat16, 4 for float32. Rounded latents take theirs whatever it is.

    Returns:
        CacheSize: for a stock model keys and values of both attentions, once per beam; for a latent one the latents.

    Raises:
        ValueError: an argument below 1.
    """
    arguments = {
        "batch_size": batch_size,
        "positions": positions,
        "num_beams": num_beams,
        "bytes_per_value": bytes_per_value,
    }
    for name, value in arguments.items():
        if value < 1:
            raise ValueError(f"{name}={value}: expected at least 1.")
    frames, width, layers = config.max_source_positions, config.d_model, config.decoder_layers
    rows = batch_size * num_beams
    key_value_cross = rows * frames * 2 * width * layers
    # Not by class: code loaded with trust_remote_code has a class of its own.
    if config.model_type == WhisperMLAConfig.model_type:
        group, text_bits, audio_bits = config.latent_group_size, config.text_latent_bits, config.audio_latent_bits
        text_bytes = sum(
            latent_bytes(rank, bits, group, bytes_per_value)
            for rank, bits in zip(config.kv_ranks, text_bits, strict=True)
        )
        audio_bytes = latent_bytes(config.cross_latent_width, audio_bits, group, bytes_per_value)
        latent_cross = batch_size * frames * audio_bytes
        cross_bytes = latent_cross if config.cross_cache == "latent" else key_value_cross * bytes_per_value
        return CacheSize(rows * positions * text_bytes, cross_bytes)
    self_values = rows * positions * 2 * width * layers
    return CacheSize(self_values * bytes_per_value, key_value_cross * bytes_per_value)


def latent_bytes(width: int, bits: int | Sequence[int] | None, group_size: int, bytes_per_value: int) -> int:
    """Bytes of the latent of one position.

    Args:
        width: its values.
        bits: of a rounded value, or of those of each group (mixed), or None where it is kept in the model's dtype.
        group_size: rounded values that share a scale and a minimum of 2 bytes each; mixed ones share one scale of 2
            bytes, all groups.
        bytes_per_value: of the model's dtype.
    """
    if bits is None:
        return width * bytes_per_value
    if not isinstance(bits, int):
        return sum(bits) * group_size // 8 + 2
    return width * bits // 8 + 4 * width // group_size
