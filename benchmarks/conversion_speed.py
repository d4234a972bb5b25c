"""Time and memory of a conversion: joint SVD at rank d/4, random weights of a published Whisper's dimensions.

    python benchmarks/conversion_speed.py [--size large-v3]

The stock checkpoint is written to disk first, in a process of its own; measured is `from_whisper` of that folder and
saving the result: loading, checking, factorising, writing.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import torch
import transformers
from result_files import write_results
from transformers import WhisperForConditionalGeneration

from whisper_mla.configuration import WHISPER_SIZES, whisper_config
from whisper_mla.conversion import from_whisper


def write_stock(size: str, folder: Path) -> None:
    """A stock checkpoint with random float16 weights."""
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    config = whisper_config(size)
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    model = model.to(torch.float16).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.empty(tensor.shape).normal_(std=0.02))
    model.tie_weights()
    model.save_pretrained(folder)


def convert(folder: Path, target: Path, rank: int, results) -> None:
    transformers.logging.set_verbosity_error()
    start = time.perf_counter()
    model = from_whisper(folder, kv_rank=rank, method="joint_svd")
    converted = time.perf_counter()
    model.save_pretrained(target)
    saved = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    results.put({"convert_s": converted - start, "save_s": saved - converted, "peak_memory_bytes": peak})


def alone(function, *arguments) -> None:
    """Run in a new process, so that its peak memory is its own."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{function.__name__} failed with exit code {process.exitcode}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=WHISPER_SIZES, default="large-v3")
    size = parser.parse_args().size
    rank = whisper_config(size).d_model // 4
    results = multiprocessing.get_context("spawn").Queue()
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch, "stock"), Path(scratch, "converted")
        alone(write_stock, size, source)
        alone(convert, source, target, rank, results)
    measured = {"size": size, "kv_rank": rank, **results.get()}
    row = [
        f"{size}, kv_rank {rank}",
        f"{measured['convert_s']:.0f}",
        f"{measured['save_s']:.0f}",
        f"{measured['peak_memory_bytes'] / 1e9:.1f}",
    ]
    note = (
        "`from_whisper` (joint SVD, float16 checkpoint on disk, random weights) and `save_pretrained`; one run, "
        "wall clock."
    )
    columns = ["conversion", "convert, s", "save, s", "peak resident memory, GB"]
    write_results("conversion_speed", note, columns, [row], measured)


if __name__ == "__main__":
    main()
