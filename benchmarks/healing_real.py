"""What healing gives back of a very small cache on a real Whisper: word errors before and after, without transcripts.

    python benchmarks/healing_real.py --model whisper-tiny.en --data SPEECH --text LICENSE --name healing_tiny_en

MODEL is a stock checkpoint with its processor, SPEECH a folder with `calibration` and `dev`, folders of audio with
metadata.csv. A model is converted once per cut, calibrated on five minutes of `calibration`, and healed by
`examples/finetune.py` with the recipe unlabelled.yaml on all of `calibration` (whose transcripts are not read), or on
that and on TEXT as espeak-ng, which must be installed, speaks it. The control is the stock model after the same steps
on the same speech. Nothing is chosen by `dev`: what counts is the model after the last step. An interrupted run
goes on.
"""

import argparse
import csv
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import torch
import transformers
from accuracy_real import COLUMNS, Dev, cells, some_minutes
from result_files import write_results
from tqdm import tqdm
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.configuration import cache_size
from whisper_mla.conversion.calibration.clips import Clip

FINETUNE = Path(__file__).parents[1] / "examples" / "finetune.py"
RECIPE = FINETUNE.parent / "recipes" / "unlabelled.yaml"
CALIBRATION_MINUTES = 5
SELF_ATTENTION = "decoder_self_attention"
ATTENTION = "decoder_self_attention,cross_attention"
VOICES = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-029")


def jobs(cuts: list[float]) -> dict[str, dict]:
    """What the table calls a model, to how it comes about: cut of the cache (None: stock), what trains, on what."""
    found = {"stock": {"cut": None}, "stock, equally trained": {"cut": None, "trains": ATTENTION}}
    for cut in cuts:
        name = f"mixed bits for −{cut:.0%}"
        found[name] = {"cut": cut}
        found[f"{name}, healed"] = {"cut": cut, "trains": ATTENTION}
        found[f"{name}, healed with synthetic speech too"] = {"cut": cut, "trains": ATTENTION, "synthetic": True}
        found[f"{name}, self-attention alone healed"] = {"cut": cut, "trains": SELF_ATTENTION}
    return found


def speak(text: Path, folder: Path) -> Path:
    """A text file, twenty words at a time, spoken by espeak-ng, voice after voice: an audio folder."""
    words = re.findall(r"[A-Za-z][A-Za-z'-]*[.,;:]?", text.read_text())
    pieces = [" ".join(words[start : start + 20]) for start in range(0, len(words), 20)]
    if not (folder / "metadata.csv").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for i, piece in enumerate(tqdm(pieces, desc="Speaking")):
            how = ["-v", VOICES[i % len(VOICES)], "-s", str(130 + 10 * (i % 7)), "-w", str(folder / f"{i:04}.wav")]
            subprocess.run(["espeak-ng", *how, piece], check=True)
        with open(folder / "metadata.csv", "w", newline="") as file:
            csv.writer(file).writerows([("file_name",), *((f"{i:04}.wav",) for i in range(len(pieces)))])
    return folder


def convert(stock, processor, clips: list[Clip], cut: float, folder: Path, **spoken) -> Path:
    """A converted checkpoint with its processor, calibrated and not trained."""
    if not folder.exists():
        size = int((1 - cut) * cache_size(stock.config).total)
        wanted = {"latent_dtype": "mixed", "cache_bytes": size, "calibration": clips, "force": True}
        model = WhisperMLAForConditionalGeneration.from_whisper(stock, processor=processor, **wanted, **spoken)
        model.save_pretrained(folder.with_suffix(".partial"))
        processor.save_pretrained(folder.with_suffix(".partial"))
        folder.with_suffix(".partial").rename(folder)
    return folder


