"""Weights and statistics go in; factors of every latent come out. A method is one file, a pure function of the weights
around one latent, of its moments and of a rank; a new one is a file and a line here. What methods share is in `factors`
and `weighted_svd`; `factorise` runs one over a whole model, `apply_factors` puts its factors to use.
"""

from collections.abc import Callable
from typing import get_type_hints

from whisper_mla.conversion.calibration.moments import Moments

from .attention import attention
from .covariance import covariance
from .factors import Factors
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

    Args:
        method: its name.
    """
    return get_type_hints(METHODS[method])["moments"] is Moments


__all__ = ["METHODS", "Method", "attention", "covariance", "fisher", "joint_svd", "layer_norm", "needs_moments"]
