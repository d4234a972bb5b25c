"""Decoding beside CTranslate2 (the engine of faster-whisper): per step, and whole files.

    python benchmarks/peers.py --model whisper-base --ctranslate2 ctranslate2/base --audio talk.flac

Every engine runs in a process of its own, because threads of CTranslate2 go on spinning after its work, and in turns:
round by round, each round in another order. Per step: one `generate` of a fixed number of tokens on given encoder
output, first step included. Whole files: features, encoder and greedy or beam decoding with segment times, without
fallback; in batches where there are several files (CTranslate2: one after the other). CPU only.
An interrupted run continues from `NAME.partial.jsonl`: remove it where the options are others. CTranslate2 comes with
`pip install faster-whisper`, its checkpoint made by its own `ct2-transformers-converter`; whisper.cpp, for
whole files only, with `pip install pywhispercpp`, its checkpoint made by `ggml_weights.py`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from peer_engines import CT2, CT2_INT8, ENGINES, EXACT, INT8_COMPILED, STOCK, WHISPER_CPP
from result_files import RESULTS, write_results
from rich.progress import track
from transformers import AutoConfig


def run_engine(engine: str, task: dict) -> dict:
    """What one engine measured, in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("peer_engines.py")), json.dumps({"engine": engine, **task})]
    environment = {**os.environ, "OMP_NUM_THREADS": str(task["threads"]), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{engine}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def gather(arguments, tokens: Callable[[int, int], int], settings: list[tuple[int, int]]) -> dict[str, list[dict]]:
    """Answers of every engine, one per round."""
    width = AutoConfig.from_pretrained(arguments.model).d_model
    partial = RESULTS / f"{arguments.name}.partial.jsonl"
    done = [json.loads(line) for line in partial.read_text().splitlines()] if partial.exists() else []
    answers: dict[str, list[dict]] = {engine: [] for engine in arguments.engines}
    for engine, answer in done:
        answers[engine].append(answer)
    orders = (arguments.engines if number % 2 == 0 else arguments.engines[::-1] for number in range(arguments.rounds))
    turns = [(number, engine) for number, order in enumerate(orders) for engine in order]
    for number, engine in track(turns[len(done) :], description="Engines"):
        folders = {CT2: arguments.ctranslate2, CT2_INT8: arguments.ctranslate2, WHISPER_CPP: arguments.whisper_cpp}
        few = engine == STOCK and number > 0
        task = {
            "model": str(folders.get(engine, arguments.model)),
            "threads": arguments.threads,
            "width": width,
            # Stock repeats the audio for each beam, which takes long: measured once.
            "decode": [
                (b, k, tokens(b, k)) for b, k in settings if not (few and b * k >= 40) and engine != WHISPER_CPP
            ],
            "repeats": arguments.repeats,
            "audio": [str(path) for path in arguments.audio],
            "audio_seconds": arguments.audio_seconds,
            "file_beams": arguments.file_beams,
        }
        answers[engine].append(run_engine(engine, task))
        with open(partial, "a") as file:
            file.write(json.dumps([engine, answers[engine][-1]]) + "\n")
    return answers


def summarise(answers: dict[str, list[dict]], clock: str) -> list[dict]:
    """Rows of the table: a setting, and of each engine the median of its rounds (of processor time: the least).

    Args:
        answers: of [`gather`].
        clock: "seconds" or "processor_seconds".
    """
    # What neighbours do to a processor's time is only to add.
    typical = statistics.median if clock == "seconds" else min
    rows = []
    for part, keys in (("decode", ("batch_size", "num_beams", "tokens")), ("files", ("num_beams", "files"))):
        names = sorted(
            {tuple(found[key] for key in keys) for all_ in answers.values() for a in all_ for found in a[part]}
        )
        for name in names:
            typical_times = {}
            for engine, found in answers.items():
                same = [x for a in found for x in a[part] if tuple(x[key] for key in keys) == name]
                if same:
                    unit = 1000 / name[2] if part == "decode" else 1000 / same[0]["audio_seconds"]
                    typical_times[engine] = typical(x[clock] for x in same) * unit
            rows.append({"part": part, **dict(zip(keys, name, strict=True)), "milliseconds": typical_times})
    return rows


def described(row: dict) -> str:
    beams = "greedy" if row["num_beams"] == 1 else f"{row['num_beams']} beams"
    if row["part"] == "decode":
        return f"batch {row['batch_size']}, {beams}, ms per step"
    return f"{row['files']} file(s), {beams}, ms per second of audio"


def least_ratio(answers: dict[str, list[dict]], row: dict) -> str:
    """The quickest round of CTranslate2 int8 by the slowest of compiled int8 weights, in the setting of a row."""
    keys = row.keys() - {"part", "milliseconds"}
    ours, peer = (
        [x["seconds"] for a in answers[engine] for x in a[row["part"]] if all(x[key] == row[key] for key in keys)]
        for engine in (INT8_COMPILED, CT2_INT8)
    )
    return f"{min(peer) / max(ours):.2f}×"


def draw(rows: list[dict], engines: list[str], path: Path) -> None:
    """Bars of speed in each setting, CTranslate2 int8 being 1."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.subplots()
    reference = CT2_INT8 if CT2_INT8 in engines else engines[0]
    for number, engine in enumerate(engines):
        heights = [row["milliseconds"][reference] / row["milliseconds"].get(engine, float("inf")) for row in rows]
        places = [i + (number - len(engines) / 2) / (len(engines) + 1) for i in range(len(rows))]
        axes.bar(places, heights, 1 / (len(engines) + 1), label=engine)
    axes.axhline(1, color="black", linewidth=0.8, linestyle="--")
    labels = [described(row).replace(", ms per", "\nms per") for row in rows]
    axes.set(ylabel=f"speed, {reference} = 1", xticks=range(len(rows)))
    axes.set_xticklabels(labels, fontsize=7)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a stock checkpoint with its processor")
    parser.add_argument("--ctranslate2", type=Path, help="folder of the same checkpoint for CTranslate2")
    parser.add_argument("--whisper-cpp", type=Path, help="the same checkpoint for whisper.cpp, of ggml_weights.py")
    parser.add_argument("--audio", type=Path, nargs="*", default=[], help="files to transcribe whole (default: none)")
    parser.add_argument("--audio-seconds", type=float, help="of each file, take so much (default: all)")
    parser.add_argument("--file-beams", type=int, nargs="*", default=[1, 5], help="for whole files (default: 1 5)")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8], help="audios at once (default: 1 8)")
    parser.add_argument("--beams", type=int, nargs="*", default=[1, 5], help="hypotheses (default: 1 5)")
    parser.add_argument("--tokens", type=int, default=32, help="per generate; fewer above 32 rows (default: 32)")
    parser.add_argument("--rounds", type=int, default=3, help="of all engines (default: 3)")
    parser.add_argument("--repeats", type=int, default=1, help="of each step measurement in a round (default: 1)")
    parser.add_argument("--threads", type=int, default=2, help="of every engine (default: 2)")
    parser.add_argument("--engines", nargs="*", default=list(ENGINES), choices=ENGINES, help="default: all")
    parser.add_argument(
        "--clock",
        choices=("seconds", "processor_seconds"),
        default="seconds",
        help="processor_seconds: of this process alone, for machines that are not idle; with one thread",
    )
    parser.add_argument("--name", default="peers", help="of the result files")
    arguments = parser.parse_args()
    if arguments.ctranslate2 is None:
        arguments.engines = [engine for engine in arguments.engines if engine not in (CT2, CT2_INT8)]
    if arguments.whisper_cpp is None or not arguments.audio:
        arguments.engines = [engine for engine in arguments.engines if engine != WHISPER_CPP]
    if arguments.clock == "processor_seconds" and arguments.threads > 1:
        parser.error("--clock processor_seconds counts waiting threads as work: give --threads 1")
    torch.set_num_threads(arguments.threads)
    settings = [(batch, beams) for beams in arguments.beams for batch in arguments.batches]
    answers = gather(arguments, lambda b, k: arguments.tokens if b * k <= 32 else arguments.tokens // 4, settings)
    rows = summarise(answers, arguments.clock)
    draw(rows, arguments.engines, RESULTS / f"{arguments.name}.png")
    ratios = [
        (other, CT2_INT8) for other in arguments.engines if other not in (STOCK, EXACT, CT2, CT2_INT8, WHISPER_CPP)
    ]
    ratios += [(other, WHISPER_CPP) for other, _ in ratios]
    ratios = [pair for pair in [*ratios, (EXACT, STOCK)] if set(pair) <= set(arguments.engines)]
    cells = [
        [described(row)]
        + [
            f"{row['milliseconds'][engine]:.1f}" if engine in row["milliseconds"] else ""
            for engine in arguments.engines
        ]
        + [
            f"{row['milliseconds'][b] / row['milliseconds'][a]:.2f}×" if {a, b} <= row["milliseconds"].keys() else ""
            for a, b in ratios
        ]
        for row in rows
    ]
    loads = [answer["load"] for found in answers.values() for answer in found]
    by_processor = arguments.clock == "processor_seconds"
    clock, statistic = ("of processor time", "the least") if by_processor else ("of time", "medians")
    note = (
        f"{arguments.model.name}, float32 but for int8 weights, {arguments.threads} thread(s) each. Milliseconds "
        f"{clock}, {statistic} of {arguments.rounds} alternating rounds of {arguments.repeats} in processes of their "
        "own; ratios of these, above 1 where the first is faster. Load of the machine after each: "
        f"{min(loads):.1f} to {max(loads):.1f} on "
        f"{os.cpu_count()} cores (idle but for this: at most {arguments.threads}). Stock of 40 rows: one round. "
        f"Picture: {arguments.name}.png."
    )
    compiling = [
        max(x["warm_seconds"] for x in answer["decode"])
        for engine, found in answers.items()
        for answer in found
        if engine.endswith("compiled") and answer["decode"]
    ]
    if compiling:
        note += (
            f" A warm-up with compiling took at most {compiling[0]:.0f} s the first time, then {min(compiling):.0f} s."
        )
    if not by_processor and {INT8_COMPILED, CT2_INT8} <= set(arguments.engines):
        least = [least_ratio(answers, row) for row in rows]
        note += f" {INT8_COMPILED} in its slowest round to {CT2_INT8} in its quickest: " + ", ".join(least) + "."
    columns = ["setting", *arguments.engines, *(f"{a} : {b}" for a, b in ratios)]
    raw = {"rows": rows, "clock": arguments.clock, "answers": answers, "peers": peer_versions()}
    write_results(arguments.name, note, columns, cells, raw)


def peer_versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("ctranslate2", "faster-whisper", "pywhispercpp"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
