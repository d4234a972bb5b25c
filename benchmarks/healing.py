"""What healing gives back: word error rates of whisper-digits before and after, beside an equally trained stock model.

    python benchmarks/healing.py --data DATA

DATA holds `train_takes` (single digits, composed to strings on the fly), `calibration` and `dev` (audio folders). Every
conversion is healed by `examples/finetune.py` with the recipe digits.yaml, in the same number of steps on the same
strings, with cross-entropy, with distillation, and with distillation on the teacher's own transcripts; so is the stock
model (cross-entropy, the same parts train), which is the control. Nothing is chosen by the word error rate on `dev`:
what counts is the model after the last step. An interrupted benchmark goes on where it was.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
import transformers
from matplotlib.figure import Figure
from result_files import RESULTS, write_results
from transformers import AutoModelForSpeechSeq2Seq, WhisperForConditionalGeneration, WhisperProcessor
from transformers.utils.logging import tqdm

from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.configuration.cache_size import cache_size
from whisper_mla.configuration.configuration_whisper_mla import WhisperMLAConfig
from whisper_mla.conversion.methods import METHODS
from whisper_mla.evaluation.audio_folders import read_audio_folder
from whisper_mla.evaluation.evaluate_model import evaluate_model
from whisper_mla.evaluation.normalizers import normalizer_for
from whisper_mla.evaluation.scores import compare_models, score_utterances, summarise
from whisper_mla.evaluation.utterance_results import ResultsFile

MODEL = str(files("whisper_mla") / "assets" / "whisper-digits")
EXAMPLES = Path(__file__).parents[1] / "examples"
BATCH_SIZE = 16
LOSSES = {
    "converted": None,
    "cross-entropy": {"loss": "cross_entropy"},
    "distillation": {"loss": "distillation"},
    "unlabelled": {"loss": "distillation", "label_source": "teacher"},
}


@dataclass(frozen=True)
class Job:
    """A conversion (None: the stock model) and how it is healed ("converted": not at all)."""

    method: str
    rank: int | None
    conversion: dict | None
    healing: str

    @property
    def name(self) -> str:
        return "-".join(str(part) for part in (self.method, self.rank, self.healing) if part is not None)


def jobs(conversions: list[tuple[str, int]], healings: list[str], data: Path) -> list[Job]:
    """The control first, then what costs least.

    Args:
        conversions: methods and ranks.
        healings: names of `LOSSES`.
        data: with the calibration audio.
    """
    arguments = {
        "paper": {"method": "joint_svd", "preserved_key_dims": 4},
        "joint_svd": {"method": "joint_svd"},
    }
    found = [Job("stock", None, None, "converted"), Job("stock", None, None, "cross-entropy")]
    for healing in ["converted", *healings]:
        for method, rank in conversions:
            calibrated = {"method": method, "calibration": str(data / "calibration"), "refit": False}
            found.append(Job(method, rank, {"kv_rank": rank, **arguments.get(method, calibrated)}, healing))
    return found


def method_and_rank(text: str) -> tuple[str, int]:
    """ "fisher:16" to its parts."""
    method, _, rank = text.partition(":")
    if method not in ("paper", *METHODS) or not rank.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a method and a rank, such as fisher:16")
    return method, int(rank)


def finetune_command(job: Job, run: Path, data: Path, runs: Path, steps: int, **changes) -> list[str]:
    """How `examples/finetune.py` heals a job; begun before, it goes on.

    Args:
        run: folder of the run.
        data, runs: folders of the data and of all runs.
        steps: of training.
        changes: to the options.
    """
    options = {
        "model": MODEL,
        "conversion": job.conversion,
        "output_dir": str(run),
        "train": [{"digit_takes": str(data / "train_takes"), "size": steps * BATCH_SIZE, "seed": 1}],
        "evaluation": [],
        "per_device_train_batch_size": BATCH_SIZE,
        "max_steps": steps,
        "warmup_steps": max(steps // 20, 1),
        "lr_scheduler_kwargs": {"num_decay_steps": max(steps // 4, 1), "decay_type": "1-sqrt"},
        "eval_strategy": "no",
        "load_best_model_at_end": False,
        "early_stopping_patience": 0,
        "save_steps": 100,
        "save_total_limit": 1,
        "transcripts_dir": str(runs / "teacher_transcripts"),
        **(LOSSES[job.healing] or {}),
        **changes,
    }
    command = [sys.executable, str(EXAMPLES / "finetune.py"), str(EXAMPLES / "recipes" / "digits.yaml")]
    for name, value in options.items():
        command += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return command


def measure(job: Job, run: Path, utterances, processor) -> list:
    """Transcripts of `dev`, kept in the run's folder."""
    if job.healing != "converted":
        model = AutoModelForSpeechSeq2Seq.from_pretrained(run / "final", dtype=torch.float32)
    elif job.conversion is None:
        model = WhisperForConditionalGeneration.from_pretrained(MODEL, dtype=torch.float32)
    else:
        model = WhisperMLAForConditionalGeneration.from_whisper(MODEL, dtype=torch.float32, **job.conversion)
    run.mkdir(parents=True, exist_ok=True)
    file = ResultsFile(run / "dev.jsonl", {"job": job.name, "conversion": job.conversion})
    done = evaluate_model(model.eval(), processor, utterances, batch_size=20, results_file=file)
    return done.results


def cache_cut(job: Job, stock_config) -> tuple[float, float]:
    """Percent off decoder self-attention's cache, and off the whole one (448 positions)."""
    before = cache_size(stock_config)
    if job.conversion is None:
        return 0.0, 0.0
    after = cache_size(WhisperMLAConfig.from_whisper_config(stock_config, kv_rank=job.rank))
    return 100 * (1 - after.self_attention / before.self_attention), 100 * (1 - after.total / before.total)


