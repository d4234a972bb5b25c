"""Rounding in mixed bits and its packing, against an implementation in loops and the errors that bits must reach."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_mla.configuration.cache_size import latent_bytes
from whisper_mla.latent_quantization import dequantize, quantize, round_latent
from whisper_mla.mixed_quantization import NORMAL_STEPS

settings.register_profile("quick", max_examples=60, deadline=None)
settings.load_profile("quick")


def unpack(packed: np.ndarray, bits: list[int], group_size: int) -> np.ndarray:
    """One position, value by value, as the module's description has it."""
    stream, codes = list(packed[:-2]), np.zeros((len(bits), group_size), int)
    for piece in (8, 4, 2, 1):
        values = [(g, i) for g, number in enumerate(bits) if number & piece for i in range(group_size)]
        size = len(values) * piece // 8
        taken, stream = stream[:size], stream[size:]
        for place, (g, i) in enumerate(values):
            part = int(taken[place % size]) >> piece * (place // size) & (2**piece - 1)
            codes[g, i] += part << (bits[g] % piece)
    assert not stream
    scale = float(np.frombuffer(packed[-2:].tobytes(), np.float16)[0])
    steps = np.array([1.25 * NORMAL_STEPS[number - 1] for number in bits])[:, None]
    return (scale * steps * (codes - np.array([2**number for number in bits])[:, None] / 2 + 0.5)).ravel()


@given(
    st.lists(st.integers(1, 8), min_size=1, max_size=5),
    st.sampled_from([8, 32]),
    st.floats(-3, 3),
    st.integers(0, 2**31),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_packing_is_as_described_and_the_nearest_code_is_taken(bits, group_size, size, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    latent = (torch.randn(2, 3, len(bits) * group_size, generator=generator) * 10**size).to(dtype)
    packed = quantize(latent, bits, group_size)
    assert packed.dtype == torch.uint8
    assert packed.shape == (2, 3, latent_bytes(latent.shape[-1], bits, group_size, 2))
    found = dequantize(packed, latent.shape[-1], bits, group_size, torch.float32)
    assert np.allclose(found[1, 2].numpy(), unpack(packed[1, 2].numpy(), bits, group_size), rtol=1e-5)
    assert torch.equal(round_latent(latent, bits, group_size), found.to(dtype))

    scale = packed[..., -2:].contiguous().view(torch.float16).float()
    expected = latent.float().square().mean(-1, keepdim=True).sqrt()
    assert torch.allclose(scale, expected, rtol=2**-10, atol=2.0**-24)
    step = scale[..., None] * torch.tensor([1.25 * NORMAL_STEPS[number - 1] for number in bits])[:, None]
    outermost = step * (2.0 ** torch.tensor([number - 1 for number in bits])[:, None] - 0.5)
    values, found = (x.float().unflatten(-1, (-1, group_size)) for x in (latent, found))
    assert ((found - values).abs() <= torch.maximum(step / 2, values.abs() - outermost) * 1.001 + 1e-7 * step).all()


def test_one_row_whose_scale_begins_at_an_odd_byte():
    latent = torch.randn(2, 1, 24, generator=torch.Generator().manual_seed(0))
    found = dequantize(quantize(latent, [4, 2, 1], 8)[1:], 24, [4, 2, 1], 8, torch.float32)
    assert torch.equal(found, round_latent(latent, [4, 2, 1], 8)[1:])


def test_each_bit_lowers_the_error_of_a_normal_variable():
    latent = torch.randn(400, 8, 32, generator=torch.Generator().manual_seed(0))
    bits = [8, 7, 6, 5, 4, 3, 2, 1]
    error = (round_latent(latent.flatten(1), bits, 32).view_as(latent) - latent).square().mean((0, 2))
    # Of the best uniform quantiser (Max, 1960), which steps a quarter wider exceed by half at most.
    best = torch.tensor([8.77e-5, 3.04e-4, 0.00104, 0.003495, 0.01154, 0.03744, 0.1188, 0.3634])
    assert (error > 0.95 * best).all() and (error < 1.5 * best).all()


def test_values_that_are_not_finite_make_their_position_nan_and_no_other():
    latent = torch.randn(3, 64)
    latent[0, 40], latent[2, 5] = torch.nan, torch.inf
    found = round_latent(latent, [3, 1], 32)
    assert found[0].isnan().all() and found[2].isnan().all() and found[1].isfinite().all()


@pytest.mark.parametrize("value", [0.0, 1e-9, 1000.0, 1e6])
def test_extreme_values_stay_finite(value):
    found = round_latent(torch.full((1, 64), value), [8, 4], 32)
    assert found.isfinite().all()
    if value < 65504:  # float16 holds the scale; not that of 1e-9
        assert torch.allclose(found, torch.tensor(value), rtol=0.3, atol=1e-7)
    else:
        assert (found > 65504).all()


def test_bytes_of_an_empty_cache_are_zeros():
    assert not dequantize(torch.zeros(1, 5, 30, dtype=torch.uint8), 64, [4, 3], 32, torch.float16).any()


def test_gradients_pass_straight_through():
    latent = torch.randn(3, 64, requires_grad=True)
    weights = torch.randn(3, 64)
    (round_latent(latent, [4, 2], 32) * weights).sum().backward()
    assert torch.equal(latent.grad, weights)
