"""Build the converted model."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from whisper_mla.configuration.configuration_whisper_mla import WhisperMLAConfig
from whisper_mla.modeling_whisper_mla import WhisperMLAForConditionalGeneration

from .methods.apply_factors import replacement_weights
from .methods.factorise import Factorised
from .source.latents import Latent


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
    with torch.device("meta"):
        model = model_class(config)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.generation_config = copy.deepcopy(stock.generation_config)
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


__all__ = ["build", "configuration_with_ranks"]
