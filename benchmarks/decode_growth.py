"""Time of one decoding step as work grows: with the text's position, the number of audios, and beams.

    python benchmarks/decode_growth.py MODEL

Real weights, random encoder output, stock Whisper and its conversions in turn. Times between the steps of one
`generate`, median over the steps of an interval; the first step, in which stock Whisper projects the audio, is left
out. Where all logits are read (by a logits processor), greedy decoding cannot round the vocabulary projection.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
import transformers
from matplotlib.figure import Figure
from result_files import RESULTS, write_results
from rich.progress import track
from transformers import WhisperForConditionalGeneration

from whisper_mla import WhisperMLAForConditionalGeneration, quantize_weights
from whisper_mla.evaluation.decode_timing import step_times

READ = "exact, all logits read"
# Text positions that one median is taken over.
INTERVALS = [(1, 32), (32, 96), (96, 160), (160, 224), (224, 288), (288, 352), (352, 416), (416, 447)]


def make_models(source: str) -> dict[str, torch.nn.Module]:
    stock = WhisperForConditionalGeneration.from_pretrained(source, dtype=torch.float32).eval()
    exact = WhisperMLAForConditionalGeneration.from_whisper(stock)
    exact.expect_many_steps()
    rounded = WhisperMLAForConditionalGeneration.from_whisper(stock, latent_dtype="int8", method="joint_svd")
    int8 = quantize_weights(WhisperMLAForConditionalGeneration.from_whisper(stock))
    return {
        "stock": stock,
        "exact": exact,
        READ: exact,
        "exact, int8 latents": rounded,
        "exact, int8 weights": int8,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a stock checkpoint")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--beam-batches", type=int, nargs="*", default=[1, 4, 8], help="with 5 beams")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--name", default="decode_growth")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    models = make_models(arguments.model)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in models}

    def note(name: str, setting: str, times: list[float]) -> None:
        found[name].setdefault(setting, []).append(statistics.median(times))

    work: list[Callable[[str], None]] = []

    def by_position(name: str) -> None:
        times = step_times(models[name], 1, 1, 447, name == READ)
        for start, end in INTERVALS:
            note(name, f"positions {start}–{end}", times[start - 1 : end - 1])

    work.append(by_position)
    for beams, batches in ((1, arguments.batches), (5, arguments.beam_batches)):
        for batch in batches:
            label = f"batch {batch}, {'greedy' if beams == 1 else f'{beams} beams'}"
            tokens = max(4, 64 // (batch * beams)) + 2
            work.append(
                lambda name, b=batch, k=beams, n=tokens, text=label: note(
                    name, text, step_times(models[name], b, k, n, name == READ)
                )
            )
    with torch.inference_mode():
        for number in track(range(arguments.rounds), description="Rounds"):
            for measure in work:
                for name in models if number % 2 == 0 else reversed(models):
                    measure(name)
    typical = {name: {text: statistics.median(times) for text, times in all_.items()} for name, all_ in found.items()}
    settings = list(typical["stock"])
    draw(typical, arguments.name)
    rows = [
        [text]
        + [f"{typical[name][text]:.1f}" for name in models]
        + [f"{typical['stock'][text] / typical[name][text]:.2f}×" for name in list(models)[1:]]
        for text in settings
    ]
    first, last = settings[0], settings[len(INTERVALS) - 1]
    rows.append(
        [f"growth, {last} : {first}"]
        + [f"{typical[name][last] / typical[name][first]:.2f}" for name in models]
        + ["–"] * (len(models) - 1)
    )
    note_text = (
        f"{arguments.model}, float32, greedy at batch 1 where nothing else is said. Milliseconds of a step, medians of "
        f"{arguments.rounds} alternating rounds; ratios: stock's time by this one's. Picture: {arguments.name}.png."
    )
    columns = ["setting", *models, *(f"stock : {name}" for name in list(models)[1:])]
    write_results(arguments.name, note_text, columns, rows, found)


def draw(typical: dict[str, dict[str, float]], name: str) -> None:
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    middles = [(start + end) / 2 for start, end in INTERVALS]
    for model, times in typical.items():
        left.plot(middles, list(times.values())[: len(INTERVALS)], marker="o", label=model)
        rows = [(text, value) for text, value in times.items() if text.startswith("batch")]
        right.plot(
            [text.replace("batch ", "").replace(", ", "\n") for text, _ in rows], [v for _, v in rows], marker="o"
        )
    left.set(xlabel="text position", ylabel="ms per step, batch 1", ylim=0)
    right.set(xlabel="audios, hypotheses", ylabel="ms per step", yscale="log")
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(RESULTS / f"{name}.png", dpi=110)


if __name__ == "__main__":
    main()
