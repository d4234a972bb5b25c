"""Multiply the factors back: a stock Whisper with the outputs of a Whisper-MLA model."""

from torch import Tensor
from transformers import WhisperForConditionalGeneration
from transformers.utils import logging

from whisper_mla.latent_attention import is_plain_linear
from whisper_mla.modeling_whisper_mla import WhisperMLAForConditionalGeneration

from .build import assemble
from .errors import ConversionError

logger = logging.get_logger(__name__)


def to_whisper(model: WhisperMLAForConditionalGeneration) -> WhisperForConditionalGeneration:
    """The stock checkpoint that computes the same function, `W_K = W_UK W_D`, `W_V = W_UV W_D`, for any engine.

    It has the stock cache again. Products are taken in float64 and stored in the model's dtype. Where `latent_dtype`
    rounds latents, the function is that of the model without rounding, which is not in the weights; a warning says so.

    Args:
        model: not modified; the result shares no memory with it.

    Returns:
        WhisperForConditionalGeneration: in evaluation mode, with the model's dtype, device and generation config.

    Raises:
        ConversionError: the weights are quantised, or a projection of an attention is not a plain `nn.Linear` (an
            adapter, a quantised or offloaded module).
    """
    if getattr(model, "hf_quantizer", None) is not None:
        raise ConversionError("model: its weights are quantised. Load the checkpoint that they were made from.")
    if any(model.config.latent_dtypes):
        logger.warning(
            f"latent_dtype={model.config.latent_dtype!r}: the rounding of latents happens in the cache and not in the "
            "weights. The stock model computes what this one would without it."
        )
    decoder = model.model.decoder
    attentions = {
        f"model.encoder.layers.{i}.self_attn": layer.self_attn for i, layer in enumerate(model.model.encoder.layers)
    }
    for i, layer in enumerate(decoder.layers):
        attentions[f"model.decoder.layers.{i}.self_attn"] = layer.self_attn
        attentions[f"model.decoder.layers.{i}.encoder_attn"] = layer.encoder_attn

    shared_down = {"model.decoder.cross_kv_down_proj": decoder.cross_kv_down_proj}
    kinds = ("q_proj", "k_proj", "v_proj", "out_proj", "kv_down_proj")
    projections = {
        f"{name}.{kind}": getattr(module, kind, None) for name, module in attentions.items() for kind in kinds
    }
    for name, projection in {**projections, **shared_down}.items():
        if projection is not None and not is_plain_linear(projection):
            raise ConversionError(
                f"{name} is a {type(projection).__name__}, not a plain nn.Linear on a device: merge adapters "
                "(merge_and_unload), remove hooks, dequantise, or load the model without offloading first."
            )

    weights: dict[str, Tensor] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, attention in attentions.items():
        down = getattr(attention, "kv_down_proj", None)
        if down is None and name.endswith("encoder_attn"):
            down = decoder.cross_kv_down_proj
        if down is None:
            continue
        for part in ("weight", "bias"):
            weights.pop(f"{name}.kv_down_proj.{part}", None)
        if down.bias is not None:  # the same for all keys changes no attention weight
            up, bias = weights[f"{name}.v_proj.weight"].double(), weights[f"{name}.v_proj.bias"]
            weights[f"{name}.v_proj.bias"] = (bias.double() + up @ down.bias.detach().double()).to(bias.dtype)
        for kind in ("k_proj", "v_proj"):
            up = weights[f"{name}.{kind}.weight"]
            weights[f"{name}.{kind}.weight"] = (up.double() @ down.weight.detach().double()).to(up.dtype)
    for part in ("weight", "bias"):
        weights.pop(f"model.decoder.cross_kv_down_proj.{part}", None)

    config = model.config.to_whisper_config()
    config.dtype = model.dtype
    config._attn_implementation = model.config._attn_implementation
    return assemble(WhisperForConditionalGeneration, config, weights, model.generation_config)
