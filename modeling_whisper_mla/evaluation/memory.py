"""How much memory decoding takes, computed from a configuration: weights, cache, passing work. Nothing is allocated."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.configuration import WhisperMLAConfig, cache_size
from whisper_mla.configuration.configuration_whisper_mla import LATENT_BITS

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass(frozen=True)
class Setting:
    """How a model is asked.

    Attributes:
        batch_size: audios decoded at once.
        positions: text positions, the prompt included.
        num_beams: hypotheses per audio.
        bytes_per_value: of weights, activations and latents that are not rounded: 2 or 4.
    """

    batch_size: int = 1
    positions: int = 448
    num_beams: int = 1
    bytes_per_value: int = 2


@dataclass(frozen=True)
class Memory:
    """Bytes of one setting, computed.

    Attributes:
        weights: of all parameters.
        cache: of the decode cache at its longest.
        work: estimated for what passes: the widest encoder layer, the spectrogram, scores of all tokens.
    """

    weights: int
    cache: int
    work: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.work


def weight_bytes(config: WhisperConfig, bytes_per_value: int) -> int:
    """Bytes of the parameters of the stock or Whisper-MLA model that `config` describes, shared ones once."""
    kind: Any = WhisperMLAForConditionalGeneration if _is_latent(config) else WhisperForConditionalGeneration
    with torch.device("meta"):
        model = kind(config)
    model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters()) * bytes_per_value


def work_bytes(config: WhisperConfig, setting: Setting) -> int:
    """Bytes that pass while a batch is encoded and decoded, estimated from the configuration.

    Counted are the widest layer of the encoder with its input and residuals, the mel spectrogram, and the scores of all
    tokens with their float32 copies in the processors of scores. The audio's encoder output is in the cache of a model
    that keeps it there.
    """
    frames, value = config.max_source_positions, setting.bytes_per_value
    encoder = frames * (8 * config.d_model + 2 * config.encoder_ffn_dim) * value
    spectrogram = 2 * frames * config.num_mel_bins * (4 + value)
    scores = setting.num_beams * config.vocab_size * (value + 4 * 4)
    return setting.batch_size * (encoder + spectrogram + scores)


def memory_of(config: WhisperConfig, setting: Setting) -> Memory:
    """All of it for one setting.

    Raises:
        ValueError: a number below 1.
    """
    cache = cache_size(config, setting.batch_size, setting.positions, setting.num_beams, setting.bytes_per_value)
    return Memory(weight_bytes(config, setting.bytes_per_value), cache.total, work_bytes(config, setting))


def streams_that_fit(config: WhisperConfig, setting: Setting, limit: int) -> int:
    """How many audios can be decoded at once in `limit` bytes; `batch_size` of the setting is not read.

    Everything but the weights grows with the batch, so it is one division.
    """
    one = memory_of(config, Setting(1, setting.positions, setting.num_beams, setting.bytes_per_value))
    return max(0, (limit - one.weights) // (one.cache + one.work))


def stock_and_latent(config: WhisperConfig, positions: int | None = None) -> dict[str, WhisperConfig]:
    """The configurations to compare: the stock model, and the converted one.

    Args:
        config: of either; a stock one is compared with its exact conversion, also with rounded latents.
        positions: text positions that both must have, extended where the checkpoint has fewer.
    """
    if positions and positions > config.max_target_positions:
        config = type(config).from_dict({**config.to_dict(), "max_target_positions": positions})
    if _is_latent(config):
        return {"stock": config.to_whisper_config(), "this model": config}  # type: ignore[attr-defined]
    found = {"stock": config, "exact": WhisperMLAConfig.from_whisper_config(config)}
    if config.d_model % 32 == 0:
        for dtype in LATENT_BITS:
            found[f"{dtype} latents"] = WhisperMLAConfig.from_whisper_config(config, latent_dtype=dtype)
    return found


def parse_bytes(text: str) -> int:
    """Bytes of "24GB" (10⁹) or "24GiB" (2³⁰).

    Raises:
        ValueError: not a number with a unit.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    if not found or found[2].upper() not in _UNITS or not float(found[1]):
        raise ValueError(f"{text!r}: expected an amount of memory, such as 24GB or 22.5GiB.")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def _is_latent(config: WhisperConfig) -> bool:
    return config.model_type == WhisperMLAConfig.model_type
