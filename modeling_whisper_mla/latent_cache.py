"""The cache of latents: one tensor per decoder layer, no values."""

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache, StaticCache, StaticLayer

from .configuration.configuration_whisper_mla import WhisperMLAConfig


class _NoValues:
    """A cache layer whose values are zero bytes wide: the latent in `keys` serves as key and value.

    Stock cache methods assign and slice `values` beside `keys`; they keep working, on nothing.
    """

    @property
    def values(self) -> Tensor | None:
        return None if self.keys is None else self.keys[..., :0]

    @values.setter
    def values(self, _):
        pass

    def __repr__(self):
        shape = "empty" if self.keys is None else f"{list(self.keys.shape)} {str(self.keys.dtype).split('.')[-1]}"
        return f"{type(self).__name__}({shape})"


class LatentLayer(_NoValues, DynamicLayer):
    """Latents of one decoder layer, `[batch, 1, positions, rank]`, growing with the text."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append `key_states` (`[batch, 1, T, rank]`) and return all positions; nothing is done about no values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = torch.cat([self.keys, key_states], dim=-2)
        return self.keys, self.keys[..., :0]


class LatentStaticLayer(_NoValues, StaticLayer):
    """Latents of one decoder layer, `[batch, 1, max_cache_len, rank]`, allocated once (for `torch.compile`)."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Write `key_states` (`[batch, 1, T, rank]`) at the next T positions and return all positions.

        As the stock layer, but nothing is written to the values: they are a view of the keys, and a compiler would have
        to assume that such a write changes the keys.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = key_states.shape[-2]
        positions = torch.arange(length, device=self.device) + self.cumulative_length
        self.cumulative_length.add_(length)
        self.keys.index_copy_(2, positions, key_states)
        return self.keys, self.values


class LatentCache(EncoderDecoderCache):
    """The decode cache of a Whisper-MLA model. `generate` makes one by itself.

    Self-attention layers hold one latent per position. With `cross_cache="latent"` cross-attention stores nothing here:
    it reads the encoder output, or its projection, which generation holds once per audio. With
    `cross_cache="key_value"` it holds keys and values per layer, as stock Whisper.

    Everything that stock caches do works: reorder, crop, repeat, select, reset, offload, static allocation.

    Args:
        config: of the model that will use the cache.
        max_cache_len: allocate this many text positions at once (a static cache) instead of growing.
        max_cross_cache_len: the same for keys and values of the audio, with `cross_cache="key_value"`; defaults to
            `config.max_source_positions`.
        offloading: keep all layers but the active one on the CPU (needs an accelerator).
    """

    def __init__(
        self,
        config: WhisperMLAConfig,
        max_cache_len: int | None = None,
        max_cross_cache_len: int | None = None,
        offloading: bool = False,
    ):
        text_config = config.get_text_config(decoder=True)
        # The containers stay stock: Transformers tests for their types when it crops and when it compiles.
        if max_cache_len is None:
            self_attention = DynamicCache(offloading=offloading)
            self_attention.layers = [LatentLayer() for _ in range(config.decoder_layers)]
            self_attention.layer_class_to_replicate = None
        else:
            self_attention = StaticCache(text_config, max_cache_len=max_cache_len, offloading=offloading)
            self_attention.layers = [LatentStaticLayer(max_cache_len) for _ in range(config.decoder_layers)]
        if config.cross_cache == "key_value" and max_cache_len is not None:
            frames = max_cross_cache_len or config.max_source_positions
            cross_attention: Cache = StaticCache(text_config, max_cache_len=frames, offloading=offloading)
        else:
            cross_attention = DynamicCache(offloading=offloading and config.cross_cache == "key_value")
        super().__init__(self_attention, cross_attention)

    @classmethod
    def like(cls, cache: Cache, config: WhisperMLAConfig) -> "LatentCache":
        """A latent cache of the kind of an empty stock cache.

        Args:
            cache: dynamic or static, offloaded or not, for self-attention alone or with cross-attention.
            config: of the model that will fill the new one.
        """
        cross = None
        if isinstance(cache, EncoderDecoderCache):
            cache, cross = cache.self_attention_cache, cache.cross_attention_cache
        if not isinstance(cache, StaticCache):
            return cls(config, offloading=cache.offloading)
        frames = cross.get_max_length() if isinstance(cross, StaticCache) else None
        return cls(config, cache.get_max_length(), frames, offloading=cache.offloading)

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors, without the encoder output that cross-attention reads."""
        layers = [*self.self_attention_cache.layers, *self.cross_attention_cache.layers]
        tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values) if tensor is not None]
        return sum(tensor.nbytes for tensor in tensors)

    def __repr__(self) -> str:
        cross_bytes = sum(
            tensor.nbytes
            for layer in self.cross_attention_cache.layers
            for tensor in (layer.keys, layer.values)
            if tensor is not None
        )
        cross = f"{cross_bytes / 1e6:.2f} MB of keys and values" if cross_bytes else "nothing stored"
        layers = self.self_attention_cache.layers
        return (
            f"LatentCache({self.nbytes / 1e6:.2f} MB; self-attention: {len(layers)} layers, first {layers[0]}; "
            f"cross-attention: {cross})"
        )
