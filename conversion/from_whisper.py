"""Convert a stock Whisper into a Whisper-MLA model."""

import copy
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from whisper_mla.configuration.configuration_whisper_mla import WhisperMLAConfig
from whisper_mla.modeling_whisper_mla import WhisperMLAForConditionalGeneration

from .factorisation import Factors, joint_svd
from .source import load_whisper, read_config

# A method maps a weight `[m, d]` and a rank to its factors; a new one is a function and a line here.
METHODS: dict[str, Callable[[Tensor, int], Factors]] = {"joint_svd": joint_svd}


def from_whisper(
    source: str | os.PathLike | PreTrainedModel,
    *,
    kv_rank: int | list[int] | None = None,
    cross_kv_rank: int | list[int] | None = None,
    cross_kv_shared: bool = True,
    audio_kv_rank: int | list[int] | None = None,
    cross_cache: str = "latent",
    method: str = "joint_svd",
    model_class: type[WhisperMLAForConditionalGeneration] = WhisperMLAForConditionalGeneration,
    **kwargs,
) -> WhisperMLAForConditionalGeneration:
    """Convert a pretrained Whisper. Without a rank the conversion is exact: same outputs, same tokens.

    Args:
        source: a Hub id, a folder (single or sharded weights), or a `WhisperForConditionalGeneration`, which is not
            modified and shares no memory with the result.
        kv_rank: values cached per text position in decoder self-attention, an integer or one per layer.
        cross_kv_rank: values kept per audio frame for cross-attention; None: the encoder output itself.
        cross_kv_shared: with `cross_kv_rank`: one latent for all layers, or one per layer.
        audio_kv_rank: rank of encoder self-attention; None: stock.
        cross_cache: "latent", or "key_value" for stock cross-attention.
        method: how low-rank projections are found; see `METHODS`. Not used where everything is exact.
        model_class: the class to build, `WhisperMLAForConditionalGeneration` or a subclass.
        kwargs: for `from_pretrained` of the source (`dtype`, `revision`, `device_map`, …). The dtype defaults to the
            checkpoint's.

    Returns:
        WhisperMLAForConditionalGeneration: in evaluation mode, with the dtype, device and generation config of the
        source. Factors are computed in float64.

    Raises:
        ConversionError: the source cannot be converted (see `load_whisper`).
        ValueError: an unknown method, or a rank out of range or of wrong length; raised before weights are loaded.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: expected one of {', '.join(map(repr, METHODS))}.")
    latent_fields: dict[str, Any] = {
        "kv_rank": kv_rank,
        "cross_kv_rank": cross_kv_rank,
        "cross_kv_shared": cross_kv_shared,
        "audio_kv_rank": audio_kv_rank,
        "cross_cache": cross_cache,
    }
    WhisperMLAConfig.from_whisper_config(read_config(source, **kwargs), **latent_fields)  # refuse before loading
    stock = load_whisper(source, **kwargs)
    config = WhisperMLAConfig.from_whisper_config(stock.config, **latent_fields)
    config.dtype = stock.dtype
    if stock.config._attn_implementation in ("eager", "sdpa", "flex_attention"):
        config._attn_implementation = stock.config._attn_implementation
    weights = dict(stock.state_dict())
    if stock is source:
        weights = {name: tensor.clone() for name, tensor in weights.items()}
    weights = convert_weights(weights, config, METHODS[method])

    with torch.device("meta"):
        model = model_class(config)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.generation_config = copy.deepcopy(stock.generation_config)
    return model.eval()


def convert_weights(
    weights: dict[str, Tensor], config: WhisperMLAConfig, factorise: Callable[[Tensor, int], Factors]
) -> dict[str, Tensor]:
    """The state dict of a converted model.

    Args:
        weights: state dict of the stock `WhisperForConditionalGeneration`. It is not modified.
        config: what to convert to.
        factorise: a method of `METHODS`.

    Returns:
        dict[str, Tensor]: stock tensors where the latent is exact; `kv_down_proj`, `k_proj`, `v_proj` in their place,
        in the dtype of the stock weights, where a rank is smaller than `d_model`.
    """
    weights = dict(weights)
    width = config.d_model
    decoder, encoder = "model.decoder.layers.{}.", "model.encoder.layers.{}."
    # Every job: the attentions that share one latent, where their down projection goes, and its rank.
    jobs: list[tuple[list[str], str, int]] = []

    def one_latent_each(attention: str, ranks: list[int]):
        for layer, rank in enumerate(ranks):
            name = attention.format(layer)
            jobs.append(([name], name + ".kv_down_proj.weight", rank))

    one_latent_each(encoder + "self_attn", config.audio_kv_ranks)
    one_latent_each(decoder + "self_attn", config.kv_ranks)
    cross = decoder + "encoder_attn"
    if config.cross_kv_shared:
        names = [cross.format(layer) for layer in range(config.decoder_layers)]
        jobs.append((names, "model.decoder.cross_kv_down_proj.weight", config.cross_kv_ranks[0]))
    else:
        one_latent_each(cross, config.cross_kv_ranks)

    jobs = [job for job in jobs if job[2] < width]
    for names, down_name, rank in tqdm(jobs, desc="Factorising", unit="latent", disable=not jobs):
        projections = [f"{name}.{kind}.weight" for name in names for kind in ("k_proj", "v_proj")]
        originals = [weights[projection] for projection in projections]
        factors = factorise(torch.cat(originals), rank)
        weights[down_name] = factors.down.to(originals[0].dtype)
        for projection, up in zip(projections, factors.up.split(width), strict=True):
            weights[projection] = up.to(originals[0].dtype).contiguous()
    return weights


__all__ = ["METHODS", "convert_weights", "from_whisper"]
