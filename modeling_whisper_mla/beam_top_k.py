"""The best continuations of beams on a CPU, found by way of the maxima of parts.

`torch.topk` orders a copy of all scores, 50,000 for each beam, which takes a while beside int8 weights
(`benchmarks/step_overhead.py`). The best k are in those k parts whose maxima are largest, and finding maxima is quick.
"""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_PART = 256  # scores
_WORTH_IT = 64  # parts for each of the best, at the least


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`torch.topk(scores, k)` of a matrix: the same values and the same indices.

    Args:
        scores: `[rows, n]`.
        k: how many of each row.

    Returns:
        tuple[Tensor, Tensor]: values in falling order, and where they are, both `[rows, k]`. Of equal scores and
        NaN, which `torch.topk` may order in any way, it is asked itself.
    """
    in_parts = scores.shape[1] // _PART * _PART
    if scores.device.type != "cpu" or in_parts < (k + 1) * _WORTH_IT * _PART:
        return torch.topk(scores, k)
    parts = scores[:, :in_parts].unflatten(1, (-1, _PART))
    best = parts.amax(dim=2).topk(k + 1, dim=1, sorted=False).indices
    candidates = parts.gather(1, best[:, :, None].expand(-1, -1, _PART)).flatten(1)
    places = (best[:, :, None] * _PART + torch.arange(_PART)).flatten(1)
    candidates = torch.cat([candidates, scores[:, in_parts:]], dim=1)
    places = torch.cat([places, torch.arange(in_parts, scores.shape[1]).expand(len(scores), -1)], dim=1)
    values, chosen = torch.topk(candidates, k + 1)
    if not (values[:, 1:] < values[:, :-1]).all():
        return torch.topk(scores, k)
    return values[:, :k], places.gather(1, chosen[:, :k])


class QuickTopK(TorchFunctionMode):
    """While it is entered, `torch.topk(scores, k)` of matrices is [`top_k`]."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None):
        """Called by PyTorch for each of its functions."""
        kwargs = kwargs or {}
        if function is torch.topk and len(args) == 1 and kwargs.keys() == {"k"} and args[0].ndim == 2:
            return top_k(args[0], kwargs["k"])
        return function(*args, **kwargs)


__all__ = ["QuickTopK", "top_k"]