def run_all(arguments, data: Path, runs: Path) -> list[dict]:
    utterances = read_audio_folder(data / "dev", language="en")
    processor = WhisperProcessor.from_pretrained(MODEL)
    stock_config = WhisperForConditionalGeneration.from_pretrained(MODEL).config
    scored, rows = {}, []
    for job in tqdm(jobs(arguments.conversions, arguments.healings, data), desc="Jobs"):
        run, start = runs / job.name, time.monotonic()
        if job.healing != "converted" and not (run / "final").is_dir():
            subprocess.run(finetune_command(job, run, data, runs, arguments.steps), check=True)
        results = measure(job, run, utterances, processor)
        scored[job.name] = score_utterances(results, lambda language: normalizer_for(language, "basic"))
        summary = summarise(scored[job.name])
        cut_self, cut_total = cache_cut(job, stock_config)
        row = {
            "name": job.name,
            "method": job.method,
            "rank": job.rank,
            "healing": job.healing,
            "cut_self_attention": cut_self,
            "cut_total": cut_total,
            "wer": 100 * summary["wer"],
            "wer_interval": [100 * bound for bound in summary["wer_interval"]],
            "seconds_in_this_run": time.monotonic() - start,
        }
        control = "stock-cross-entropy"
        if control in scored and job.name != control:
            row["against_control"] = compare_models(scored[job.name], scored[control])["overall"]
        rows.append(row)
    return rows


def table(rows: list[dict], healings: list[str]) -> tuple[list[str], list[list[str]]]:
    """One line per model, its stages side by side."""
    found = {(row["method"], row["rank"], row["healing"]): row for row in rows}
    control = found["stock", None, "cross-entropy"]["wer"]
    healings = list(dict.fromkeys(["cross-entropy", *healings]))
    columns = ["model", "self-attention cache cut", "whole cache cut", "converted", *healings, "within 0.2 of control"]
    lines = []
    for method, rank in dict.fromkeys((row["method"], row["rank"]) for row in rows):
        stages = [found.get((method, rank, healing)) for healing in ("converted", *healings)]
        healed = [stage["wer"] for stage in stages[1:] if stage]
        first = stages[0]
        lines.append(
            [
                "stock; equally trained: the control" if rank is None else f"{method}, rank {rank}",
                f"{first['cut_self_attention']:.1f} %",
                f"{first['cut_total']:.1f} %",
                *[
                    f"{stage['wer']:.2f} ({stage['wer_interval'][0]:.2f}–{stage['wer_interval'][1]:.2f})"
                    if stage
                    else "–"
                    for stage in stages
                ],
                "–" if rank is None or not healed else "yes" if min(healed) <= control + 0.2 else "no",
            ]
        )
    return columns, lines


def plot(rows: list[dict], path: Path) -> None:
    """Word error rate against the cut of decoder self-attention's cache."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        if row["method"] == "stock":
            trained = row["healing"] != "converted"
            label = "stock, equally trained (control)" if trained else "stock"
            axes.axhline(row["wer"], color="black", linestyle="-" if trained else ":", linewidth=1, label=label)
    styles = {"converted": ":", "cross-entropy": "--", "distillation": "-", "unlabelled": "-."}
    methods = list(dict.fromkeys(row["method"] for row in rows if row["method"] != "stock"))
    for number, method in enumerate(methods):
        for healing, style in styles.items():
            points = sorted(
                (row["cut_self_attention"], row["wer"])
                for row in rows
                if (row["method"], row["healing"]) == (method, healing)
            )
            if points:
                x, y = zip(*points, strict=True)
                axes.plot(x, y, style, color=f"C{number}", marker="o", markersize=4, label=f"{method}, {healing}")
    axes.set(xlabel="cut of decoder self-attention's cache (%)", ylabel="WER on dev (%)", yscale="log")
    axes.set_title("whisper-digits: right after conversion, and healed")
    axes.legend(fontsize="x-small", ncols=2)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train_takes, calibration and dev")
    parser.add_argument("--runs", type=Path, default=Path("runs/healing"), help="where runs are kept and continued")
    parser.add_argument("--steps", type=int, default=300, help="of every training run, 16 strings each")
    parser.add_argument(
        "--conversions",
        nargs="+",
        type=method_and_rank,
        metavar="METHOD:RANK",
        default=[("paper", 24), ("joint_svd", 16), ("joint_svd", 8), ("fisher", 16), ("fisher", 8)],
        help="of the methods of conversion, and paper; the paper's needs a rank above 16",
    )
    parser.add_argument("--healings", nargs="+", default=list(LOSSES)[1:], choices=list(LOSSES)[1:])
    parser.add_argument("--name", default="healing_digits", help="of the result files")
    arguments = parser.parse_args()
    if arguments.steps < 4:
        parser.error("--steps: at least 4")
    transformers.logging.set_verbosity_error()
    data, runs = arguments.data.resolve(), arguments.runs.resolve() / f"{arguments.steps}-steps"
    rows = run_all(arguments, data, runs)
    columns, lines = table(rows, arguments.healings)
    count = len(read_audio_folder(data / "dev", language="en"))
    note = (
        f"WER in percent with 95 % bootstrap interval, {count} utterances of dev, greedy decoding, basic normaliser. "
        f"Healing: {arguments.steps} steps of {BATCH_SIZE} composed strings, "
        "only decoder self-attention trains, one seed. The last column compares the best healed model with the stock "
        "model after the same steps of cross-entropy. whisper-digits knows digits only: judge by order, not by size."
    )
    write_results(arguments.name, note, columns, lines, rows)
    plot(rows, RESULTS / f"{arguments.name}.png")


if __name__ == "__main__":
    main()
