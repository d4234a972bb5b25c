"""Decoding in blocks of audios, so that packed latents are never all unpacked at once.

Each audio's latent is read by all layers, and unpacking it costs more than a layer. So not attention is done in blocks
but the whole decoder: the latents of some audios are unpacked, all layers run for the rows (hypotheses) that read them,
and the next block follows. A row's result depends on no other row. What the rows add to the cache is put together and
added at the end, as if all had run at once.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, EncoderDecoderCache

from .configuration.configuration_whisper_mla import WhisperMLAConfig
from .latent_attention import register_cross_attention
from .latent_cache import LatentCache, LatentLayer, LatentStaticLayer
from .transformers_releases import CACHE

# Bytes of latents that may be unpacked at a time. On accelerators a step costs about the same for few rows as for many,
# so blocks are larger there.
UNPACKED_BYTES = 32 * 2**20
UNPACKED_BYTES_ON_ACCELERATORS = 256 * 2**20
_OF_ROWS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids")


def audio_blocks(packed: Tensor, width: int, dtype: torch.dtype, arguments: dict[str, Any]) -> list[slice]:
    """The audios to decode together: one slice of all, or blocks of like size.

    Args:
        packed: `[audios, frames, bytes]`.
        width: of a latent when unpacked.
        dtype: of an unpacked latent.
        arguments: of the decoder's forward.

    Returns:
        list[slice]: one where the unpacked latents are few, while a compiler traces, or where the rows cannot be told
        apart: a cache of another kind than [`LatentCache`]'s own or offloaded, a mask that is no tensor.
    """
    audios, frames, _ = packed.shape
    limit = UNPACKED_BYTES if packed.device.type == "cpu" else UNPACKED_BYTES_ON_ACCELERATORS
    together = max(1, limit // (frames * width * dtype.itemsize))
    if together >= audios or torch.compiler.is_compiling() or not _can_be_split(audios, arguments):
        return [slice(0, audios)]
    blocks = -(-audios // together)
    size = -(-audios // blocks)
    return [slice(start, min(start + size, audios)) for start in range(0, audios, size)]


def _can_be_split(audios: int, arguments: dict[str, Any]) -> bool:
    given, cache = [arguments[name] for name in _OF_ROWS if arguments.get(name) is not None], arguments[CACHE]
    if not given or not all(isinstance(value, Tensor) for value in given) or _rows(arguments) % audios:
        return False
    if cache is None:
        return True
    if not isinstance(cache, EncoderDecoderCache) or cache.self_attention_cache.offloading:
        return False
    return all(type(layer) in (LatentLayer, LatentStaticLayer) for layer in cache.self_attention_cache.layers)


def _rows(arguments: dict[str, Any]) -> int:
    tokens = arguments.get("input_ids")
    return (arguments["inputs_embeds"] if tokens is None else tokens).shape[0]


def decode_blocks(
    forward: Callable[..., Any],
    unpack: Callable[[slice], Tensor],
    blocks: list[slice],
    arguments: dict[str, Any],
    config: WhisperMLAConfig,
) -> Any:
    """What `forward` returns for all rows, from one call for each block.

    Args:
        forward: of the stock decoder.
        unpack: the latents of a block, `[audios of it, frames, width]`.
        blocks: of [`audio_blocks`].
        arguments: of `forward`, with a cache or None, for all rows; the audio's latents are not among them.
        config: of the model.
    """
    cache, batch = arguments[CACHE], _rows(arguments)
    beams = batch // blocks[-1].stop
    parts, added = [], []
    for block in blocks:
        rows = slice(block.start * beams, block.stop * beams)
        own = {
            name: value[rows] if name in _OF_ROWS and value is not None and len(value) == batch else value
            for name, value in arguments.items()
        }
        layers = list(_rows_of(cache, rows))
        if cache is not None:
            own[CACHE] = _cache_with(layers, config)
        parts.append(forward(**own, encoder_hidden_states=unpack(block)))
        added.append([layer.added for layer in layers])
    if cache is not None:
        for number, new in enumerate(zip(*added, strict=True)):
            if new[0] is not None:
                latent = torch.cat(new)
                cache.self_attention_cache.update(latent, latent[..., :0], number)
                register_cross_attention(cache, number, batch, latent)
    return _joined(parts, cache)


class _AddedLatents:
    """Beside a cache layer: remembers what a forward adds."""

    added: Tensor | None = None


class _Rows(_AddedLatents, LatentLayer):
    """Some rows of a growing layer, without a copy of them that lasts."""

    def __init__(self, whole: LatentLayer, rows: slice):
        super().__init__()
        if whole.get_seq_length():
            self.lazy_initialization(whole.keys, whole.values)
            self.keys = whole.keys[rows]

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        self.added = key_states
        keys = torch.cat([self.keys, key_states], dim=-2) if self.is_initialized else key_states
        return keys, keys[..., :0]


class _StaticRows(_AddedLatents, LatentStaticLayer):
    """Some rows of a layer that was allocated at once: written in place, where they are written again in the end."""

    def __init__(self, whole: LatentStaticLayer, rows: slice):
        super().__init__(whole.max_cache_len)
        if whole.is_initialized:
            self.device, self.keys, self.is_initialized = whole.device, whole.keys[rows], True
            self.cumulative_length = whole.cumulative_length.clone()

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        self.added = key_states
        return super().update(key_states, value_states, *args, **kwargs)


def _rows_of(cache: EncoderDecoderCache | None, rows: slice) -> Iterator[Any]:
    for layer in [] if cache is None else cache.self_attention_cache.layers:
        yield _StaticRows(layer, rows) if isinstance(layer, LatentStaticLayer) else _Rows(layer, rows)


def _cache_with(layers: list[Any], config: WhisperMLAConfig) -> LatentCache:
    length = layers[0].max_cache_len if isinstance(layers[0], LatentStaticLayer) else None
    cache = LatentCache(config, length)
    cache.self_attention_cache.layers = layers
    return cache


def _joined(parts: list[Any], cache: Cache | None) -> Any:
    """Outputs of blocks as one: tensors joined over the rows, in whatever they are kept in."""
    first = parts[0]
    if isinstance(first, Cache):
        return cache
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, dict):
        return type(first)(**{name: _joined([part[name] for part in parts], cache) for name in first})
    if isinstance(first, tuple | list):
        return type(first)(_joined(list(values), cache) for values in zip(*parts, strict=True))
    return first


__all__ = ["audio_blocks", "decode_blocks"]
