"""Train one part of a Whisper and nothing else."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

# Names of parameters, wherever the model sits (bare, in DDP, in an adapter model).
_PARTS = {
    "decoder_self_attention": r"\bdecoder\.layers\.\d+\.self_attn\.",
    "cross_attention": r"\bdecoder\.(layers\.\d+\.encoder_attn|cross_kv_down_proj)\.",
    "encoder_self_attention": r"\bencoder\.layers\.\d+\.self_attn\.",
}
PARTS = (*_PARTS, "latent")


@dataclass(frozen=True)
class TrainableParameters:
    """What trains after `freeze_except`.

    Attributes:
        trainable: number of parameters (scalars) that train.
        total: number of parameters of the model; shared ones count once.
        names: the trainable tensors, in the model's order.
    """

    trainable: int
    total: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"{100 * self.trainable / self.total:.1f} % of {_short(self.total)} parameters train"


def freeze_except(model: nn.Module, part: str | Iterable[str]) -> TrainableParameters:
    """Freeze all parameters but those of the named parts.

    For any Whisper, stock or converted. Call it before the model is wrapped: DDP and FSDP fix what trains when they
    wrap, and FSDP needs `use_orig_params=True`. In a model with adapters (PEFT) only the adapters of the parts train.

    Args:
        model: changed in place; only `requires_grad` of its parameters.
        part: one or several of
            "decoder_self_attention": all projections of decoder self-attention;
            "cross_attention": all projections of cross-attention, the shared down projection included;
            "encoder_self_attention": all projections of encoder self-attention;
            "latent": down projections, and `k_proj` and `v_proj` (the up projections) wherever the latent has a rank
            below `d_model`.

    Returns:
        TrainableParameters: `str()` of it says what trains.

    Raises:
        ValueError: an unknown part, or a model of which nothing would train. The model is then unchanged.
    """
    parts = [part] if isinstance(part, str) else list(part)
    unknown = [name for name in parts if name not in PARTS]
    if unknown or not parts:
        raise ValueError(f"part={part!r}: expected one or several of {', '.join(map(repr, PARTS))}.")
    patterns = [_PARTS[name] for name in parts if name != "latent"]
    if "latent" in parts:
        patterns += [rf"(^|\.){re.escape(name)}\." for name in latent_projections(model)]
    parameters = dict(model.named_parameters())
    chosen = [name for name in parameters if any(re.search(pattern, name) for pattern in patterns)]
    adapted = tuple(f"{name}." for name, module in model.named_modules() if hasattr(module, "base_layer"))
    if adapted:
        chosen = [name for name in chosen if name.startswith(adapted) and ".base_layer." not in name]
    if not chosen:
        why = (
            "no adapter is on it"
            if adapted
            else "it has no latent of a rank below d_model (give from_whisper a kv_rank)"
            if parts == ["latent"]
            else "it has no such modules"
        )
        raise ValueError(f"part={part!r}: nothing of this {type(model).__name__} would train, because {why}.")
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    for name in chosen:
        parameters[name].requires_grad_(True)
    return trainable_parameters(model)


def trainable_parameters(model: nn.Module) -> TrainableParameters:
    """What trains in `model` as it is."""
    parameters = dict(model.named_parameters())
    names = tuple(name for name, parameter in parameters.items() if parameter.requires_grad)
    return TrainableParameters(
        trainable=sum(parameters[name].numel() for name in names),
        total=sum(parameter.numel() for parameter in parameters.values()),
        names=names,
    )


def latent_projections(model: nn.Module) -> list[str]:
    """Names of the modules that make a latent of a rank below `d_model`, or read it: down and up projections.

    Args:
        model: any Whisper; a stock or exact one has none.
    """
    names = []
    for name, module in model.named_modules():
        if name.split(".")[-1] == "cross_kv_down_proj":
            names.append(name)
        has_rank = hasattr(module, "k_proj") and getattr(module, "rank", module.embed_dim) < module.embed_dim
        if has_rank or getattr(module, "kv_down_proj", None) is not None:
            kinds = ("kv_down_proj", "k_proj", "v_proj")
            names += [f"{name}.{kind}" for kind in kinds if getattr(module, kind, None) is not None]
    return names


def _short(number: int) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            value = number / size
            return f"{value:.0f} {unit}" if value >= 99.5 else f"{value:.1f} {unit}"
    return str(number)


__all__ = ["PARTS", "TrainableParameters", "freeze_except", "latent_projections", "trainable_parameters"]
