"""Random weights and statistics, and every method's own norm written out plainly."""

import torch
from hypothesis import strategies as st

from whisper_mla.conversion.calibration.moments import Moments
from whisper_mla.conversion.methods.factors import Factors
from whisper_mla.conversion.source.latent_weights import LatentWeights

FLOAT = torch.float64


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_weights(attentions: int = 1, heads: int = 2, head_dim: int = 3, seed: int = 0) -> LatentWeights:
    g, width = generator(seed), heads * head_dim
    key, value, query, output = (
        scale * torch.randn(attentions, width, width, generator=g, dtype=FLOAT) for scale in (1.0, 0.3, 0.7, 2.0)
    )
    return LatentWeights(
        key=key,
        value=value,
        query=query,
        output=output,
        num_heads=heads,
        norm_weight=torch.randn(width, generator=g, dtype=FLOAT),
        norm_bias=torch.randn(width, generator=g, dtype=FLOAT),
    )


def inputs_of(weights: LatentWeights, count: int, seed: int = 0) -> torch.Tensor:
    """Correlated vectors `[count, d]` far from the origin."""
    g, width = generator(seed + 1), weights.width
    mixing = torch.randn(width, width, generator=g, dtype=FLOAT) * torch.logspace(0, -2, width, dtype=FLOAT)
    return torch.randn(count, width, generator=g, dtype=FLOAT) @ mixing.T + 3 * torch.randn(
        width, generator=g, dtype=FLOAT
    )


def moments_of(weights: LatentWeights, inputs: torch.Tensor) -> Moments:
    """Statistics of a finite population that also asks the queries."""
    mean = inputs.mean(0)
    centred = inputs - mean
    shape = (len(inputs), weights.num_attentions, weights.num_heads, weights.head_dim)
    rows = stack(weights)
    queries = torch.einsum("lij,nj->nli", weights.query, inputs).view(shape)
    return Moments(
        count=len(inputs),
        mean=mean,
        covariance=centred.T @ centred / len(inputs),
        query=torch.einsum("nlhi,nlhj->lhij", queries, queries) / len(inputs),
        gradient=rows.T @ fisher_of_rows(weights) @ rows,
    )


def fisher_of_rows(weights: LatentWeights) -> torch.Tensor:
    """`[2 L d, 2 L d]`: as if these were gradients with respect to keys and values, correlated and of low rank."""
    size = 2 * weights.num_attentions * weights.width
    gradients = torch.randn(size, max(size // 3, 1), generator=generator(size), dtype=FLOAT)
    return 0.01 * gradients @ gradients.T


def random_moments(weights: LatentWeights, count: int = 40, seed: int = 0) -> Moments:
    return moments_of(weights, inputs_of(weights, count, seed))


def stack(weights: LatentWeights) -> torch.Tensor:
    """`[2 L d, d]`: keys and values of one attention after the other."""
    return torch.cat([weights.key, weights.value], dim=1).flatten(0, 1)


def product(factors: Factors) -> torch.Tensor:
    """`U D` in the order of `stack`."""
    return torch.cat([factors.key_up, factors.value_up], dim=1).flatten(0, 1) @ factors.down


def damped(covariance: torch.Tensor, damping: float) -> torch.Tensor:
    return covariance + damping * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=FLOAT)


def own_norm(method: str, weights: LatentWeights, moments: Moments, options: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """`L` `[2 L d, 2 L d]` and `S` `[d, d]`: a method minimises `|L (W - U D) S|_F`. Cholesky roots, no shortcuts."""
    width, heads, dim = weights.width, weights.num_heads, weights.head_dim
    covariance = {
        "joint_svd": torch.eye(width, dtype=FLOAT),
        "layer_norm": damped(weights.norm_weight.square().diag(), options.get("damping", 1e-2)),
    }.get(method, damped(moments.covariance, options.get("damping", 1e-2)))
    root = torch.linalg.cholesky(covariance)
    if method == "fisher":
        metric = fisher_of_rows(weights)
        energy = torch.linalg.norm(psd_root(metric) @ stack(weights) @ root).square()
        left, _ = own_norm("attention", weights, moments, {"damping": options.get("damping", 1e-2)})
        share = options.get("floor", 0.1) * energy / (2 * weights.num_attentions)
        return psd_root(metric + share * left.T @ left), root
    blocks = []
    for layer in range(weights.num_attentions):
        left_key = left_value = torch.eye(width, dtype=FLOAT)
        if method == "attention":
            left_key = torch.block_diag(*[psd_root(moments.query[layer, h]) for h in range(heads)])
            columns = [weights.output[layer][:, h * dim : (h + 1) * dim] for h in range(heads)]
            left_value = torch.block_diag(*[psd_root(column.T @ column) for column in columns])
        if method == "attention" or (method != "joint_svd" and options.get("balance", True)):
            left_key = left_key / torch.linalg.norm(left_key @ weights.key[layer] @ root)
            left_value = left_value / torch.linalg.norm(left_value @ weights.value[layer] @ root)
        if method == "attention":
            left_key = left_key * options.get("balance", 1.0)
        blocks += [left_key, left_value]
    return torch.block_diag(*blocks), root


def psd_root(matrix: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


# Method name and options; all of these are optimal in a norm of their own.
CASES = [
    ("joint_svd", {}),
    ("layer_norm", {}),
    ("layer_norm", {"balance": False, "damping": 0.1}),
    ("covariance", {}),
    ("covariance", {"balance": False, "damping": 0.0}),
    ("attention", {}),
    ("attention", {"balance": 3.0, "damping": 1e-3}),
    ("fisher", {}),
    ("fisher", {"floor": 0.0, "damping": 0.1}),
]
SHAPES = st.builds(
    random_weights,
    attentions=st.integers(1, 3),
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 4),
    seed=st.integers(0, 10_000),
)
