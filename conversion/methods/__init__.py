"""Factorisation methods: pure functions from weights and statistics to factors. A new one is a file and a line here."""

from collections.abc import Callable
from typing import get_type_hints

from whisper_mla.conversion.factors import Factors
from whisper_mla.conversion.latent_weights import Moments

from .attention import attention
from .covariance import covariance
from .fisher import fisher
from .joint_svd import joint_svd
from .layer_norm import layer_norm

# (weights, moments, rank, *, options) to factors. `moments` is annotated `Moments` where a method cannot do without.
Method = Callable[..., Factors]

METHODS: dict[str, Method] = {
    "joint_svd": joint_svd,
    "layer_norm": layer_norm,
    "covariance": covariance,
    "attention": attention,
    "fisher": fisher,
}


def needs_moments(method: str) -> bool:
    """Whether a method of `METHODS` always needs statistics from calibration.

    `joint_svd` needs them only with `preserved_key_selection="2-norm"`.
    """
    return get_type_hints(METHODS[method])["moments"] is Moments


__all__ = ["METHODS", "Method", "attention", "covariance", "fisher", "joint_svd", "layer_norm", "needs_moments"]
