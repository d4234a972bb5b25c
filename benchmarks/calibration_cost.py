"""What makes calibration cheaper, and what that does to conversions: seconds, KL and word errors on a real Whisper.

    python benchmarks/calibration_cost.py --model whisper-tiny.en --data SPEECH --name calibration_cost_tiny_en

MODEL is a stock checkpoint with its processor, SPEECH a folder with `calibration` and `dev`, folders of audio with
metadata.csv. Every row calibrates on the same five minutes of `calibration`, without its transcripts, one thing done
differently; two conversions from each are measured on `dev`, unless it does the same in another way. An interrupted run
continues from `NAME.partial.jsonl`. `--seconds` times all rows instead, in one call, on two minutes of audio.
"""

import argparse
import copy
import json
import os
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
import transformers
from accuracy_real import Dev, some_minutes
from result_files import RESULTS, environment, write_results
from tqdm import tqdm
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.configuration import cache_size
from whisper_mla.conversion.calibration import calibrate as calibrating
from whisper_mla.conversion.calibration import gather_statistics as gathering
from whisper_mla.conversion.calibration import make_examples as making
from whisper_mla.conversion.calibration.kronecker import KroneckerSums
from whisper_mla.conversion.calibration.statistics import Statistics

MINUTES, TIMED_MINUTES = 5, 2
CUT = 0.97


def between_positions(sums: KroneckerSums, states: torch.Tensor, slopes: torch.Tensor) -> None:
    """`KroneckerSums.update` in its other form, whatever the numbers of positions and of dimensions."""
    states = states - sums._mean.to(states)
    slopes = slopes.to(states)
    between = slopes @ sums._gradient_inverse.to(states) @ slopes.transpose(1, 2)
    sums.sums[1] += (states.transpose(1, 2) @ between @ states).sum(dim=0)
    between = states @ sums._covariance_inverse.to(states) @ states.transpose(1, 2)
    sums.sums[0] += (slopes.transpose(1, 2) @ between @ slopes).sum(dim=0)


def projections_in_float64(logits: torch.Tensor, draws: int, generator: torch.Generator):
    """`_projections`, as it was."""
    for _ in range(draws):
        probabilities = logits.double().softmax(dim=-1)
        scaled = probabilities.sqrt() * (torch.randint(0, 2, logits.shape, generator=generator) * 2 - 1)
        yield (scaled - probabilities * scaled.sum(dim=-1, keepdim=True)).to(logits.dtype)


def examples_without_states(*arguments, **options) -> list:
    return [replace(example, encoder_states=None) for example in making.make_examples(*arguments, **options)]


def reseeded(model, examples, *, seed: int, **options):
    return gathering.gather_statistics(model, examples, seed=seed + 1, **options)


def in_bfloat16(model, examples, **options):
    return gathering.gather_statistics(copy.deepcopy(model).bfloat16(), examples, **options)


IN_ORDER = [
    (making, "like_lengths", lambda lengths, size: list(range(len(lengths)))),
    (gathering, "by_length", lambda examples, size: list(examples)),
]
ENCODER_AGAIN = [(calibrating, "make_examples", examples_without_states)]
BETWEEN_POSITIONS = [(KroneckerSums, "update", between_positions)]
PROJECTED_IN_FLOAT64 = [(gathering, "_projections", projections_in_float64)]
FOUR_DRAWS = [(calibrating, "gather_statistics", partial(gathering.gather_statistics, draws=4))]
ROWS: dict[str, list[tuple]] = {
    "as it is": [],
    "as it is, other random numbers": [(calibrating, "gather_statistics", reseeded)],
    "as it was": [*IN_ORDER, *ENCODER_AGAIN, *BETWEEN_POSITIONS, *PROJECTED_IN_FLOAT64, *FOUR_DRAWS],
    "batches in the order of the clips": IN_ORDER,
    "encoder again in every pass": ENCODER_AGAIN,
    "products between positions": BETWEEN_POSITIONS,
    "projections in float64": PROJECTED_IN_FLOAT64,
    "encoder self-attention too": [(calibrating, "calibrate", partial(calibrating.calibrate, encoder=True))],
    "4 draws instead of 2": FOUR_DRAWS,
    "4 draws instead of 2, other random numbers": [
        (calibrating, "gather_statistics", partial(reseeded, draws=4)),
    ],
    "1 draw": [(calibrating, "gather_statistics", partial(gathering.gather_statistics, draws=1))],
    "bfloat16 passes": [(calibrating, "gather_statistics", in_bfloat16)],
}

# The same sums but for rounding and for the order of random numbers, or of more: timed only.
SAME = (
    "batches in the order of the clips",
    "encoder again in every pass",
    "products between positions",
    "projections in float64",
    "encoder self-attention too",
)


def timed(function: Callable, seconds: list[float]) -> Callable:
    def run(*arguments, **options):
        start = time.perf_counter()
        found = function(*arguments, **options)
        seconds.append(time.perf_counter() - start)
        return found

    return run


def calibrate(stock, processor, clips, changes: list[tuple], **spoken) -> tuple[Statistics, float, float]:
    """Statistics, seconds of making examples (transcribing), and of the passes that gather."""
    transcribing: list[float] = []
    gathered: list[float] = []
    with ExitStack() as stack:
        for target, name, value in changes:
            stack.enter_context(patch.object(target, name, value))
        for name, seconds in (("make_examples", transcribing), ("gather_statistics", gathered)):
            stack.enter_context(patch.object(calibrating, name, timed(getattr(calibrating, name), seconds)))
        statistics = calibrating.calibrate(stock, clips, processor, **spoken)
    return statistics, sum(transcribing), sum(gathered)


