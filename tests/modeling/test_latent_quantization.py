"""Rounding and packing of latents, against their stated bounds and an implementation in loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_mla.configuration.cache_size import latent_bytes
from whisper_mla.latent_quantization import dequantize, hadamard, quantize, round_latent

settings.register_profile("quick", max_examples=60, deadline=None)
settings.load_profile("quick")


def unpack(packed: np.ndarray, width: int, bits: int, group_size: int) -> np.ndarray:
    """One position, value by value, as the module's description has it."""
    codes = packed[: width * bits // 8]
    half = np.frombuffer(packed[width * bits // 8 :].tobytes(), np.float16).astype(np.float64)
    scales, minima = half[: width // group_size], half[width // group_size :]
    values = np.zeros(width)
    for i in range(width):
        code = int(codes[i % (width * bits // 8)])
        if bits == 4:
            code = code & 15 if i < width // 2 else code >> 4
        values[i] = minima[i // group_size] + scales[i // group_size] * code
    found = np.zeros(width)
    for i in range(width):
        start = i - i % group_size
        for j in range(group_size):
            found[i] += (-1) ** bin((i % group_size) & j).count("1") * values[start + j] / group_size**0.5
    return found


@st.composite
def latents(draw):
    group_size, groups = draw(st.sampled_from([4, 16, 32, 64])), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    latent = torch.randn(2, 3, groups * group_size, generator=generator) * 10 ** draw(st.floats(-3, 3))
    outliers = torch.rand(latent.shape, generator=generator) < draw(st.sampled_from([0, 0.05]))
    latent = torch.where(outliers, 30 * latent, latent) + draw(st.floats(-10, 10))
    return latent.to(draw(st.sampled_from([torch.float32, torch.bfloat16]))), group_size


@given(latents(), st.sampled_from([8, 4]))
def test_error_is_within_its_bound(case, bits):
    latent, group_size = case
    packed = quantize(latent, bits, group_size)
    width = latent.shape[-1]
    assert packed.dtype == torch.uint8
    assert packed.shape == (2, 3, latent_bytes(width, bits, group_size, 2))
    found = dequantize(packed, width, bits, group_size, torch.float32)
    rotated = latent.float().unflatten(-1, (-1, group_size)) @ hadamard(group_size)
    low, high = rotated.amin(-1), rotated.amax(-1)
    bound = group_size**0.5 * ((high - low) / (2**bits - 1) / 2 + low.abs() / 2**11)
    error = (found - latent.float()).unflatten(-1, (-1, group_size)).norm(dim=-1)
    # Beside it only float32's own rounding, and float16's steps near zero.
    assert (error <= bound * 1.001 + 1e-5 * rotated.abs().amax(-1) + group_size**0.5 * 2.0**-24 * 2**bits).all()
    expected = unpack(packed[1, 2].numpy(), width, bits, group_size)
    assert np.allclose(found[1, 2].numpy(), expected, atol=1e-5 * np.abs(expected).max() + 1e-9)
    assert torch.equal(round_latent(latent, bits, group_size), found.to(latent.dtype))


@pytest.mark.parametrize("size", [4, 32, 128])
def test_hadamard(size):
    matrix = hadamard(size)
    assert torch.equal(matrix, matrix.T)
    assert torch.allclose(matrix @ matrix, torch.eye(size), atol=1e-6)
    assert torch.allclose(matrix.abs(), torch.full_like(matrix, size**-0.5))
    half = hadamard(size // 2) / 2**0.5
    assert torch.allclose(matrix, torch.cat([torch.cat([half, half], 1), torch.cat([half, -half], 1)]))


@pytest.mark.parametrize("bits", [8, 4])
def test_nan_and_infinity_stay_in_their_group(bits):
    latent = torch.randn(2, 96)
    latent[0, 40], latent[1, 5] = torch.nan, torch.inf
    found = round_latent(latent, bits, 32)
    expected = torch.zeros(2, 96, dtype=torch.bool)
    expected[0, 32:64], expected[1, :32] = True, True
    assert torch.equal(found.isnan(), expected)


@pytest.mark.parametrize("bits", [8, 4])
def test_extreme_values(bits):
    """What float16 cannot hold is cut, and stays finite."""
    found = round_latent(torch.tensor([[3e5, -3e5] * 16, [1e-9] * 32, [0.0] * 32, [1000.0] * 32]), bits, 32)
    assert found.isfinite().all()
    assert (found[0, ::2] > 1e4).all() and (found[0, 1::2] < -1e4).all()
    assert not found[2].any()
    assert torch.allclose(found[3], torch.tensor(1000.0), rtol=2**-10)


def test_bytes_of_an_empty_cache_are_zeros():
    assert not dequantize(torch.zeros(1, 5, 80, dtype=torch.uint8), 128, 4, 32, torch.float16).any()


def test_gradients_pass_straight_through():
    latent = torch.randn(3, 64, requires_grad=True)
    rounded = round_latent(latent, 4, 32)
    assert torch.allclose(rounded, round_latent(latent.detach(), 4, 32), atol=1e-6)
    weights = torch.randn(3, 64)
    (rounded * weights).sum().backward()
    assert torch.equal(latent.grad, weights)
