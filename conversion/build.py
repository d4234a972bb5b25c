"""Build the converted model."""

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, WhisperConfig, WhisperForConditionalGeneration

from whisper_mla.configuration.configuration_whisper_mla import WhisperMLAConfig
from whisper_mla.modeling_whisper_mla import WhisperMLAForConditionalGeneration

from .methods.apply_factors import replacement_weights
from .methods.factorise import Factorised
from .source.latents import Latent

_Model = TypeVar("_Model", bound=PreTrainedModel)


def build(
    stock: WhisperForConditionalGeneration,
    copy_weights: bool,
    config: WhisperMLAConfig,
    found: list[Factorised],
    model_class: type[WhisperMLAForConditionalGeneration],
) -> WhisperMLAForConditionalGeneration:
    """The converted model, from the stock weights and what replaces some of them.

    Args:
        stock: the model converted.
        copy_weights: whether it goes on living, so that no memory may be shared with it.
        config: of the result; its dtype and attention are set to those of `stock`.
        found: the factors of all latents that are not exact.
        model_class: to build.

    Returns:
        WhisperMLAForConditionalGeneration: in evaluation mode, in the dtype and on the device of `stock`.
    """
    config.dtype = stock.dtype
    if stock.config._attn_implementation in ("eager", "sdpa", "flex_attention"):
        config._attn_implementation = stock.config._attn_implementation
    weights = dict(stock.state_dict())
    weights.update(replacement_weights(found, weights))
    if copy_weights:
        weights = {name: tensor.clone() for name, tensor in weights.items()}
    return assemble(model_class, config, weights, stock.generation_config)


def assemble(
    model_class: type[_Model], config: PreTrainedConfig, weights: Mapping[str, Tensor], generation_config: Any
) -> _Model:
    """A model of given weights, which are taken as they are rather than copied.

    Args:
        model_class, config: of the model.
        weights: all of them, by name.
        generation_config: copied.

    Returns:
        A model in evaluation mode.
    """
    with torch.device("meta"):
        model = model_class(config)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.generation_config = copy.deepcopy(generation_config)
    return model.eval()


def configuration_with_ranks(
    stock: WhisperConfig, latents: list[Latent], latent_fields: Mapping[str, Any]
) -> WhisperMLAConfig:
    """The configuration with the ranks that a budget chose; an equal rank in all layers is written as one number."""
    width = stock.d_model
    ranks = [latent.rank for latent in latents if latent.name.startswith("decoder.layers.")]
    cross = next(latent.rank for latent in latents if latent.name == "decoder.encoder_attn")
    kv_rank: int | list[int] | None = ranks if len(set(ranks)) > 1 else ranks[0]
    chosen = {"kv_rank": None if kv_rank == width else kv_rank, "cross_kv_rank": None if cross == width else cross}
    return WhisperMLAConfig.from_whisper_config(stock, **{**latent_fields, **chosen})


__all__ = ["assemble", "build", "configuration_with_ranks"]
