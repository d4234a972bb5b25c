"""Peak memory of decoding with and without times of tokens, stock Whisper beside the lossless conversion.

    python benchmarks/word_times_memory.py MODEL FILE

Every number is the peak resident set of a fresh process that loads the checkpoint and decodes once: windows of 30 s of
the file, greedily. The times that it finds are compared with those of stock Whisper in float32.
"""

import argparse
import difflib
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from result_files import write_results
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.conversion.source.processor import save_processor
from whisper_mla.transcription.audio import SAMPLING_RATE, read_audio

WINDOW = 30 * SAMPLING_RATE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a stock checkpoint")
    parser.add_argument("file", type=Path, help="audio, long enough for the largest batch")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float16"])
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.model, arguments.file, *arguments.measure)
        return
    torch.set_num_threads(1)
    rows, raw = [], []
    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / "converted"
        WhisperMLAForConditionalGeneration.from_whisper(arguments.model, dtype=torch.float32).save_pretrained(converted)
        save_processor(arguments.model, converted)
        expected: dict[int, dict] = {}
        for dtype in arguments.dtypes:
            for batch_size in arguments.batch_sizes:
                for name, checkpoint in (("stock", arguments.model), ("converted", converted)):
                    without, with_times = (
                        fresh_process(checkpoint, arguments.file, batch_size, dtype, times) for times in (False, True)
                    )
                    expected.setdefault(batch_size, with_times)
                    ratio = with_times["bytes"] / without["bytes"]
                    apart = compare(with_times, expected[batch_size])
                    raw.append(
                        {"model": name, "dtype": dtype, "batch_size": batch_size, "ratio": ratio, **apart}
                        | {"without": without["bytes"], "with": with_times["bytes"], "length": with_times["length"]}
                    )
                    rows.append(
                        [f"{name}, {dtype}, batch {batch_size}", str(with_times["length"])]
                        + [f"{run['bytes'] / 2**20:,.0f}" for run in (without, with_times)]
                        + [f"{ratio:.2f}×", apart["said"]]
                    )
                    print(rows[-1], flush=True)
    write_results(
        "word_times_memory",
        "Peak resident memory of a fresh process in MiB, its libraries and weights included: "
        "generate(return_timestamps=True) without and with return_token_timestamps=True; and how far the times of its "
        "tokens are at most from those of stock Whisper in float32, where both have the same tokens. In float16 some "
        "words are others, windows are then cut elsewhere, and a word in another window has another time. "
        "What a process takes while it starts and loads hides what decoding takes below it.",
        ["model", "tokens", "without", "with times", "ratio", "times apart from stock float32's"],
        rows,
        raw,
    )


def fresh_process(checkpoint, file: Path, batch_size: int, dtype: str, times: bool) -> dict:
    """What `measure` prints, in a process of its own."""
    program = [sys.executable, __file__, str(checkpoint), str(file)]
    command = [*program, "--measure", str(batch_size), dtype, "times" if times else "none", "1"]
    # The C library gives back what is freed at once: without, how much it keeps differs from run to run.
    library = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    variables = {**os.environ, **library, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measure(checkpoint: str, file: Path, batch: str, dtype: str, times: str, threads: str) -> None:
    """Decode once, and print the peak, the tokens and their times."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(int(threads))
    audio = read_audio(file)
    windows = [audio[start * WINDOW : (start + 1) * WINDOW] for start in range(int(batch))]
    if any(len(window) < WINDOW for window in windows):
        raise ValueError(f"{file}: shorter than {batch} windows of 30 s.")
    model = AutoModelForSpeechSeq2Seq.from_pretrained(checkpoint, dtype=dtype).eval()
    processor = AutoProcessor.from_pretrained(checkpoint)
    inputs = processor.feature_extractor(
        windows, sampling_rate=SAMPLING_RATE, return_tensors="pt", return_attention_mask=True
    )
    options = {"language": "en", "task": "transcribe"} if model.generation_config.is_multilingual else {}
    if times == "times":
        options["return_token_timestamps"] = True
    with torch.inference_mode():
        output = model.generate(
            inputs.input_features.to(model.dtype),
            attention_mask=inputs.attention_mask,
            return_timestamps=True,
            **options,
        )
    found = {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    sequences = output["sequences"] if times == "times" else output
    found |= {"sequences": sequences.tolist(), "length": sequences.shape[1]}
    if times == "times":
        found["times"] = output["token_timestamps"].tolist()
    print(json.dumps(found))


def compare(found: dict, expected: dict) -> dict:
    """How far the times of tokens are apart where both have the same tokens, and how many are no numbers."""
    apart, same, count, broken = 0.0, 0, 0, 0
    for tokens, times, other, other_times in zip(
        found["sequences"], found["times"], expected["sequences"], expected["times"], strict=True
    ):
        count += len(times)
        broken += sum(time != time or time < 0 for time in times)
        for block in difflib.SequenceMatcher(None, tokens, other, autojunk=False).get_matching_blocks():
            same += block.size
            pairs = zip(times[block.a :][: block.size], other_times[block.b :], strict=False)
            apart = max([apart, *(abs(a - b) for a, b in pairs)])
    said = f"{broken} of {count} are no times" if broken else f"{apart:.2f} s ({same} of {count} tokens)"
    return {"tokens": count, "same_tokens": same, "not_times": broken, "seconds_apart": apart, "said": said}


if __name__ == "__main__":
    main()
