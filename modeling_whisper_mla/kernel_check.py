"""Whether the Triton kernels work on a GPU: compared with plain arithmetic once, before they are used."""

import functools
import warnings

import torch

from .decoding_kernel import attend_once
from .packing_kernels import pack, unpack


@torch.compiler.assume_constant_result
def kernels_work(device: int) -> bool:
    """Whether the kernels give on GPU number `device` (-1: a CPU, in Triton's interpreter) what they should.

    Triton compiles them when they are first used. That needs a C compiler, and a GPU that it knows. Where anything is
    wrong, a warning says what, and the caller does without.
    """
    return _checked(device)


@functools.cache
def _checked(device: int) -> bool:
    try:
        wrong = _wrong(torch.device("cuda", device) if device >= 0 else torch.device("cpu"))
    except Exception as error:  # whatever Triton or the GPU says
        wrong = f"{type(error).__name__}: {error}"
    if wrong:
        warnings.warn(
            "The Triton kernels of whisper-mla do not work on this GPU, so slower PyTorch operations are used. "
            + wrong,
            RuntimeWarning,
            stacklevel=3,
        )
    return not wrong


def _wrong(device: torch.device) -> str:
    """What differs from plain arithmetic by more than rounding, or nothing."""
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False), torch.no_grad():
        latent = torch.randn(2, 70, 384, generator=generator).half()
        query = torch.randn(2, 6, 384, generator=generator).half() / 10
        mask = torch.rand(2, 70, generator=generator) < 0.7
        scores = (query.double() @ latent.double().transpose(1, 2)).masked_fill(~mask[:, None], -torch.inf)
        expected = scores.softmax(-1) @ latent.double()
        found = attend_once(query.to(device), latent.to(device), mask.to(device)).cpu().double()
        error = ((found - expected).norm() / expected.norm()).item()
        if not error < 2e-3:
            return f"attention differs by {error:.1%}."
        for bits, group_size, most in ((8, 64, 0.02), (4, 32, 0.15)):
            packed = pack(latent.to(device), bits, group_size)
            found = unpack(packed, 384, bits, group_size, torch.float32).cpu().double()
            error = ((found - latent.double()).norm() / latent.double().norm()).item()
            if not error < most:
                return f"latents of {bits} bits differ by {error:.1%}."
    return ""


__all__ = ["kernels_work"]
