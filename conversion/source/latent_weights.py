"""What a factorisation method gets of a checkpoint: the weights around one latent."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .latents import Latent


@dataclass(frozen=True)
class LatentWeights:
    """The projections of all attentions that read one latent: of one attention, or of all decoder layers.

    Convention of `nn.Linear`, `y = W x`. `d` is the width of the model, `H` the number of heads, `D = d / H`, and `L`
    the number of attentions that share the latent (1, or the decoder layers for a shared cross-attention latent). Any
    floating dtype and device, all the same; methods work in float64.

    Attributes:
        key: `[L, d, d]`, `W_K` of each.
        value: `[L, d, d]`, `W_V`.
        query: `[L, d, d]`, `W_Q` multiplied by `D**-0.5`, as Whisper scales the query.
        output: `[L, d, d]`, `W_O`.
        num_heads: `H`.
        norm_weight: `[d]`, γ of the layer norm whose output `x` the key and value projections read.
        norm_bias: `[d]`, β of it.

    Raises:
        ValueError: shapes that do not fit each other.
    """

    key: Tensor
    value: Tensor
    query: Tensor
    output: Tensor
    num_heads: int
    norm_weight: Tensor
    norm_bias: Tensor

    def __post_init__(self):
        if self.key.ndim != 3 or self.key.shape[1] != self.key.shape[2] or 0 in self.key.shape:
            raise ValueError(f"key has shape {list(self.key.shape)}: expected [attentions, d, d].")
        for name in ("value", "query", "output"):
            check_shape(name, getattr(self, name), tuple(self.key.shape))
        for name in ("norm_weight", "norm_bias"):
            check_shape(name, getattr(self, name), (self.width,))
        if self.num_heads < 1 or self.width % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads}: expected a divisor of d = {self.width}.")

    @property
    def num_attentions(self) -> int:
        """`L`."""
        return self.key.shape[0]

    @property
    def width(self) -> int:
        """`d`."""
        return self.key.shape[1]

    @property
    def head_dim(self) -> int:
        """`D`."""
        return self.width // self.num_heads


def latent_weights(latent: Latent, weights: Mapping[str, Tensor], device: torch.device | None = None) -> LatentWeights:
    """The stock weights around a latent, in float64.

    Args:
        latent: of `latents_of`.
        weights: state dict of the stock model.
        device: where to put them; None: where they are.
    """

    def on_device(name: str) -> Tensor:
        return weights[name].to(device or weights[name].device).to(torch.float64)  # MPS has no float64: move first

    def stacked(kind: str) -> Tensor:
        return torch.stack([on_device(f"{name}.{kind}.weight") for name in latent.attentions])

    query = stacked("q_proj")
    return LatentWeights(
        key=stacked("k_proj"),
        value=stacked("v_proj"),
        query=query * (query.shape[-1] // latent.num_heads) ** -0.5,
        output=stacked("out_proj"),
        num_heads=latent.num_heads,
        norm_weight=on_device(f"{latent.norm}.weight"),
        norm_bias=on_device(f"{latent.norm}.bias"),
    )


def check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    """Raise ValueError unless `tensor` has the shape expected."""
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} has shape {list(tensor.shape)}: expected {list(expected)}.")
