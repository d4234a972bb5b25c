"""Tests, memory and speed on one GPU, for `on_gpu.sh`: what needs torch and Transformers only, in one process and its
forks, because importing takes longer than most of what is measured.

python benchmarks/on_gpu.py OUT --device cuda --size small --seconds 560
"""

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

import whisper_mla
from whisper_mla.configuration import whisper_config
from whisper_mla.evaluation import memory_process, speed_process
from whisper_mla.evaluation.device_name import device_name
from whisper_mla.evaluation.memory import Setting, stock_and_latent

ROOT = Path(__file__).resolve().parent.parent


def device_found(device: str) -> Iterator[dict]:
    """Its name; asked in a fork, because a process that has met CUDA cannot be forked."""
    if device != "cpu":
        torch.cuda.init()
    yield {"device": device_name(device)}


def tests(path: str) -> Iterator[dict]:
    """The tests of a file in tests/gpu; what they print is kept in the log."""
    import pytest

    code = pytest.main(["-q", "-p", "no:cacheprovider", "-m", "gpu", "--rootdir", str(ROOT), str(ROOT / path)])
    yield {"tests": path, "exit_code": int(code)}


def memory(name: str, size: str, device: str, batch: int, lengths: list[int]) -> Iterator[dict]:
    """large-v3 with 448 positions; then the paper's protocol: the peak when so many positions have been decoded."""
    value = 4 if device == "cpu" else 2
    with torch.inference_mode():
        if device != "cpu":
            config = stock_and_latent(whisper_config("large-v3"))[name]
            found = memory_process.measured_decoding(config, Setting(batch, 448, 1, value), device)
            row = {"model": name, "size": "large-v3", "batch_size": batch}
            yield {**row, "positions": 448, **dataclasses.asdict(found)}
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        config = stock_and_latent(whisper_config(size), lengths[-1])[name]
        row = {"model": name, "size": size, "batch_size": batch}
        caught: list[dict] = []
        with _json_lines(caught.append):
            found = memory_process.measured_decoding(config, Setting(batch, lengths[-1], 1, value), device, lengths)
        yield from ({**row, **one} for one in caught)
        yield {**row, "positions": lengths[-1], **dataclasses.asdict(found)}


@contextlib.contextmanager
def _json_lines(keep: Callable[[dict], Any]):
    """Catch what is printed as lines of JSON."""

    class Lines:
        def write(self, text: str) -> None:
            if text.startswith("{"):
                keep(json.loads(text))

        def flush(self) -> None:
            pass

    with contextlib.redirect_stdout(Lines()):  # type: ignore[type-var]
        yield


def speed(name: str, size: str, device: str, settings: list[tuple], compiled: bool) -> Iterator[dict]:
    """Milliseconds per token of a model at `settings` (batch size, tokens, beams)."""
    config = stock_and_latent(whisper_config(size), 448)[name]
    dtype = "float32" if device == "cpu" else "float16"
    job = {"config": config.to_dict(), "settings": settings, "dtype": dtype, "device": device}
    for setting, found in zip(
        settings, speed_process.times({**job, "int8_weights": False, "compiled": compiled}), strict=True
    ):
        row = dict(zip(("batch_size", "tokens", "num_beams"), setting, strict=True))
        yield {"model": name, "size": size, "dtype": dtype, "compiled": compiled, **row, "milliseconds": found}


def attention(device: str) -> Iterator[dict]:
    """Microseconds of one layer's attention to audio, of one token: the kernel, PyTorch's ways, stock Whisper's."""
    from torch.nn.functional import scaled_dot_product_attention as fused

    from whisper_mla.decoding_kernel import attend_once, kernel_serves
    from whisper_mla.latent_quantization import dequantize, quantize

    for width, heads in ((768, 12), (1280, 20)):
        for audios in (1, 8, 64):
            for beams in (1, 5):
                latent = torch.randn(audios, 1500, width, device=device, dtype=torch.float16)
                query = torch.randn(audios, heads * beams, width, device=device, dtype=torch.float16) * width**-0.5
                key = torch.randn(audios * beams, heads, 1500, 64, device=device, dtype=torch.float16)
                own = key[:, :, :1].contiguous()

                def products(query=query, latent=latent):
                    return torch.matmul(torch.softmax(torch.matmul(query, latent.transpose(1, 2)), -1), latent)

                def of_pytorch(query=query, latent=latent):
                    return fused(query[:, None], latent[:, None], latent[:, None], scale=1.0)

                ways: dict[str, Callable] = {"products": products, "fused": of_pytorch}
                ways["stock"] = lambda own=own, key=key: fused(own, key, key, scale=0.1)
                if kernel_serves(query, latent, None):
                    ways["kernel"] = lambda query=query, latent=latent: attend_once(query, latent)
                if beams == 1:
                    for bits in (8, 4):
                        packed = quantize(latent, bits, 32)
                        ways[f"unpack {bits} bits"] = lambda packed=packed, bits=bits, width=width: dequantize(
                            packed, width, bits, 32, torch.float16
                        )
                row = {"width": width, "rows": heads * beams, "audios": audios}
                yield {**row, "microseconds": {way: _replayed(run) for way, run in ways.items()}}


