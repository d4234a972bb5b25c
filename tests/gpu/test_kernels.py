"""The kernels for GPUs against plain arithmetic. `TRITON_INTERPRET=1 WHISPER_MLA_DEVICE=cpu` runs them without one."""

import os

import pytest
import torch

from whisper_mla import absorbed_attention, decoding_kernel, kernel_check, latent_quantization, packing_kernels
from whisper_mla.latent_quantization import dequantize, quantize

DEVICE = os.environ.get("WHISPER_MLA_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        decoding_kernel.triton is None or (not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"),
        reason="needs a GPU, or Triton's interpreter",
    ),
]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("masked", ["no mask", "one mask", "a mask each"])
@pytest.mark.parametrize(("width", "rows", "audios", "positions"), [(384, 6, 2, 70), (768, 36, 1, 33), (96, 3, 3, 300)])
def test_attention_in_float64(width, rows, audios, positions, masked, dtype):
    if dtype == torch.bfloat16 and os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the interpreter has no products of bfloat16")
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(audios, rows, width, generator=generator) * 2 * width**-0.5
    longer = torch.randn(audios, positions + 9, width, generator=generator).to(dtype).to(DEVICE)
    query, latent = query.to(dtype).to(DEVICE), longer[:, 4:-5]  # a view
    mask = None
    if masked != "no mask":
        mask = torch.rand(audios if masked == "a mask each" else 1, positions, generator=generator) < 0.6
        mask = mask.to(DEVICE)
    scores = query.double() @ latent.double().transpose(1, 2)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None], float("-inf"))
    expected = scores.softmax(-1) @ latent.double()
    found = decoding_kernel.attend_once(query, latent, mask)
    assert found.dtype == dtype and found.shape == expected.shape
    error = (found.double() - expected).norm() / expected.norm()
    assert error < 2 * torch.finfo(dtype).eps


def test_nothing_to_attend_to():
    query = torch.ones(1, 2, 64, dtype=torch.float16, device=DEVICE)
    nowhere = torch.zeros(1, 5, dtype=torch.bool, device=DEVICE)
    assert not decoding_kernel.attend_once(query, torch.ones_like(query).expand(1, 2, 64), nowhere[:, :2]).any()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("width", "group_size"), [(384, 32), (512, 64), (64, 32), (160, 16)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_packing(width, group_size, bits, dtype):
    """Bytes as on the CPU, but for values between two codes; and what they are unpacked to."""
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(3, 7, width, generator=generator) * torch.tensor([1.0, 1e-3, 100.0]).view(3, 1, 1)
    latent = latent.to(dtype)
    latent[0, 0, 5], latent[1, 1, 40] = torch.nan, torch.inf
    expected = quantize(latent, bits, group_size)
    found = packing_kernels.pack(latent.to(DEVICE), bits, group_size).cpu()
    assert found.shape == expected.shape
    assert (found != expected).float().mean() < 0.01
    values = dequantize(expected, width, bits, group_size, dtype)
    unpacked = packing_kernels.unpack(expected.to(DEVICE), width, bits, group_size, dtype).cpu()
    assert torch.equal(unpacked.isnan(), values.isnan()) and values.isnan().sum() == 2 * group_size
    apart, size = (unpacked - values).nan_to_num().abs().amax(-1), values.nan_to_num().abs().amax(-1)
    assert (apart <= 4 * torch.finfo(dtype).eps * size.clamp(min=1e-6)).all()
    again = packing_kernels.unpack(found.to(DEVICE), width, bits, group_size, dtype).cpu()
    step = (latent.float().nan_to_num(posinf=0).abs().amax() * 2 / (2**bits - 1)).item()
    assert (again - latent).nan_to_num(posinf=0).abs().max() < 4 * step


def test_they_are_checked_before_use(monkeypatch, recwarn):
    device = -1 if DEVICE == "cpu" else 0
    kernel_check._checked.cache_clear()
    assert kernel_check.kernels_work(device) and not recwarn.list
    kernel_check._checked.cache_clear()
    monkeypatch.setattr(kernel_check, "unpack", lambda *_: torch.zeros(2, 70, 384))
    with pytest.warns(RuntimeWarning, match=r"latents of 8 bits differ by 100.0%"):
        assert not kernel_check.kernels_work(device)
    kernel_check._checked.cache_clear()


def operations(function, *arguments, **options):
    """The result of a compiled function, and the names of what its one graph calls."""
    called = []

    def backend(graph, _):
        called.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    result = torch.compile(function, backend=backend, fullgraph=True)(*arguments, **options)
    return result, called


@pytest.mark.parametrize("masked", [False, True])
def test_compiled_attention_takes_the_kernel(masked, monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setattr(absorbed_attention, "kernel_serves", lambda *_: True)
    generator = torch.Generator().manual_seed(0)
    query = (torch.randn(2, 3, 1, 96, generator=generator) / 10).half().to(DEVICE)
    latent = torch.randn(2, 40, 96, generator=generator).half().to(DEVICE)
    mask = (torch.rand(2, 1, 1, 40, generator=generator) < 0.7).to(DEVICE) if masked else None
    with torch.no_grad():
        (found, weights), called = operations(absorbed_attention.attend, query, latent, mask, False, False)
        expected, _ = absorbed_attention.attend(query, latent, mask, False, False)
    assert any("attend_once" in name for name in called) and weights is None
    assert (found - expected).norm() < 2e-3 * expected.norm()


@pytest.mark.parametrize("bits", [8, 4])
def test_compiled_packing_takes_the_kernels(bits, monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setattr(latent_quantization, "_kernels_serve", lambda *_: True)
    latent = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    packed, called = operations(quantize, latent, bits, 32)
    assert any(name.endswith("pack.default") or ".pack" in name for name in called)
    values, called = operations(dequantize, packed, 64, bits, 32, torch.float32)
    assert any("unpack" in name for name in called)
    assert torch.equal(values, dequantize(quantize(latent, bits, 32), 64, bits, 32, torch.float32))