def load(folder: Path, data: Path, language: str, minutes: float) -> tuple:
    """The stock model, its processor, clips, and arguments of calibration."""
    stock = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    spoken = {"language": language} if stock.generation_config.is_multilingual else {}
    return stock, WhisperProcessor.from_pretrained(folder), some_minutes(data / "calibration", minutes), spoken


def time_rows(arguments, times: Path) -> None:
    """Seconds of all rows that differ in what they do, one after the other."""
    stock, processor, clips, spoken = load(arguments.model, arguments.data, arguments.language, TIMED_MINUTES)
    calibrate(stock, processor, clips[:4], [], **spoken)  # what is slow only once
    found = {}
    for name, changes in tqdm(ROWS.items(), unit="calibration"):
        if not name.endswith("other random numbers"):
            found[name] = calibrate(stock, processor, clips, changes, **spoken)[1:]
    times.write_text(json.dumps({**environment(), "load": os.getloadavg()[1], "seconds": found}))


def run(arguments, partial_results: Path) -> list[dict]:
    stock, processor, clips, spoken = load(arguments.model, arguments.data, arguments.language, MINUTES)
    size = int((1 - CUT) * cache_size(stock.config).total)
    conversions = {
        "kv_rank d/2": {"kv_rank": stock.config.d_model // 2, "refit": False},
        f"mixed −{CUT:.0%}": {"latent_dtype": "mixed", "cache_bytes": size},
    }
    done = {}
    if partial_results.exists():
        done = {row["name"]: row for row in map(json.loads, partial_results.read_text().splitlines())}
    dev = None
    for name, changes in tqdm(ROWS.items(), unit="calibration"):
        if name in done or name in SAME or not re.fullmatch(arguments.only, name):
            continue
        dev = dev or Dev(stock, processor, arguments.data / "dev", arguments.language, arguments.every)
        statistics, *_ = calibrate(stock, processor, clips, changes, **spoken)
        row: dict = {"name": name, "conversions": {}}
        for conversion, options in conversions.items():
            try:
                model = WhisperMLAForConditionalGeneration.from_whisper(
                    stock, calibration=statistics, processor=processor, force=True, **options
                )
            except ValueError as error:
                row |= {"conversions": {}, "refused": str(error)}
                break
            row["conversions"][conversion] = dev.measure(model, same_encoder=True)
        done[name] = row
        with open(partial_results, "a") as file:
            file.write(json.dumps(row) + "\n")
    return [done.get(name, {"name": name, "conversions": {}}) for name in ROWS if name in done or name in SAME]


def cells(row: dict, seconds: dict[str, list[float]]) -> list[str]:
    found = [row["name"], *(f"{number:.1f}" for number in seconds.get(row["name"], []))]
    found += ["–"] * (3 - len(found))
    for measured in row["conversions"].values():
        found += [f"{measured['kl']:.2g}", f"{100 * measured['wer']:.2f}"]
    return found + ["–"] * (7 - len(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a stock checkpoint with its processor")
    parser.add_argument("--data", type=Path, required=True, help="folder with calibration/ and dev/")
    parser.add_argument("--language", default="en", help="of the audio (default: en)")
    parser.add_argument("--every", type=int, default=1, help="of dev, take every so manyth clip (default: 1)")
    parser.add_argument("--only", default=".*", help="rows whose whole name matches; the rest on a later run")
    parser.add_argument("--seconds", action="store_true", help="time all rows, which the next run without it tells")
    parser.add_argument("--name", required=True, help="of the result files")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    times = RESULTS / f"{arguments.name}.seconds.partial.jsonl"
    if arguments.seconds:
        time_rows(arguments, times)
        return
    rows = run(arguments, RESULTS / f"{arguments.name}.partial.jsonl")
    timed_at = json.loads(times.read_text()) if times.exists() else {"seconds": {}}
    measured = next(row["conversions"] for row in rows if row["conversions"])
    columns = ["calibration", "transcribing, s", "gathering, s"]
    for conversion in measured:
        columns += [f"{conversion}: KL", "WER %"]
    utterances = next(iter(measured.values()))["utterances"]
    note = (
        f"{arguments.model.name}, float32: {MINUTES} minutes of calibration audio without transcripts, a quarter of "
        "the clips held out. Each row does one thing differently. Conversions without training or refit, measured on "
        f"{utterances} dev utterances of other speakers: KL in nats per token, WER with Whisper's basic normaliser. "
        f"Seconds: of {TIMED_MINUTES} minutes, all rows in one call with `--seconds`, {timed_at.get('threads', '–')} "
        f"thread(s), {timed_at.get('device', '–')}, "
        f"load of the machine {timed_at.get('load', 0):.1f} (with nothing else: 1). –: not "
        "measured; what is only timed computes the same but for rounding and the order of random numbers."
    )
    note += "".join(f" {row['name']}: no conversion ({row['refused']})." for row in rows if "refused" in row)
    lines = [cells(row, timed_at["seconds"]) for row in rows]
    write_results(arguments.name, note, columns, lines, {"rows": rows, "timed": timed_at})


if __name__ == "__main__":
    main()