def _replayed(run: Callable, count: int = 10) -> float:
    """Microseconds of one run, of `count` in a CUDA graph."""
    for _ in range(2):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(count):
            run()
    times = []
    for _ in range(4):  # the first replay is not counted
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1000 / count)
    return round(min(times[1:]), 1)


class Parts:
    """Runs parts as forks of this process, side by side or one after the other, and keeps their rows."""

    def __init__(self, out: Path, about: dict, deadline: float):
        self.out, self.about, self.deadline, self.rows = out, about, deadline, dict[str, list[dict]]()
        self.folder = Path(tempfile.mkdtemp())

    def run(self, seconds: float, parts: dict[str, tuple[Callable, tuple]]) -> None:
        """Run all `parts` side by side; those that take longer than `seconds` are ended, and their rows kept."""
        context = multiprocessing.get_context("fork")
        running = {name: context.Process(target=self._part, args=(name, *part)) for name, part in parts.items()}
        start = time.monotonic()
        for process in running.values():
            process.start()
        for name, process in running.items():
            process.join(max(0.1, min(start + seconds, self.deadline) - time.monotonic()))
            ended = process.is_alive()
            if ended:
                process.kill()
                process.join()
            path = self.folder / name
            self.rows[name] = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
            reason = "out of time" if ended else None if process.exitcode == 0 else f"exit code {process.exitcode}"
            self.about["reasons"][name] = reason
            print(f"{name}: {len(self.rows[name])} rows, {reason or 'done'}", flush=True)
        self.about["seconds"] = round(time.monotonic() - self.about["start"], 1)
        saved = {name: value for name, value in self.about.items() if name != "start"}
        (self.out / "gpu.json").write_text(json.dumps({**saved, "results": self.rows}, indent=1) + "\n")

    def _part(self, name: str, function: Callable, arguments: tuple) -> None:
        log = (self.out / "gpu.log").open("a", buffering=1)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        transformers.logging.set_verbosity_error()
        rows = (self.folder / name).open("w", buffering=1)
        begin = time.monotonic()
        for row in function(*arguments):
            rows.write(json.dumps({**row, "after": round(time.monotonic() - begin, 1)}) + "\n")
            print(name, row, flush=True)
        if any(row.get("exit_code") for row in map(json.loads, (self.folder / name).read_text().splitlines())):
            os._exit(1)
        os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", default="small")
    parser.add_argument("--seconds", type=float, default=560.0, help="for all of it")
    given = parser.parse_args()
    size, device, on_cpu = given.size, given.device, given.device == "cpu"
    given.out.mkdir(parents=True, exist_ok=True)
    versions = {module.__name__: module.__version__ for module in (torch, transformers, whisper_mla)}
    about = {"device": None, "cores": os.cpu_count(), "versions": versions, "command": sys.argv, "reasons": {}}
    about["start"] = time.monotonic()  # type: ignore[assignment]
    parts = Parts(given.out, about, time.monotonic() + given.seconds)
    parts.run(60, {"device": (device_found, (device,))})
    if not parts.rows["device"]:
        sys.exit(f"on_gpu.py: PyTorch finds no {device} here. --device cpu --size tiny runs the same on the CPU.")
    about["device"] = parts.rows.pop("device")[0]["device"]
    lengths = [8, 16] if on_cpu else [32, 64, 128, 256, 448, 512, 1024, 2048, 4096]
    batch, tokens = (2, 8) if on_cpu else (64, 64)
    greedy = [(1, tokens, 1), (batch // 8 or 2, tokens, 1), (batch, tokens, 1)]
    names = [name for name in stock_and_latent(whisper_config(size)) if name != "int4 latents"]

    # Side by side: what is not timed. The compiled kernels are kept on disk for what is timed later.
    share = given.seconds * (0.7 if on_cpu else 0.33)
    together: dict[str, tuple] = {
        "tests of kernels": (tests, ("tests/gpu/test_kernels.py",)),
        "tests of equality": (tests, ("tests/gpu/test_equality_on_gpu.py",)),
    }
    together |= {f"memory, {name}": (memory, (name, size, device, batch, lengths)) for name in names}
    if not on_cpu:
        together |= {f"compiling, {name}": (speed, (name, size, device, greedy, True)) for name in names}
    parts.run(share, together)
    # A process started from here has no CUDA yet.
    if not on_cpu:
        parts.run(30, {"attention": (attention, (device,))})
        for name in names:
            parts.run(60, {f"compiled, {name}": (speed, (name, size, device, greedy, True))})
    for name in names:
        settings = [*greedy, (batch // 8 or 2, tokens, 5)]
        parts.run(60, {f"speed, {name}": (speed, (name, size, device, settings, False))})
    if not on_cpu:
        for name in ("stock", "exact"):
            parts.run(60, {f"large-v3, {name}": (speed, (name, "large-v3", device, [(8, 32, 5), (64, 32, 1)], False))})
    wrong = {name: reason for name, reason in parts.about["reasons"].items() if reason}
    sys.exit(f"on_gpu.py: not all was done: {wrong}" if wrong else 0)


if __name__ == "__main__":
    main()
