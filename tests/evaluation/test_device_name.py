import pytest
import torch

from whisper_mla.evaluation.device_name import device_name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "model name\t: Some CPU 9\nflags\t\t: fpu avx2 amx_bf16 avx512_bf16\n",
            "Some CPU 9, {set}, avx512_bf16 amx_bf16",
        ),
        ("model name : Some CPU 9\nflags : fpu avx2\n\nmodel name : Another\n", "Some CPU 9, {set}, no 16-bit units"),
        ("model name : Some CPU 9\n", "Some CPU 9, {set}, "),
    ],
)
def test_cpu(tmp_path, text, expected):
    (tmp_path / "cpuinfo").write_text(text)
    name = device_name("cpu", tmp_path / "cpuinfo")
    assert name.startswith("CPU: " + expected.format(set=torch.backends.cpu.get_cpu_capability()))
    assert name.endswith(" cores")


def test_without_a_description(tmp_path):
    assert torch.backends.cpu.get_cpu_capability() in device_name("cpu", tmp_path / "nothing")


def test_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    assert device_name("cuda:1") == "GPU of cuda:1"