def heal(model: Path, teacher: Path, trains: str, speech: list[Path], run: Path, steps: int, language: str) -> Path:
    """Run the recipe; begun before, it goes on. Returns the folder of the model after the last step."""
    options = {
        "model": str(model),
        "teacher": str(teacher),
        "conversion": "null",
        "train_only": trains,
        "train": [{"path": str(folder), "language": language, "text_column": None} for folder in speech],
        "transcripts_dir": str(run.parent / f"teacher_transcripts-{len(speech)}"),
        "max_steps": steps,
        "warmup_steps": max(steps // 10, 1),
        "lr_scheduler_kwargs": {"num_decay_steps": max(steps // 3, 1), "decay_type": "1-sqrt"},
        "output_dir": str(run),
    }
    command = [sys.executable, str(FINETUNE), str(RECIPE)]
    for name, value in options.items():
        command += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    if not (run / "final").is_dir():
        subprocess.run(command, check=True)
    return run / "final"


def run_all(arguments, runs: Path, partial: Path) -> list[dict]:
    stock = WhisperForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32).eval()
    processor = WhisperProcessor.from_pretrained(arguments.model)
    spoken = {"language": arguments.language} if stock.generation_config.is_multilingual else {}
    calibration = some_minutes(arguments.data / "calibration", CALIBRATION_MINUTES)
    dev = Dev(stock, processor, arguments.data / "dev", arguments.language, every=1)
    done = {}
    if partial.exists():
        done = {row["name"]: row for row in map(json.loads, partial.read_text().splitlines())}
    for name, job in tqdm(jobs(arguments.cuts).items(), desc="Models"):
        if name in done or not (re.fullmatch(arguments.only, name) or name == "stock"):
            continue
        start, folder = time.monotonic(), arguments.model.resolve()
        if job["cut"] is not None:
            folder = runs / f"converted-{job['cut']}"
            convert(stock, processor, calibration, job["cut"], folder, **spoken)
        if "trains" in job:
            speech = [arguments.data.resolve() / "calibration"]
            if job.get("synthetic"):
                speech.append(speak(arguments.text, runs / "synthetic"))
            run = runs / re.sub(r"\W+", "-", name)
            folder = heal(
                folder, arguments.model.resolve(), job["trains"], speech, run, arguments.steps, arguments.language
            )
        loader = WhisperForConditionalGeneration if job["cut"] is None else WhisperMLAForConditionalGeneration
        model = loader.from_pretrained(folder, dtype=torch.float32).eval()
        cut = 1 - cache_size(model.config).total / cache_size(stock.config).total
        row = {"name": name, "cache_cut": cut, **dev.measure(model, same_encoder=True)}
        row["minutes"] = (time.monotonic() - start) / 60
        done[name] = row
        with open(partial, "a") as file:
            file.write(json.dumps(row) + "\n")
    return [done[name] for name in jobs(arguments.cuts) if name in done]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a stock checkpoint with its processor")
    parser.add_argument("--data", type=Path, required=True, help="folder with calibration/ and dev/")
    parser.add_argument("--text", type=Path, required=True, help="that espeak-ng speaks (English)")
    parser.add_argument("--language", default="en", help="of the audio (default: en)")
    parser.add_argument("--cuts", type=float, nargs="+", default=[0.97], help="of the whole cache (default: 0.97)")
    parser.add_argument(
        "--steps", type=int, default=100, help="of every training run, 8 utterances each (default: 100)"
    )
    parser.add_argument("--only", default=".*", help="rows whose whole name matches; the rest on a later run")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/healing_real"), help="where runs are kept and continued"
    )
    parser.add_argument("--name", required=True, help="of the result files")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    runs = arguments.runs.resolve() / f"{arguments.name}-{arguments.steps}-steps"
    runs.mkdir(parents=True, exist_ok=True)
    rows = run_all(arguments, runs, runs / "rows.jsonl")
    columns = ["model", *COLUMNS[1:], "minutes"]
    note = (
        f"{arguments.model.name}, float32, greedy. Converted with {CALIBRATION_MINUTES} minutes of calibration; healed "
        f"in {arguments.steps} steps of 8 utterances, without transcripts, one seed; decoder self-attention and "
        "cross-attention train unless said otherwise. Equally trained: stock as its own teacher. WER of "
        f"{rows[0]['utterances']} dev utterances of other speakers with Whisper's basic normaliser; its interval is a "
        "bootstrap over utterances. Minutes: conversion (once per cut), training and measuring together."
    )
    lines = [[*cells(row), f"{row['minutes']:.0f}"] for row in rows]
    write_results(arguments.name, note, columns, lines, rows)


if __name__ == "__main__":
    main()
