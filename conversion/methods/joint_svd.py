"""The error of the weights themselves, with or without key dimensions that are kept: the Whisper-MLA paper."""

import torch
from torch import Tensor

from whisper_mla.conversion.calibration.moments import Moments
from whisper_mla.conversion.source.latent_weights import LatentWeights

from .factors import Factors
from .weighted_svd import check_rank, gram_of, right_singular_vectors, sum_of_blocks, weighted_svd


def joint_svd(
    weights: LatentWeights,
    moments: Moments | None,
    rank: int,
    *,
    preserved_key_dims: int = 0,
    preserved_key_selection: str = "uniform",
) -> Factors:
    """The best factorisation for `|[W_K; W_V] - [W_UK; W_UV] W_D|_F`, stacked over attentions.

    For one attention this is the joint factorisation of Whisper-MLA (arXiv 2603.00563) and TransMLA (arXiv 2502.07864).

    With preserved key dimensions it is the paper's initialisation: the latent is `[preserved keys; c]`. Rows of `W_D`
    are the preserved rows of `W_K` themselves, their rows of `W_UK` are one-hot, and values do not read them. The rest
    of the rank is the joint decomposition of all other key rows and all value rows. Every head keeps the same number of
    its own dimensions, in place; the paper's published code reorders them across heads, which changes the attention.

    Args:
        weights: what to factorise.
        moments: used by `"2-norm"` only.
        rank: 1 to d; more than `H · preserved_key_dims`. At d the latent is `x` itself if key dimensions are preserved,
            and exact in any case.
        preserved_key_dims: key dimensions kept exactly in every head, 0 to D.
        preserved_key_selection: which: `"uniform"`, evenly spaced in the head, or `"2-norm"`, those with the largest
            `E[q_j²]^{1/2} · E[k_j²]^{1/2}` (single dimensions: without rotary positions there are no pairs).

    Returns:
        Factors: not centred. Singular values: of the stack of all rows, or of all that are not preserved. With
        preserved key dimensions, factors of rank d cannot be truncated; those of a lower rank can.

    Raises:
        ValueError: `rank` out of range, an unknown selection, statistics missing for `"2-norm"`, or key dimensions to
            be preserved of more than one attention, whose shared latent would hold the keys of all of them.
    """
    if preserved_key_dims == 0:
        blocks = (gram_of(block) for layer in zip(weights.key, weights.value, strict=True) for block in layer)
        return weighted_svd(weights, sum_of_blocks(blocks), rank)
    _check_preserved(weights, rank, preserved_key_dims)
    preserved = preserved_rows(weights, moments, preserved_key_dims, preserved_key_selection)

    key, value = weights.key[0].to(torch.float64), weights.value[0].to(torch.float64)
    rest = torch.ones(weights.width, dtype=torch.bool, device=key.device)
    rest[preserved] = False
    singular_values, vectors = right_singular_vectors(gram_of(key[rest]) + gram_of(value))
    if rank == weights.width:
        identity = torch.eye(rank, dtype=key.dtype, device=key.device)
        return Factors(identity, key[None].clone(), value[None].clone(), None, singular_values, preserved_rank=rank)
    vectors = vectors[:, : rank - len(preserved)]
    key_up = key.new_zeros(1, weights.width, rank)
    key_up[0, preserved, torch.arange(len(preserved), device=key.device)] = 1
    key_up[0, rest, len(preserved) :] = key[rest] @ vectors
    value_up = key.new_zeros(1, weights.width, rank)
    value_up[0, :, len(preserved) :] = value @ vectors
    return Factors(
        down=torch.cat([key[preserved], vectors.T]),
        key_up=key_up,
        value_up=value_up,
        mean=None,
        singular_values=singular_values,
        preserved_rank=len(preserved),
    )


def preserved_rows(weights: LatentWeights, moments: Moments | None, dims: int, selection: str) -> Tensor:
    """The rows of `W_K` to keep: `[H · dims]`, ascending, `dims` of every head. See `joint_svd`."""
    heads, head_dim = weights.num_heads, weights.head_dim
    if selection == "uniform":
        chosen = (torch.arange(dims) * head_dim // dims).expand(heads, dims).to(weights.key.device)
    elif selection == "2-norm":
        if moments is None:
            raise ValueError('moments=None: preserved_key_selection="2-norm" needs statistics from calibration audio.')
        moments = moments.for_weights(weights)
        key = weights.key[0].to(torch.float64)
        second_moment = moments.covariance + torch.outer(moments.mean, moments.mean)
        key_energy = ((key @ second_moment) * key).sum(-1).view(heads, head_dim)
        query_energy = moments.query[0].diagonal(dim1=-2, dim2=-1)
        chosen = (query_energy * key_energy).argsort(dim=-1, descending=True, stable=True)[:, :dims].sort(-1).values
    else:
        raise ValueError(f'preserved_key_selection={selection!r}: expected "uniform" or "2-norm".')
    return (chosen + head_dim * torch.arange(heads, device=chosen.device)[:, None]).flatten()


def _check_preserved(weights: LatentWeights, rank: int, dims: int) -> None:
    if not 0 <= dims <= weights.head_dim:
        raise ValueError(f"preserved_key_dims={dims}: expected 0 to {weights.head_dim}, the width of a head.")
    if weights.num_attentions > 1:
        raise ValueError(
            f"preserved_key_dims={dims}: {weights.num_attentions} attentions share this latent, which cannot hold the "
            "keys of all. Use a latent per layer."
        )
    check_rank(rank, weights.width)
    minimum = weights.num_heads * dims + 1
    if rank < minimum and rank < weights.width:
        raise ValueError(
            f"rank={rank}: {dims} key dimensions preserved in each of {weights.num_heads} heads need a rank of at least"
            f" {minimum}."
        )
