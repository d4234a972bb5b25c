"""Which latents a configuration asks for, and which attentions read each."""

from dataclasses import dataclass, replace

from whisper_mla.configuration.cache_size import latent_bytes
from whisper_mla.configuration.configuration_whisper_mla import WhisperMLAConfig

ENCODER_OUTPUT_NORM = "model.encoder.layer_norm"


@dataclass(frozen=True)
class Latent:
    """A latent to be found.

    Attributes:
        name: for people: "decoder.layers.0.self_attn", or "decoder.encoder_attn" for the one that all cross-attentions
            share.
        attentions: module names of all attentions that read it.
        down_proj: name of the down projection's weight in the converted model.
        norm: module name of the layer norm whose output is compressed.
        num_heads: of each attention.
        rank: what the configuration says; `d_model` means exact, unless the bits are mixed.
        positions: how many of it are cached per audio; 0 where nothing is (encoder).
        bits: of a cached value where `latent_dtype` rounds it, or of those of each group; None: the model's dtype.
        group_size: values that are rounded together.
    """

    name: str
    attentions: tuple[str, ...]
    down_proj: str
    norm: str
    num_heads: int
    rank: int
    positions: int
    bits: int | tuple[int, ...] | None = None
    group_size: int = 1

    def bytes_per_rank(self, bytes_per_value: int) -> float:
        """What one unit of rank costs in the cache of one audio; the share of scales and minima is fractional.

        Args:
            bytes_per_value: of the model's dtype.
        """
        group = latent_bytes(self.group_size, self.bits, self.group_size, bytes_per_value)
        return self.positions * group / self.group_size

    def is_exact(self, width: int) -> bool:
        """Whether nothing is to be found for it in a model of `width`."""
        return self.rank == width and not isinstance(self.bits, tuple)

    @property
    def in_encoder(self) -> bool:
        """Whether it belongs to encoder self-attention, and so changes what the encoder puts out."""
        return self.name.startswith("encoder.")

    @property
    def is_cross(self) -> bool:
        """Whether cross-attention reads it."""
        return self.norm == ENCODER_OUTPUT_NORM


def input_name(attention: str) -> str:
    """Where the statistics of an attention's keys and values are: all cross-attentions read the encoder output."""
    return ENCODER_OUTPUT_NORM if attention.endswith("encoder_attn") else attention


def latents_of(config: WhisperMLAConfig) -> list[Latent]:
    """All latents of a configuration in the order in which the model computes them, exact ones included.

    Args:
        config: what to convert to. With `cross_cache="key_value"` there is no cross-attention latent.
    """
    encoder = [
        _self_attention(f"encoder.layers.{layer}", config.encoder_attention_heads, rank, positions=0)
        for layer, rank in enumerate(config.audio_kv_ranks)
    ]
    heads = config.decoder_attention_heads
    decoder = [
        _self_attention(f"decoder.layers.{layer}", heads, rank, config.max_target_positions)
        for layer, rank in enumerate(config.kv_ranks)
    ]
    attentions = [f"model.decoder.layers.{layer}.encoder_attn" for layer in range(config.decoder_layers)]
    frames, ranks = config.max_source_positions, config.cross_kv_ranks
    if config.cross_cache == "key_value":
        cross = []
    elif config.cross_kv_shared:
        down_proj = "model.decoder.cross_kv_down_proj.weight"
        cross = [
            Latent("decoder.encoder_attn", tuple(attentions), down_proj, ENCODER_OUTPUT_NORM, heads, ranks[0], frames)
        ]
    else:
        cross = [
            Latent(
                name.removeprefix("model."),
                (name,),
                name + ".kv_down_proj.weight",
                ENCODER_OUTPUT_NORM,
                heads,
                rank,
                frames,
            )
            for name, rank in zip(attentions, ranks, strict=True)
        ]
    size = config.latent_group_size
    cross = [replace(latent, bits=config.audio_latent_bits, group_size=size) for latent in cross]
    decoder = [
        replace(latent, bits=bits, group_size=size)
        for latent, bits in zip(decoder, config.text_latent_bits, strict=True)
    ]
    return encoder + cross + decoder


def _self_attention(layer: str, num_heads: int, rank: int, positions: int) -> Latent:
    attention = f"model.{layer}.self_attn"
    return Latent(
        f"{layer}.self_attn",
        (attention,),
        attention + ".kv_down_proj.weight",
        f"model.{layer}.self_attn_layer_norm",
        num_heads,
        rank,
        positions,
    )
