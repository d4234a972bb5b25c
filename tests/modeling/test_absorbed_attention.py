"""The absorbed form against the definition of attention, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask

from whisper_mla import absorbed_attention
from whisper_mla.absorbed_attention import absorb_query, attend, expand_output

pytestmark = pytest.mark.numerics


def reference(query, latent, key_up, value_up, value_bias, visible):
    """Expand keys and values, then attend; `visible` is boolean `[B, 1, T, S]`."""
    batch, heads, _, head_dim = query.shape
    key = (latent @ key_up.T).view(batch, -1, heads, head_dim).transpose(1, 2)
    value = (latent @ value_up.T + value_bias).view(batch, -1, heads, head_dim).transpose(1, 2)
    scores = (query @ key.transpose(2, 3)).masked_fill(~visible, float("-inf"))
    weights = scores.softmax(-1)
    return (weights @ value).transpose(1, 2).flatten(2), weights


def problem(batch, heads, queries, positions, head_dim, rank, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    width = heads * head_dim
    return {
        "query": draw(batch, heads, queries, head_dim),
        "latent": draw(batch, positions, rank),
        "key_up": draw(width, rank),
        "value_up": draw(width, rank),
        "value_bias": draw(width),
    }


def absorbed(query, latent, key_up, value_up, value_bias, mask, is_causal, return_weights):
    output, weights = attend(absorb_query(query, key_up), latent, mask, is_causal, return_weights)
    return expand_output(output, value_up, value_bias), weights


dimensions = st.tuples(*[st.integers(1, 5)] * 3, st.integers(5, 9), *[st.integers(1, 6)] * 2, st.integers(0, 9999))


@given(dimensions, st.booleans(), st.sampled_from(["bool", "additive"]))
@settings(max_examples=150, deadline=None)
def test_equals_expanded_attention(size, return_weights, kind):
    tensors = problem(*size)
    batch, _, queries, positions = size[:4]
    visible = torch.rand(batch, 1, queries, positions, generator=torch.Generator().manual_seed(size[-1])) < 0.7
    visible[..., 0] = True
    mask = visible if kind == "bool" else torch.zeros(visible.shape).double().masked_fill(~visible, -1e30)
    expected, expected_weights = reference(**tensors, visible=visible)
    output, weights = absorbed(**tensors, mask=mask, is_causal=True, return_weights=return_weights)
    assert torch.allclose(output, expected, atol=1e-9)
    if return_weights:
        assert torch.allclose(weights, expected_weights, atol=1e-9)
    else:
        assert weights is None


@pytest.mark.parametrize("return_weights", [True, False])
@pytest.mark.parametrize("spare", [0, 4])
def test_causal_prefill_without_a_mask(return_weights, spare):
    tensors = problem(2, 3, 5, 5, 4, 6, 0)
    expected, _ = reference(**tensors, visible=torch.ones(5, 5, dtype=torch.bool).tril()[None, None])
    garbage = torch.full((2, spare, 6), 9.0, dtype=torch.float64)  # the unwritten end of a static cache
    tensors["latent"] = torch.cat([tensors["latent"], garbage], dim=1)
    output, _ = absorbed(**tensors, mask=None, is_causal=True, return_weights=return_weights)
    assert torch.allclose(output, expected, atol=1e-9)


def test_without_mask_and_not_causal_everything_is_visible():
    tensors = problem(2, 3, 4, 7, 4, 6, 0)
    expected, _ = reference(**tensors, visible=torch.ones(4, 7, dtype=torch.bool)[None, None])
    output, _ = absorbed(**tensors, mask=None, is_causal=False, return_weights=False)
    assert torch.allclose(output, expected, atol=1e-9)


def test_flex_block_mask():
    tensors = problem(2, 3, 4, 7, 4, 6, 0)
    visible = torch.arange(7)[None, :] <= torch.arange(4)[:, None] + 3
    block_mask = create_block_mask(lambda b, h, q, kv: kv <= q + 3, 2, None, 4, 7, device="cpu")
    expected, _ = reference(**tensors, visible=visible[None, None])
    output, _ = absorbed(**tensors, mask=block_mask, is_causal=True, return_weights=False)
    assert torch.allclose(output, expected, atol=1e-9)


def test_no_value_bias():
    tensors = problem(1, 2, 3, 4, 5, 6, 0)
    attended, _ = attend(absorb_query(tensors["query"], tensors["key_up"]), tensors["latent"], None, False, False)
    without = expand_output(attended, tensors["value_up"], None)
    assert torch.allclose(
        without + tensors["value_bias"], expand_output(attended, tensors["value_up"], tensors["value_bias"])
    )


@pytest.mark.parametrize("kind", ["none", "causal", "bool", "additive"])
def test_many_queries_in_float32_are_two_products(kind, monkeypatch):
    """More than PyTorch's fused kernel takes at a time, as with beams; fewer and other dtypes are left to it."""
    fused = []
    real = absorbed_attention.scaled_dot_product_attention
    monkeypatch.setattr(
        absorbed_attention,
        "scaled_dot_product_attention",
        lambda *args, **kwargs: fused.append(args[0].shape[2]) or real(*args, **kwargs),
    )
    tensors = problem(2, 8, 5, 12, 4, 6, 0)
    visible = torch.ones(2, 1, 5, 12, dtype=torch.bool)
    mask = None
    if kind == "causal":
        tensors["latent"] = tensors["latent"][:, :5]
        visible = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]
    elif kind != "none":
        visible[1, :, :3, 6:] = False
        mask = visible if kind == "bool" else torch.zeros(visible.shape).masked_fill(~visible, -1e30)
    expected, _ = reference(**tensors, visible=visible)
    ways = {"mask": mask, "is_causal": kind == "causal", "return_weights": False}
    output, weights = absorbed(**{name: tensor.float() for name, tensor in tensors.items()}, **ways)
    assert not fused and weights is None
    assert torch.allclose(output.double(), expected, atol=1e-4)
    absorbed(**tensors, **{**ways, "mask": mask.double() if kind == "additive" else mask})
    assert fused == [40]
    few = {**{name: tensor.float() for name, tensor in tensors.items()}, "query": tensors["query"][:, :, -1:].float()}
    absorbed(**few, mask=None if mask is None else mask[:, :, -1:], is_causal=kind == "causal", return_weights=False)
    assert fused == [40, 8]
