"""Quantised latents chosen at run time: `generate(cache_implementation="quantized", cache_config={"nbits": 4})`.

The words are those of Transformers, which has such a cache for decoders alone. What decodes is the model as if it had
been loaded with `latent_dtype`: another arrangement of the same layers, so that every way of decoding works as there.
"""

import copy
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from .configuration.configuration_whisper_mla import LATENT_BITS
from .latent_attention import WhisperMLAAttention

QUANTIZED = "quantized"
_DTYPES = {bits: dtype for dtype, bits in LATENT_BITS.items()}
# Keys of `cache_config` and what they are where left out; None: what fits, see `WhisperMLAConfig.fitting_group_size`.
_DEFAULTS = {"nbits": 4, "q_group_size": None}
_EXAMPLE = {"nbits": 4, "q_group_size": 32}


def rounded_at_run_time(model: PreTrainedModel, arguments: dict[str, Any]) -> tuple[PreTrainedModel, dict[str, Any]]:
    """What `generate` is to run where a quantised cache is asked for, by arguments or by the generation config.

    Args:
        model: a Whisper-MLA model. It is not changed.
        arguments: keyword arguments of `generate`. They are not changed.

    Returns:
        tuple: the model that decodes and the arguments to hand to it; both as given where no such cache is asked for.

    Raises:
        ValueError: an unknown key or value in `cache_config`, a model whose latents are rounded already or whose
            forwards were replaced, or a cache given beside it.
    """
    given = arguments.get("generation_config")
    config = model.generation_config if given is None else given
    kind = arguments.get("cache_implementation") or getattr(config, "cache_implementation", None)
    if kind != QUANTIZED:
        return model, arguments
    wanted = arguments.get("cache_config") or getattr(config, "cache_config", None) or {}
    if any(arguments.get(name) is not None for name in ("cache", "past_key_values")):
        raise ValueError(f"cache_implementation={QUANTIZED!r} and a cache: leave out one of them.")
    rounded = with_latent_dtype(model, **_read(wanted))
    arguments = {
        name: value for name, value in arguments.items() if name not in ("cache_implementation", "cache_config")
    }
    if given is not None:
        arguments["generation_config"] = copy.deepcopy(given)
    for config in (rounded.generation_config, arguments.get("generation_config")):
        if config is not None:
            config.cache_implementation = config.cache_config = None
    return rounded, arguments


def _read(cache_config: Any) -> dict[str, Any]:
    if not isinstance(cache_config, Mapping):
        raise ValueError(f"cache_config={cache_config!r}: expected a dictionary, such as {_EXAMPLE}.")
    unknown = sorted(set(cache_config) - set(_DEFAULTS))
    if unknown:
        raise ValueError(
            f"cache_config has {unknown[0]!r}: latents are quantised by this model itself, which knows "
            f"{', '.join(_DEFAULTS)}, as in {_EXAMPLE}."
        )
    values = {**_DEFAULTS, **cache_config}
    if values["nbits"] not in _DTYPES:
        raise ValueError(f"cache_config has nbits={values['nbits']!r}: expected one of {sorted(_DTYPES)}.")
    return {"latent_dtype": _DTYPES[values["nbits"]], "latent_group_size": values["q_group_size"]}


def with_latent_dtype(model: PreTrainedModel, latent_dtype: str, latent_group_size: int | None) -> PreTrainedModel:
    """The same layers as a model that rounds its latents; what is done to their weights is done to both.

    Args:
        model: a Whisper-MLA model with latents in its own dtype.
        latent_dtype: "int8" or "int4".
        latent_group_size: values that are rounded together; None: `WhisperMLAConfig.fitting_group_size`.

    Raises:
        ValueError: latents are rounded already, the group size does not fit, or forwards were replaced.
    """
    if any(model.config.latent_dtypes):
        raise ValueError(
            f"cache_implementation={QUANTIZED!r}: the latents of this model are rounded as it is "
            f"(latent_dtype={model.config.latent_dtype!r}). Leave it out."
        )
    config = copy.deepcopy(model.config)
    config.latent_dtype = latent_dtype if config.cross_cache == "latent" else [latent_dtype, None]
    config.latent_group_size = config.fitting_group_size if latent_group_size is None else latent_group_size
    config._check_latent_dtype()
    shared: dict[int, Any] = {id(model.config): config}
    for name, module in model.named_modules():
        if any(isinstance(part, WhisperMLAAttention) and part.is_decoder for part in module.modules()):
            if "forward" in module.__dict__:
                raise ValueError(
                    f"cache_implementation={QUANTIZED!r}: the forward of {name or 'the model'} was replaced "
                    f"(compiled, or by hooks). Load the model with latent_dtype={latent_dtype!r} instead."
                )
        else:
            shared[id(module)] = module
    shared |= {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    rounded = copy.deepcopy(model, shared)
    layers = (part for part in rounded.modules() if isinstance(part, WhisperMLAAttention))
    for attention in layers:
        if attention.is_decoder and attention.is_causal:
            attention.latent_bits = LATENT_BITS[latent_dtype]
    return rounded


__all__ = ["QUANTIZED", "rounded_at_run_time", "with_latent_dtype"]
