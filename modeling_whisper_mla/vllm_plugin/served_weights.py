"""A checkpoint's tensors as the model in vLLM holds them. Pure functions on names and tensors; vLLM is not needed.

In attention on latents the value bias reaches the output as a constant, because attention weights sum to 1. It is
folded into the bias of the output projection, and with it the mean of a centred latent, which is kept there.
"""

import re
from collections.abc import Iterable, Iterator

from torch import Tensor

_ATTENTION = re.compile(r"(model\.(?:decoder|encoder)\.layers\.\d+\.(?:self_attn|encoder_attn))\.(.+)")
# Of the decoder: vLLM fuses what is called q_proj, k_proj and v_proj, which ours must not be.
_RENAMED = {
    "q_proj.weight": "query_proj.weight",
    "q_proj.bias": "query_proj.bias",
    "k_proj.weight": "key_up",
    "v_proj.weight": "value_up",
    "kv_down_proj.weight": "kv_down_proj.weight",
    "out_proj.weight": "out_proj.weight",
}
_SHARED_DOWN = "model.decoder.cross_kv_down_proj.weight"


def served_weights(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Rename and fold a checkpoint's tensors.

    Args:
        weights: names and tensors of a Whisper-MLA checkpoint.

    Yields:
        Names and tensors: those of a decoder attention as `query_proj`, `key_up` `[d, r]`, `value_up` `[d, r]`,
        `kv_down_proj` `[r, d]` and `out_proj`, whose bias has the value bias in it; the down projection shared by all
        layers as that of the first layer; low-rank encoder attention multiplied out to `k_proj` and `v_proj` `[d, d]`;
        all others as they are.
    """
    attentions: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights:
        match = _ATTENTION.fullmatch(name)
        if match:
            attentions.setdefault(match[1], {})[match[2]] = tensor
        elif name == _SHARED_DOWN:
            yield "model.decoder.layers.0.encoder_attn.kv_down_proj.weight", tensor
        else:
            yield name, tensor
    for prefix, tensors in attentions.items():
        served = folded(tensors) if prefix.startswith("model.decoder.") else multiplied_out(tensors)
        yield from ((f"{prefix}.{name}", tensor) for name, tensor in served.items())


def folded(attention: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one decoder attention, renamed, without a value bias."""
    served = {new: attention[name] for name, new in _RENAMED.items() if name in attention}
    output, bias = attention["out_proj.weight"], attention["out_proj.bias"]
    constant = output.double() @ attention["v_proj.bias"].double()
    served["out_proj.bias"] = (bias.double() + constant).to(bias.dtype)
    return served


def multiplied_out(attention: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one encoder attention at full rank: the encoder caches nothing, so that a rank saves no memory."""
    served = dict(attention)
    down = served.pop("kv_down_proj.weight", None)
    if down is not None:
        for name in ("k_proj.weight", "v_proj.weight"):
            served[name] = (served[name].double() @ down.double()).to(down.dtype)
    return served
