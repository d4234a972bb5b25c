"""The device that a figure comes from, in words. Speed and rounding depend on the instruction set too."""

import os
import platform
from pathlib import Path

import torch

# Units for 16-bit floating point, as Linux names them; without them bfloat16 is slower than float32.
_HALF_PRECISION_UNITS = ("avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16")


def device_name(device: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name of a GPU; of a CPU its model, the instruction set that torch uses, 16-bit units, and the number of cores.

    Args:
        device: as torch writes it, such as "cpu" or "cuda:0".
        cpuinfo: where Linux describes its processors.

    Returns:
        str: such as "CPU: AMD EPYC, AVX2, no 16-bit units, 2 cores".
    """
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    described: dict[str, str] = {}
    try:
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            described.setdefault(name.strip(), value.strip())
    except OSError:
        pass  # not Linux
    model = described.get("model name") or platform.processor() or platform.machine()
    flags = described.get("flags", "").split()
    units = [unit for unit in _HALF_PRECISION_UNITS if unit in flags]
    parts = [model, torch.backends.cpu.get_cpu_capability()]
    if flags:
        parts.append(" ".join(units) or "no 16-bit units")
    return f"{device.upper()}: {', '.join(parts)}, {os.cpu_count()} cores"
