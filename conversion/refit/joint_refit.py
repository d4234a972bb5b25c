"""Closed-form refit of the up projections of all decoder layers together, to the stock model's predictions.

A method finds each latent for itself, with an approximate metric. Errors of layers, of keys and of values meet in the
same logits, though, where they can cancel. Given all down projections, the KL divergence to stock is a quadratic
function of all up projections to second order, `½ e^T F e` with the whole Fisher information `F` and the errors
`e = U W_D - W` of the stock weights: a linear least-squares problem. Its solution is regularised towards what the
method found, in the method's own metric, because the calibration audio determines only a part of it.

Far from stock the quadratic function is wrong, and with little audio it knows too little: hence `refit_if_better`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from whisper_mla.conversion.calibration.fisher_information import FisherInformation
from whisper_mla.conversion.calibration.kronecker import damped_inverse
from whisper_mla.conversion.calibration.statistics import Statistics
from whisper_mla.conversion.methods.apply_factors import approximated
from whisper_mla.conversion.methods.factorise import Factorised
from whisper_mla.conversion.methods.factors import value_bias
from whisper_mla.conversion.methods.fisher import fisher_gram
from whisper_mla.conversion.ranks.quality import HeldOut
from whisper_mla.conversion.source.latent_weights import latent_weights

from .conjugate_gradients import conjugate_gradients


class _UpProjections:
    """The up projections of one latent as unknowns `Δ`, `[2, L, d, r]`: `U = U_0 + W Δ`, keys first, then values.

    Args:
        item: as `fisher` found it.
        weights: state dict of the stock model.
        statistics: with the Fisher information of each latent.
        options: of `fisher`.
    """

    def __init__(
        self, item: Factorised, weights: Mapping[str, Tensor], statistics: Statistics, options: dict[str, Any]
    ):
        self._factors, self._names = item.factors, item.latent.attentions
        around = latent_weights(item.latent, weights, item.factors.down.device)
        self._weight = torch.stack([around.key, around.value])
        self._bias = value_bias(around, item.factors)
        gram, _ = fisher_gram(around, statistics.moments(item.latent), **options)
        # The metric of `fisher` for Δ: its latents are white, so that the covariance between them is the identity.
        self._precondition = damped_inverse(gram, 1e-4)
        self._metric = torch.linalg.inv(self._precondition)

    @property
    def shape(self) -> torch.Size:
        """Of `Δ`."""
        return torch.Size([*self._weight.shape[:3], self._factors.rank])

    def error(self) -> dict[str, Tensor]:
        """What the factorisation changes in the stock model, by parameter."""
        up = torch.stack([self._factors.key_up, self._factors.value_up])
        return self._named(up @ self._factors.down - self._weight, self._bias)

    def change(self, unknown: Tensor) -> dict[str, Tensor]:
        """What `Δ` changes in the stock model, by parameter."""
        change = self._weight @ unknown @ self._factors.down
        mean = self._factors.mean
        return self._named(change, -change[1] @ mean if mean is not None else torch.zeros_like(self._bias))

    def _named(self, change: Tensor, bias: Tensor) -> dict[str, Tensor]:
        named = {}
        for i, name in enumerate(self._names):
            named[f"{name}.k_proj.weight"], named[f"{name}.v_proj.weight"] = change[:, i]
            named[f"{name}.v_proj.bias"] = bias[i]
        return named

    def gradient(self, by_parameter: Mapping[str, Tensor]) -> Tensor:
        """With respect to `Δ`, given that with respect to the parameters: the adjoint of `change`."""

        def stacked(kind: str) -> Tensor:
            return torch.stack([by_parameter[f"{name}.{kind}"] for name in self._names]).to(self._weight)

        key, value = stacked("k_proj.weight"), stacked("v_proj.weight")
        if self._factors.mean is not None:
            value = value - stacked("v_proj.bias")[..., None] * self._factors.mean
        return self._weight.mT @ torch.stack([key, value]) @ self._factors.down.T

    def metric(self, unknown: Tensor) -> Tensor:
        """Gradient of half the squared size of `Δ`."""
        return self._metric @ unknown

    def precondition(self, gradient: Tensor) -> Tensor:
        """The inverse of `metric`."""
        return self._precondition @ gradient

    def solved(self, item: Factorised, unknown: Tensor) -> Factorised:
        """The item with its up projections changed by `Δ`."""
        key, value = self._weight @ unknown
        factors = replace(item.factors, key_up=item.factors.key_up + key, value_up=item.factors.value_up + value)
        return replace(item, factors=factors)


def refit_jointly(
    stock: PreTrainedModel,
    found: Sequence[Factorised],
    statistics: Statistics,
    options: dict[str, Any],
    *,
    strength: float = 0.1,
    steps: int = 50,
) -> list[Factorised]:
    """Fit the up projections of all latents in the decoder, with a progress bar.

    Args:
        stock: in float32, in evaluation mode.
        found: by `fisher`. Latents of encoder self-attention stay as they are, and are taken as exact.
        statistics: with their examples.
        options: of `fisher`.
        strength: of the pull towards what was found, relative to the Fisher information; more than 0.
        steps: of conjugate gradients at most; every step runs the decoder over all examples.

    Returns:
        list[Factorised]: in the order of `found`.
    """
    weights = stock.state_dict()
    unknowns = {
        index: _UpProjections(item, weights, statistics, options)
        for index, item in enumerate(found)
        if not item.latent.in_encoder
    }
    if not unknowns:
        return list(found)
    information = FisherInformation(stock, statistics.examples)
    shapes = [part.shape for part in unknowns.values()]

    def split(vector: Tensor) -> list[Tensor]:
        parts = vector.split([shape.numel() for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def gradient(changes: Sequence[dict[str, Tensor]]) -> Tensor:
        merged = {name: tensor for change in changes for name, tensor in change.items()}
        by_parameter = information.times(merged)
        return torch.cat([part.gradient(by_parameter).flatten() for part in unknowns.values()])

    def of_each(function: Callable[[_UpProjections, Tensor], Tensor], vector: Tensor) -> Tensor:
        parts = zip(unknowns.values(), split(vector), strict=True)
        return torch.cat([function(part, own).flatten() for part, own in parts])

    def matrix(vector: Tensor) -> Tensor:
        changes = [part.change(own) for part, own in zip(unknowns.values(), split(vector), strict=True)]
        return gradient(changes) + strength * of_each(_UpProjections.metric, vector)

    def preconditioner(vector: Tensor) -> Tensor:
        return of_each(_UpProjections.precondition, vector)

    right = -gradient([part.error() for part in unknowns.values()])
    bar = tqdm(range(steps), desc="Refitting up projections (refit=False: without)", unit="step")
    solution = conjugate_gradients(matrix, preconditioner, right, bar)
    result = list(found)
    for (index, part), own in zip(unknowns.items(), split(solution), strict=True):
        result[index] = part.solved(result[index], own)
    return result


def refit_if_better(
    stock: PreTrainedModel,
    found: list[Factorised],
    statistics: Statistics,
    options: dict[str, Any],
    held_out: HeldOut | None,
    always: bool = False,
) -> tuple[list[Factorised], dict[str, Any] | None]:
    """`refit_jointly`, taken where it lowers the KL divergence on held-out audio.

    Args:
        stock, found, statistics, options: as there.
        held_out: None where there is none.
        always: take it in any case.

    Returns:
        tuple: the latents; and "kept", "kl_before" and "kl_after", or None where nothing could be refitted or, without
        `always`, measured.
    """
    has_any = bool(statistics.examples) and any(not item.latent.in_encoder for item in found)
    if not has_any or (held_out is None and not always):
        return found, None
    same_encoder = not any(item.latent.in_encoder for item in found)

    def divergence(items: list[Factorised]) -> float | None:
        if held_out is None:
            return None
        with approximated(stock, {item.latent: item.factors for item in items}):
            return held_out.measure(stock, same_encoder).kl

    refitted = refit_jointly(stock, found, statistics, options)
    before, after = divergence(found), divergence(refitted)
    kept = always or (before is not None and after is not None and after < before)
    return refitted if kept else found, {"kept": kept, "kl_before": before, "kl_after": after}


__all__ = ["refit_if_better", "refit_jointly"]
