"""Factors for latents of mixed bits: the same function, in groups of one size."""

import torch

from whisper_mla.conversion.methods.factors import Factors
from whisper_mla.conversion.methods.mixed_factors import centre, for_mixed_bits


def test_products_stay_and_groups_have_one_size():
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(24, 24, generator=generator, dtype=torch.float64)).Q
    root = torch.randn(24, 24, generator=generator, dtype=torch.float64)
    sizes = torch.logspace(0, -4, 24, dtype=torch.float64)
    # Directions of variance 1 under the covariance `root root^T`, as a weighted decomposition has them.
    down = rotation[:16] @ torch.linalg.inv(root)
    up = torch.randn(2, 2, 24, 16, generator=generator, dtype=torch.float64)
    mean = torch.randn(24, generator=generator, dtype=torch.float64)
    factors = Factors(down, up[0], up[1], mean, sizes)
    found = for_mixed_bits(factors, 8)
    assert torch.allclose(found.key_up @ found.down, factors.key_up @ factors.down)
    assert torch.allclose(found.value_up @ found.down, factors.value_up @ factors.down)
    covariance = found.down @ root @ root.T @ found.down.T
    of_groups = covariance.diagonal().view(2, 8)
    assert torch.allclose(of_groups.mean(1), torch.ones(2, dtype=torch.float64))
    # An error of one size costs the same in all directions of a group: without their sizes the rows are a rotation.
    scaled = (found.down @ root)[:8] @ rotation[:8].T / sizes[:8]
    assert torch.allclose(scaled @ scaled.T, scaled[0] @ scaled[0] * torch.eye(8, dtype=torch.float64))
    assert torch.allclose(centre(found), -found.down @ mean)


def test_directions_that_cost_nothing_are_scaled_too():
    eye = torch.eye(16, dtype=torch.float64)
    factors = Factors(eye, eye[None], eye[None], None, torch.tensor([1.0] * 8 + [0.0] * 8, dtype=torch.float64))
    found = for_mixed_bits(factors, 8)
    assert found.down.isfinite().all() and torch.allclose(found.key_up[0] @ found.down, eye)
    assert not centre(found).any()
