"""What a compiled int8 step gains by two ways around slow calls, in one process and in turn.

Products called from C++ instead of through Python (`transcription/int8_operator.py`), and the best continuations of
beams found in parts instead of by `torch.topk` (`beam_top_k.py`). Random weights; the encoder output is given.
"""

import copy
import statistics

import torch
import transformers
import typer
from result_files import write_results
from transformers import WhisperForConditionalGeneration
from transformers.utils.logging import disable_progress_bar, tqdm

from whisper_mla import WhisperMLAForConditionalGeneration, beam_top_k, quantize_weights
from whisper_mla.configuration import whisper_config
from whisper_mla.evaluation.decode_timing import decode
from whisper_mla.transcription import compiled_decoding
from whisper_mla.transcription.compiled_decoding import compile_decoding

SETTINGS = [(1, 1), (1, 5), (8, 1), (8, 5)]  # audios at once, beams
PYTHON, CPP, WHOLE = "products through Python", "both (ours)", "torch.topk"
_QUICK = beam_top_k._WORTH_IT


def through_python(model: WhisperMLAForConditionalGeneration) -> WhisperMLAForConditionalGeneration:
    """`model` compiled without the operator in C++."""
    call, compiled_decoding.call_products_from_cpp = compiled_decoding.call_products_from_cpp, lambda model: None
    try:
        return compile_decoding(model)
    finally:
        compiled_decoding.call_products_from_cpp = call


def main(
    size: str = typer.Option("base", help="Whisper's dimensions."),
    tokens: int = typer.Option(32, help="Tokens per generate."),
    rounds: int = typer.Option(7, min=3, help="Alternations; medians are reported."),
    threads: int = typer.Option(2, help="CPU threads."),
    name: str = typer.Option("step_overhead", help="Name of the result files."),
):
    """Time decoding with each of the two, and with both.

    Example: python benchmarks/step_overhead.py --rounds 3 --name quick
    """
    transformers.logging.set_verbosity_error()
    disable_progress_bar()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    stock = WhisperForConditionalGeneration(whisper_config(size, encoder_layers=1)).eval()  # the encoder is not run
    rounded = quantize_weights(WhisperMLAForConditionalGeneration.from_whisper(stock))
    python, ours = through_python(copy.deepcopy(rounded)), compile_decoding(rounded)
    rows, raw = [], []
    for batch_size, num_beams in tqdm(SETTINGS, desc="Settings"):
        ways = {PYTHON: python, CPP: ours} | ({WHOLE: ours} if num_beams > 1 else {})
        times: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(rounds + 1):
            for way, model in ways.items():
                beam_top_k._WORTH_IT = 10**9 if way == WHOLE else _QUICK
                milliseconds, _ = decode(model, batch_size, num_beams, tokens)
                if turn > 0:  # the first compiles
                    times[way].append(milliseconds)
        beam_top_k._WORTH_IT = _QUICK
        medians = {way: statistics.median(found) for way, found in times.items()}
        raw.append({"batch_size": batch_size, "num_beams": num_beams, "ms_per_token": times})
        rows.append(
            [f"batch {batch_size}" + (f", {num_beams} beams" if num_beams > 1 else "")]
            + [f"{medians[way]:.1f}" if way in medians else "" for way in (CPP, PYTHON, WHOLE)]
            + [f"{medians[way] / medians[CPP]:.2f}×" if way in medians else "" for way in (PYTHON, WHOLE)]
        )
    note = (
        f"Milliseconds per token of generate() of {tokens}, medians of {rounds} alternating runs in one process; "
        f"random weights of whisper-{size}'s dimensions, int8, compiled steps. Ratios: how much longer it takes so."
    )
    columns = ["setting", CPP, f"with {PYTHON}", f"with {WHOLE}", f"{PYTHON} : ours", f"{WHOLE} : ours"]
    write_results(name, note, columns, rows, raw)


if __name__ == "__main__":
    typer.run(main)
