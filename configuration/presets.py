"""The dimensions of the published Whisper checkpoints, for estimates without a download."""

from transformers import WhisperConfig

# d_model, encoder layers, decoder layers, attention heads, mel bins
_SIZES = {
    "tiny": (384, 4, 4, 6, 80),
    "base": (512, 6, 6, 8, 80),
    "small": (768, 12, 12, 12, 80),
    "medium": (1024, 24, 24, 16, 80),
    "large-v3": (1280, 32, 32, 20, 128),
    "large-v3-turbo": (1280, 32, 4, 20, 128),
}
WHISPER_SIZES = tuple(_SIZES)


def whisper_config(size: str, **changes) -> WhisperConfig:
    """The configuration of a published stock checkpoint.

    Args:
        size: one of `WHISPER_SIZES`.
        changes: fields to set differently.

    Raises:
        ValueError: an unknown size.
    """
    if size not in _SIZES:
        raise ValueError(f"size={size!r}: expected one of {', '.join(WHISPER_SIZES)}.")
    width, encoder_layers, decoder_layers, heads, mel_bins = _SIZES[size]
    fields = {
        "d_model": width,
        "encoder_layers": encoder_layers,
        "decoder_layers": decoder_layers,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": 4 * width,
        "decoder_ffn_dim": 4 * width,
        "num_mel_bins": mel_bins,
        "vocab_size": 51866 if mel_bins == 128 else 51865,
    }
    return WhisperConfig(**{**fields, **changes})
