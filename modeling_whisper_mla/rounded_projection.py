"""The largest logits in float32 from a vocabulary projection in 8 bits.

Weights w_j are rounded to 8 bits and states x twice: what the first rounding leaves is rounded again. A token's logit
is then within a margin of its exact value (Cauchy-Schwarz),

    |w_j . x - ŵ_j . x̂| <= |w_j - ŵ_j| |x| + |ŵ_j| |x - x̂|,

and only tokens that could be the largest within it are multiplied in float32: a few, with real weights.
"""

import itertools
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from .int8_linear import pack_weight, quantize_rows
from .kernel_operator import kernel_operator

_CHUNK = 4096  # rows that are rounded at once
_MOST_STATES = 32  # with more, rounding saves nothing
_FLOAT32 = 1e-5  # of the product of norms: what float32 itself may be off by
_SMALLEST = 1e-30  # a row of zeros is divided by it


class RoundedProjection:
    """A vocabulary projection in 8 bits with what is known of its errors.

    Args:
        weight: float32 `[vocabulary, d_model]`, on a CPU. It is neither kept nor changed.

    Attributes:
        errors: `[vocabulary]`, the norm of what rounding changed in each row.
        norms: `[vocabulary]`, the norm of each rounded row.
        number: what [`greedy_logits`] knows it by; compiled graphs can hold tensors and numbers only.
    """

    def __init__(self, weight: Tensor):
        weight = weight.detach()
        parts = [quantize_rows(rows) for rows in weight.split(_CHUNK)]
        norms, errors = [], []
        for (codes, scale), rows in zip(parts, weight.split(_CHUNK), strict=True):
            rounded = codes * scale[:, None]
            norms.append(rounded.norm(dim=1))
            errors.append((rows - rounded).norm(dim=1))
        self.norms = torch.cat(norms)
        self.errors = torch.cat(errors) + _FLOAT32 * self.norms
        self.largest_error, self.largest_norm = float(self.errors.max()), float(self.norms.max())
        self.packed = pack_weight(torch.cat([codes for codes, _ in parts]), torch.cat([scale for _, scale in parts]))
        self.number = next(_numbers)
        _projections[self.number] = self

    def rough_logits(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rounded logits, and what their margins are made of.

        Args:
            rows: float32 `[rows, d_model]`.

        Returns:
            tuple[Tensor, Tensor, Tensor]: logits `[rows, vocabulary]`; the norm of each row, and a bound on the norm of
            what rounding changed in it, both `[rows]`.
        """
        levels = self.packed.zero_point - 1
        largest = rows.abs().amax(dim=1, keepdim=True).clamp_min_(_SMALLEST)
        first = (rows / largest * levels).round_() / levels
        left = rows - first * largest
        largest_left = left.abs().amax(dim=1, keepdim=True).clamp_min_(_SMALLEST)
        first_part, second_part = self.packed(torch.cat([first, left / largest_left])).split(len(rows))
        logits = first_part.mul_(largest).addcmul_(second_part, largest_left)
        half_steps = rows.shape[1] ** 0.5 / (2 * levels) * 1.001
        return logits, rows.norm(dim=1), largest_left[:, 0] * half_steps


_numbers = itertools.count()
_projections: WeakValueDictionary[int, RoundedProjection] = WeakValueDictionary()


def _empty_logits(states: Tensor, weight: Tensor, forbidden: Tensor, number: int, first_exact: int) -> Tensor:
    return states.new_empty(*states.shape[:-1], weight.shape[0])


@kernel_operator(_empty_logits)
def greedy_logits(states: Tensor, weight: Tensor, forbidden: Tensor, number: int, first_exact: int) -> Tensor:
    """Logits of which the largest are exact.

    Args:
        states: float32 `[..., d_model]`.
        weight: float32 `[vocabulary, d_model]`.
        forbidden: tokens below `first_exact` that may not be picked, int64 `[n]`; some of them may be.
        number: of the [`RoundedProjection`] of `weight`.
        first_exact: from this token on all logits are exact.

    Returns:
        Tensor: `[..., vocabulary]`. As exact as float32 are all from `first_exact` on; below, the largest of those that
        are not forbidden, and all larger ones. The rest are rounded, and smaller than that one. So the largest is exact
        among all tokens, and also without any of the forbidden ones.
    """
    projection = _projections[number]
    rows = states.flatten(0, -2)
    if len(rows) > _MOST_STATES:
        return states @ weight.T
    logits, norms, left = projection.rough_logits(rows)
    logits[:, first_exact:] = rows @ weight[first_exact:].T
    text = logits[:, :first_exact]
    kept = text[:, forbidden]
    best = text.index_fill_(1, forbidden, -torch.inf).max(dim=1).indices
    text[:, forbidden] = kept
    to_beat = (weight[best] * rows).sum(dim=1)
    margins = norms * projection.largest_error + left * projection.largest_norm
    row, token = (text >= (to_beat - margins)[:, None]).nonzero(as_tuple=True)
    # Nearly all of them are out of reach with their own margins in place of the largest.
    rough, norm, rest = text[row, token], norms[row], left[row]
    may_win = rough + norm * projection.errors[token] + rest * projection.norms[token] >= to_beat[row]
    row, token = row[may_win], token[may_win]
    if len(token) > len(weight) // 16:  # then one product is quicker
        return states @ weight.T
    text[row, token] = (weight[token] * rows[row]).sum(dim=1)
    return logits.view(*states.shape[:-1], -1)


__all__ = ["RoundedProjection", "greedy_logits"]
