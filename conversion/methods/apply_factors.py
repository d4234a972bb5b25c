"""Factors put to use: as the weights of a converted model, or multiplied out in a stock model."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor
from transformers import PreTrainedModel

from whisper_mla.conversion.source.latent_weights import latent_weights
from whisper_mla.conversion.source.latents import Latent

from .factorise import Factorised
from .factors import Factors, value_bias
from .mixed_factors import centre


def replacement_weights(found: Sequence[Factorised], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors that replace stock ones, in the stock dtype and on the stock device."""
    new: dict[str, Tensor] = {}
    for item in found:
        new.update(factorised_weights(item.latent, weights, item.factors, item.stock_mean))
    return new


def factorised_weights(
    latent: Latent, weights: Mapping[str, Tensor], factors: Factors, stock_mean: Tensor | None = None
) -> dict[str, Tensor]:
    """The tensors that replace the stock ones, in the stock dtype and on the stock device.

    Args:
        latent: of `latents_of`.
        weights: state dict of the stock model.
        factors: of the rank wanted.
        stock_mean: `[d]`, see `value_bias`.

    Returns:
        dict[str, Tensor]: down projection, key and value up projections, and value biases where the factors have a
        centre. Latents of mixed bits are centred: their down projection has a bias.
    """
    is_mixed = isinstance(latent.bits, tuple)
    original = weights[f"{latent.attentions[0]}.k_proj.weight"]
    new = {latent.down_proj: factors.down}
    for i, name in enumerate(latent.attentions):
        new[f"{name}.k_proj.weight"] = factors.key_up[i]
        new[f"{name}.v_proj.weight"] = factors.value_up[i]
    if factors.mean is not None:
        bias = value_bias(latent_weights(latent, weights, factors.down.device), factors, stock_mean)
        for i, name in enumerate(latent.attentions):
            new[f"{name}.v_proj.bias"] = weights[f"{name}.v_proj.bias"].to(bias.device).to(bias.dtype) + bias[i]
            if is_mixed:
                new[f"{name}.v_proj.bias"] -= factors.value_up[i] @ centre(factors)
    if is_mixed:
        new[latent.down_proj.removesuffix("weight") + "bias"] = centre(factors)
    return {name: tensor.to(original.dtype).to(original.device).contiguous() for name, tensor in new.items()}


@contextmanager
def approximated(stock: PreTrainedModel, factors: Mapping[Latent, Factors]) -> Iterator[PreTrainedModel]:
    """The stock model with some projections replaced by `W_UK W_D`, `W_UV W_D`: what the conversion would compute.

    Args:
        stock: changed in place, and back at the end.
        factors: of each latent to approximate.

    Yields:
        The same model.
    """
    weights = stock.state_dict()
    saved = {}
    try:
        for latent, found in factors.items():
            for name in latent.attentions:
                for key in (f"{name}.k_proj.weight", f"{name}.v_proj.weight", f"{name}.v_proj.bias"):
                    saved[key] = weights[key].clone()
            write_approximation(stock, latent, found)
        yield stock
    finally:
        for key, tensor in saved.items():
            weights[key].copy_(tensor)


def write_approximation(
    model: PreTrainedModel, latent: Latent, factors: Factors, stock_mean: Tensor | None = None
) -> None:
    """Write `W_UK W_D`, `W_UV W_D` and the value bias into a model with stock attention, in place.

    Args:
        model: whose weights around the latent are still those of the stock model.
        latent, factors: what to write.
        stock_mean: `[d]`, see `value_bias`.
    """
    weights = model.state_dict()
    bias = value_bias(latent_weights(latent, weights, factors.down.device), factors, stock_mean)
    for i, name in enumerate(latent.attentions):
        weights[f"{name}.k_proj.weight"].copy_(factors.key_up[i] @ factors.down)
        weights[f"{name}.v_proj.weight"].copy_(factors.value_up[i] @ factors.down)
        weights[f"{name}.v_proj.bias"].add_(bias[i].to(weights[f"{name}.v_proj.bias"]))
