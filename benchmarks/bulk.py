"""`whisper-mla transcribe-many` on one process and on two, one thread each, in alternation.

    python benchmarks/bulk.py MODEL FOLDER

The lossless conversion of a stock checkpoint transcribes a folder of audio. What is compared is the time of the work,
from the first file to the last; starting Python and loading the model are told beside it.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from result_files import write_results

from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.conversion.source.processor import save_processor

TIMES = ("seconds", "whole_seconds", "processor_seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a stock checkpoint")
    parser.add_argument("folder", type=Path, help="of audio")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--name", default="bulk", help="of the result files")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as in the processes that are measured
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "converted"
        WhisperMLAForConditionalGeneration.from_whisper(arguments.model, dtype=torch.float32).save_pretrained(model)
        save_processor(arguments.model, model)
        runs: dict[int, list[dict]] = {1: [], 2: []}
        for number in range(arguments.rounds):
            for processes in runs:
                output = Path(folder) / f"{number}-{processes}"
                runs[processes].append(transcribe(model, arguments.folder, output, processes, arguments.batch_size))
                print({"processes": processes, **runs[processes][-1]}, flush=True)
        texts = [(Path(folder) / f"0-{processes}" / "transcripts.jsonl").read_text() for processes in runs]
    ratios = [one["seconds"] / two["seconds"] for one, two in zip(runs[1], runs[2], strict=True)]
    rows = []
    for processes, found in runs.items():
        speed = statistics.median(ratios) if processes == 2 else 1.0
        rows.append(
            [str(processes)]
            + [
                f"{statistics.median(run[key] for run in found):.1f}"
                for key in ("seconds", "whole_seconds", "processor_seconds")
            ]
            + [f"{statistics.median(run['files_per_second'] for run in found):.2f}"]
            + [f"{statistics.median(run['audio_hours_per_hour'] for run in found):.1f}", f"{speed:.2f}×"]
        )
    first = runs[1][0]
    loads = ", ".join(str(run["load"]) for pair in zip(*runs.values(), strict=True) for run in pair)
    write_results(
        arguments.name,
        f"{first['files']} files, {first['audio_seconds'] / 60:.1f} minutes of audio, batches of "
        f"{arguments.batch_size}; medians of {arguments.rounds} alternations, the speed-up that of the paired ratios. "
        f"Transcripts of one and of two processes: {'the same' if same(*texts) else 'not all the same'}. Load of the "
        f"machine before each run: {loads} (others ran beside it where it is far above 0).",
        ["processes", "s of work", "s with start", "s of CPU", "files/s", "audio-hours/hour", "speed-up"],
        rows,
        {"runs": runs, "ratios": ratios},
    )


def transcribe(model: Path, folder: Path, output: Path, processes: int, batch_size: int) -> dict:
    """Run the command in fresh processes and return its summary."""
    program = [sys.executable, "-m", "whisper_mla"]
    if processes > 1:
        options = ["--multi_gpu", "--num_processes", str(processes), "--num_machines", "1", "--main_process_port", "0"]
        options += ["--mixed_precision", "no", "--dynamo_backend", "no"]
        program = [sys.executable, "-m", "accelerate.commands.launch", *options, "-m", "whisper_mla"]
    command = [*program, "transcribe-many", str(model), str(folder), "--output", str(output), "--device", "cpu"]
    command += ["--batch-size", str(batch_size), "--workers", "1"]
    load, start, used = os.getloadavg()[0], time.perf_counter(), processor_seconds()
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    summary = json.loads((output / "summary.json").read_text())
    seconds = {"whole_seconds": time.perf_counter() - start, "processor_seconds": processor_seconds() - used}
    return {**seconds, "load": round(load, 2), **summary}


def processor_seconds() -> float:
    """That processes which have ended took of the CPU."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def same(first: str, second: str) -> bool:
    """Whether two files of results hold the same transcripts."""
    texts = [[json.loads(line)["text"] for line in content.splitlines()] for content in (first, second)]
    return texts[0] == texts[1]


if __name__ == "__main__":
    main()
