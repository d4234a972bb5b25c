"""Times of tokens in half precision against those of stock Whisper in float32.

    python benchmarks/word_times_precision.py MODEL FILE…

One file of at most 30 s at a time, greedily, with stock Whisper and with the lossless conversion. Tokens are compared
up to the first that is another: what follows is another text.
"""

import argparse
from collections import Counter
from pathlib import Path

import torch
import transformers
from result_files import write_results
from rich.progress import track
from transformers import WhisperForConditionalGeneration

from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.conversion.source.processor import load_processor
from whisper_mla.transcription.audio import SAMPLING_RATE, read_audio

FRAME = 0.02  # seconds


def times(model, inputs: dict) -> tuple[list[int], list[float]]:
    """Tokens of one file, and when each was spoken."""
    with torch.inference_mode():
        features = inputs["input_features"].to(model.dtype)
        found = model.generate(
            features,
            attention_mask=inputs["attention_mask"],
            return_token_timestamps=True,
            return_dict_in_generate=True,
        )
    return found["sequences"][0].tolist(), found["token_timestamps"][0].tolist()


def frames_apart(found: tuple[list, list], expected: tuple[list, list]) -> list[int | None]:
    """Of each token of the common beginning by how many frames its time differs; None: it has no time."""
    apart: list[int | None] = []
    for token, time, other, other_time in zip(*found, *expected, strict=False):
        if token != other:
            break
        apart.append(round(abs(time - other_time) / FRAME) if time >= 0 else None)
    return apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a stock checkpoint")
    parser.add_argument("files", nargs="+", type=Path, help="audio, 30 s at most each")
    parser.add_argument("--name", default="word_times_precision")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    processor = load_processor(arguments.model)

    def stock(dtype: torch.dtype) -> WhisperForConditionalGeneration:
        return WhisperForConditionalGeneration.from_pretrained(arguments.model, dtype=dtype).eval()

    inputs = [
        processor.feature_extractor(
            read_audio(path), sampling_rate=SAMPLING_RATE, return_tensors="pt", return_attention_mask=True
        )
        for path in arguments.files
    ]
    reference = stock(torch.float32)
    expected = [times(reference, one) for one in track(inputs, "Stock, float32")]
    rows, raw = [], []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for name in ("stock", "converted"):
            if (name, dtype) == ("stock", torch.float32):
                continue
            model = stock(dtype)
            if name == "converted":
                model = WhisperMLAForConditionalGeneration.from_whisper(model)
            label = f"{name}, {str(dtype).removeprefix('torch.')}"
            apart: list[int | None] = []
            for one, other in track(list(zip(inputs, expected, strict=True)), label):
                apart += frames_apart(times(model, one), other)
            counts = Counter(apart)
            most = max(frames for frames in counts if frames is not None)
            more = sum(count for frames, count in counts.items() if frames is not None and frames > 1)
            cells = [counts[0], counts[1], more, counts[None]]
            rows.append([label, str(len(apart)), *map(str, cells), f"{most * FRAME:.2f}"])
            raw.append({"model": label, "tokens": len(apart), "frames apart": {str(k): v for k, v in counts.items()}})
            print(rows[-1], flush=True)
    write_results(
        arguments.name,
        f"{Path(arguments.model).name}, {len(inputs)} files, {sum(len(tokens) for tokens, _ in expected)} tokens of "
        "stock Whisper in float32: how far the times of the same tokens are from its. Compared are tokens up to the "
        "first of a file that is another; a frame is 0.02 s.",
        ["model", "tokens compared", "equal", "one frame apart", "more", "no times", "s apart at most"],
        rows,
        raw,
    )


if __name__ == "__main__":
    main()
