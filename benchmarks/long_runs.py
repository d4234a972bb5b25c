"""Long runs of a converted model: an hour in one file, many requests in a row, many threads on one model.

    python benchmarks/long_runs.py MODEL SPEECH.flac

Resident memory is noted while they run; greedy, float32, the exact conversion with its defaults for fallback. The hour
is the speech over and over. One run alone is asked for with `--only`; those made before are kept in
`NAME.partial.jsonl`, and the tables are written from all.
"""

import argparse
import json
import threading
import time
from pathlib import Path

import numpy
import psutil
import soundfile
import torch
import transformers
from result_files import RESULTS, write_results
from rich.progress import track
from transformers import AutoProcessor

from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.transcription.audio import SAMPLING_RATE
from whisper_mla.transcription.transcriber import Transcriber


def resident() -> float:
    """MB of this process."""
    return psutil.Process().memory_info().rss / 1e6


def one_long_file(transcriber: Transcriber, samples: numpy.ndarray, minutes: float) -> dict:
    long = numpy.resize(samples, int(minutes * 60 * SAMPLING_RATE))
    noted: list[float] = []
    start = time.perf_counter()
    transcript = transcriber([long], lambda frames: noted.append(resident()))[0]
    seconds = time.perf_counter() - start
    quarter = len(noted) // 4
    return {
        "what": f"{minutes:g} minutes in one file",
        "begin_mb": max(noted[:quarter]),
        "end_mb": max(noted[-quarter:]),
        "seconds": seconds,
        "note": f"{len(noted)} windows, {len(transcript.text.split()):,} words",
    }


def many_requests(transcriber: Transcriber, samples: numpy.ndarray, requests: int) -> dict:
    clips = [samples[i * SAMPLING_RATE : (i + 3) * SAMPLING_RATE] for i in range(10)]
    expected = [transcriber([clip])[0].text for clip in clips]
    noted, wrong = [], 0
    start = time.perf_counter()
    for number in track(range(requests), description="Requests"):
        wrong += transcriber([clips[number % 10]])[0].text != expected[number % 10]
        noted.append(resident())
    tenth = requests // 10
    return {
        "what": f"{requests:,} requests of 3 s",
        "begin_mb": max(noted[:tenth]),
        "end_mb": max(noted[-tenth:]),
        "seconds": time.perf_counter() - start,
        "note": f"{wrong} texts other than the first time",
    }


def many_threads(transcriber: Transcriber, samples: numpy.ndarray, threads: int) -> dict:
    clips = [samples[i * SAMPLING_RATE : (i + 4 + i % 3) * SAMPLING_RATE] for i in range(threads)]
    expected = [transcriber([clip])[0].text for clip in clips]
    found: dict[tuple[int, int], str] = {}

    def work(number: int) -> None:
        for turn in range(5):
            found[number, turn] = transcriber([clips[number]])[0].text

    before, start = resident(), time.perf_counter()
    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    wrong = sum(found.get((i, turn)) != expected[i] for i in range(threads) for turn in range(5))
    return {
        "what": f"{threads} threads on one model, 5 requests each",
        "begin_mb": before,
        "end_mb": resident(),
        "seconds": time.perf_counter() - start,
        "note": f"{wrong} texts other than alone",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a stock checkpoint")
    parser.add_argument("speech", type=Path, help="some minutes at 16 kHz")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--concurrent", type=int, default=8, help="threads on one model")
    parser.add_argument("--only", choices=("threads", "requests", "hour"), help="one run (default: all)")
    parser.add_argument("--name", default="long_runs")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    samples, rate = soundfile.read(arguments.speech, dtype="float32")
    if rate != SAMPLING_RATE:
        parser.error(f"{arguments.speech}: {rate} Hz, not {SAMPLING_RATE}.")
    model = WhisperMLAForConditionalGeneration.from_whisper(arguments.model, dtype=torch.float32)
    transcriber = Transcriber(model, AutoProcessor.from_pretrained(arguments.model))
    runs = {
        "threads": lambda: many_threads(transcriber, samples, arguments.concurrent),
        "requests": lambda: many_requests(transcriber, samples, arguments.requests),
        "hour": lambda: one_long_file(transcriber, samples, arguments.minutes),
    }
    partial = RESULTS / f"{arguments.name}.partial.jsonl"
    done = {}
    if arguments.only and partial.exists():
        done = {row["run"]: row for row in map(json.loads, partial.read_text().splitlines())}
    for name in [arguments.only] if arguments.only else runs:
        done[name] = {"run": name, **runs[name](), "threads": torch.get_num_threads()}
        partial.write_text("".join(json.dumps(row) + "\n" for row in done.values()))
        print(done[name], flush=True)
    found = [done[name] for name in runs if name in done]
    rows = [
        [r["what"], f"{r['begin_mb']:,.0f}", f"{r['end_mb']:,.0f}", f"{r['seconds']:,.0f}", r["note"]] for r in found
    ]
    note = (
        f"{Path(arguments.model).name}, exact. Resident MB of the process at most in the first and the last part of "
        "each run: a quarter of the windows, a tenth of the requests; of the threads before and after."
    )
    write_results(arguments.name, note, ["run", "MB at first", "MB at last", "s", "and"], rows, found)


if __name__ == "__main__":
    main()
