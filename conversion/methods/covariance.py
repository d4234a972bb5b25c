"""The error of keys and values on real inputs."""

from whisper_mla.conversion.calibration.moments import Moments
from whisper_mla.conversion.source.latent_weights import LatentWeights

from .factors import Factors
from .weighted_svd import gram_of, sum_of_blocks, weighted_svd, whitening


def covariance(
    weights: LatentWeights,
    moments: Moments,
    rank: int,
    *,
    damping: float = 1e-2,
    balance: bool = True,
) -> Factors:
    """The best factorisation for `E|(W - U D)(x - E x)|²` over keys and values of all attentions.

    Whitening is that of SVD-LLM (arXiv 2403.07378) and CARE (covariance-aware conversion to latent attention). Neither
    of them centres, which absolute positions allow: what the mean adds to all keys changes no attention weight, and
    what it adds to values is repaired exactly in their bias. Balancing keys and values follows TransMLA
    (arXiv 2502.07864).

    Args:
        weights: what to factorise.
        moments: statistics of `x`.
        rank: 1 to d. At d it is exact.
        damping: share of the mean variance added to all variances, see `whitening`.
        balance: scale the key block and the value block of every attention to `|W S|_F = 1` before the decomposition.

    Returns:
        Factors: centred at the mean. Singular values: of the stack of `W_K S` and `W_V S`, each divided by its
        Frobenius norm with `balance`; their squares then sum to the number of blocks, `2 L`, and are shares of a
        block's variance.

    Raises:
        ValueError: `rank` out of range, statistics missing or of another model, or a covariance that cannot be used
            (see `whitening`).
    """
    moments = required(moments, "covariance").for_weights(weights)
    inputs = whitening(moments.covariance, damping, moments.mean)
    blocks = (gram_of(block) for layer in zip(weights.key, weights.value, strict=True) for block in layer)
    return weighted_svd(weights, sum_of_blocks(blocks, inputs, balance), rank, inputs, moments.mean)


def required(moments: Moments | None, purpose: str) -> Moments:
    """`moments`, or ValueError that names what they are needed for."""
    if moments is None:
        raise ValueError(f"moments=None: {purpose} needs statistics from calibration audio.")
    return moments
