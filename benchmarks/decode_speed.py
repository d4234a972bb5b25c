"""Time per decoded token, stock Whisper beside converted models, alternating in one process.

Random weights: speed does not depend on their values. The encoder output is given, so only decoding is timed: one
`generate` of a fixed number of tokens, the first step (which in stock Whisper projects the audio's keys and values)
included.
"""

import statistics

import torch
import transformers
import typer
from result_files import write_results
from transformers import WhisperForConditionalGeneration
from transformers.utils.logging import disable_progress_bar, tqdm

from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.configuration import whisper_config
from whisper_mla.evaluation.decode_timing import decode
from whisper_mla.transcription.compiled_decoding import compile_decoding

# dtype, audios at once, beams
SETTINGS = [("float32", 1, 1), ("float32", 8, 1), ("bfloat16", 1, 1), ("bfloat16", 8, 1), ("float32", 2, 5)]


def main(
    size: str = typer.Option("small", help="Whisper's dimensions."),
    tokens: list[int] = typer.Option([32, 96], help="Tokens per generate; give it several times for several."),  # noqa: B008
    rounds: int = typer.Option(5, min=3, help="Alternations; medians are reported."),
    threads: int = typer.Option(2, help="CPU threads."),
    device: str = typer.Option("cpu", help="cpu or cuda."),
    name: str = typer.Option("decode_speed", help="Name of the result files."),
):
    """Time stock Whisper, the exact conversion and the same with compiled steps, in turn.

    Example: python benchmarks/decode_speed.py --tokens 32 --rounds 3 --name quick
    """
    transformers.logging.set_verbosity_error()
    disable_progress_bar()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    # One encoder layer: the encoder is not run.
    original = WhisperForConditionalGeneration(whisper_config(size, encoder_layers=1)).eval()
    rows, raw = [], []
    for dtype, batch_size, num_beams in tqdm(SETTINGS, desc="Settings"):
        stock = original.to(device, getattr(torch, dtype))
        models = {
            "stock": stock,
            "exact": WhisperMLAForConditionalGeneration.from_whisper(stock),
            "compiled": compile_decoding(WhisperMLAForConditionalGeneration.from_whisper(stock)),
        }
        models["exact"].expect_many_steps()
        for count in tokens:
            times: dict[str, list[float]] = {model: [] for model in models}
            outputs = {model: decode(models[model], batch_size, num_beams, 4)[1] for model in models}  # warm-up
            for _ in range(rounds):
                for model in models:
                    milliseconds, outputs[model] = decode(models[model], batch_size, num_beams, count)
                    times[model].append(milliseconds)
            speedup = {
                model: statistics.median(a / b for a, b in zip(times["stock"], times[model], strict=True))
                for model in models
            }
            equal = torch.equal(outputs["stock"], outputs["exact"])
            setting = {"dtype": dtype, "batch_size": batch_size, "num_beams": num_beams, "tokens": count}
            raw.append({**setting, "ms_per_token": times, "speedup": speedup, "exact_tokens_equal": equal})
            rows.append(
                [f"{dtype}, batch {batch_size}" + (f", {num_beams} beams" if num_beams > 1 else ""), str(count)]
                + [f"{statistics.median(times[model]):.1f}" for model in models]
                + [f"{speedup[model]:.2f}×" for model in ("exact", "compiled")]
                + ["yes" if equal else "no"]
            )
    note = (
        f"Milliseconds per token of generate(), medians of {rounds} alternations; speed-up is the median of the paired "
        f"ratios to stock Transformers. Random weights of whisper-{size}'s dimensions, encoder output given."
    )
    columns = ["setting", "tokens", "stock", "exact", "exact, compiled"]
    columns += ["exact / stock", "compiled / stock", "exact: equal tokens"]
    write_results(name, note, columns, rows, raw)


if __name__ == "__main__":
    typer.run(main)
