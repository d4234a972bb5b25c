"""What it costs to unpack rounded latents in blocks of audios: time of a step, blocks beside all at once, in turns.

    python benchmarks/latent_blocks.py --size base

Random weights, random encoder output; medians of the steps of one `generate`, the first left out, and of the rounds.
"""

import statistics

import torch
import transformers
import typer
from result_files import write_results
from rich.progress import track

from whisper_mla import WhisperMLAForConditionalGeneration, audio_blocks
from whisper_mla.configuration import WhisperMLAConfig, whisper_config
from whisper_mla.evaluation.decode_timing import step_times

ALL = 2**60


def main(
    size: str = typer.Option("base", help="Whisper's dimensions."),
    batch_size: list[int] = typer.Option([1, 8, 64], help="Audios; repeat."),  # noqa: B008
    dtype: list[str] = typer.Option(["float32", "bfloat16"], help="Repeat."),  # noqa: B008
    tokens: int = typer.Option(8, min=3),
    rounds: int = typer.Option(3, min=1),
    threads: int = typer.Option(2, min=1),
    name: str = typer.Option("latent_blocks", help="Of the result files."),
):
    """One row for each dtype and batch."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    allowed = audio_blocks.UNPACKED_BYTES
    rows, raw = [], []
    for kind in dtype:
        models = {}
        for latents in (None, "int8", "int4"):
            config = WhisperMLAConfig.from_whisper_config(whisper_config(size, encoder_layers=1), latent_dtype=latents)
            model = WhisperMLAForConditionalGeneration(config).eval().to(getattr(torch, kind))
            if latents is None:
                models["exact"] = (model, ALL)
            else:
                models |= {f"{latents}, all at once": (model, ALL), f"{latents}, blocks": (model, allowed)}
        for batch in batch_size:
            found: dict[str, list[float]] = {label: [] for label in models}
            for number in track(range(rounds), description=f"{kind}, batch {batch}"):
                for label in list(models)[:: 1 if number % 2 == 0 else -1]:
                    model, audio_blocks.UNPACKED_BYTES = models[label]
                    with torch.inference_mode():
                        found[label].append(statistics.median(step_times(model, batch, 1, tokens)))
            typical = {label: statistics.median(times) for label, times in found.items()}
            ratios = [
                statistics.median(a / b for a, b in zip(found[f"{d}, blocks"], found[f"{d}, all at once"], strict=True))
                for d in ("int8", "int4")
            ]
            one = config.max_source_positions * config.d_model * getattr(torch, kind).itemsize
            count = -(-batch // max(1, allowed // one))
            cells = [f"{kind}, batch {batch}", str(count), *(f"{value:.1f}" for value in typical.values())]
            rows.append([*cells, *(f"{ratio:.2f}×" for ratio in ratios)])
            raw.append({"dtype": kind, "batch_size": batch, "blocks": count, "ms_per_step": found})
            print(rows[-1], flush=True)
    note = (
        f"Milliseconds of a step of whisper-{size}'s dimensions, greedy, medians of {rounds} alternating rounds: "
        f"latents unpacked for all audios at once, and in blocks of at most {allowed // 2**20} MiB. Last: time in "
        "blocks by time at once, medians of the rounds' ratios; with one block both run the same code."
    )
    columns = ["setting", "blocks", *found, "int8: blocks / at once", "int4: blocks / at once"]
    write_results(name, note, columns, rows, raw)


if __name__ == "__main__":
    typer.run(main)
