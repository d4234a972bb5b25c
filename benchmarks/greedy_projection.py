"""The vocabulary projection of greedy decoding: in 8 bits with the largest logits in float32, beside float32.

    python benchmarks/greedy_projection.py MODEL FILE…

Utterances are decoded by the stock model and by the exact conversion, one by one and eight together, without and with
timestamps; the tokens are compared. On the states of the stock model it is then counted how many tokens of a step are
computed again in float32, and both projections are timed in turn.
"""

import argparse
import time
from pathlib import Path
from statistics import median

import torch
from result_files import write_results
from torch import Tensor
from transformers import WhisperForConditionalGeneration
from transformers.utils.logging import tqdm

from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.conversion.source.processor import load_processor
from whisper_mla.rounded_projection import RoundedProjection, greedy_logits
from whisper_mla.transcription.audio import SAMPLING_RATE, read_audio

REPEATS = 31
TEXTS = (1, 2, 4, 8, 16, 32)


def equal_tokens(stock, ours, features: Tensor) -> list[list[str]]:
    """Rows: how many utterances have the tokens of stock Whisper."""
    language = {"language": "en"} if stock.generation_config.is_multilingual else {}
    rows = []
    for timestamps in (False, True):
        for batch in (1, 8):
            equal = 0
            for part in tqdm(features.split(batch), desc=f"Decoding, {batch} at once"):
                way = {"return_timestamps": timestamps, **language}
                found, expected = (model.generate(part, **way) for model in (ours, stock))
                equal += len(part) if torch.equal(found, expected) else 0
            times = "with" if timestamps else "without"
            rows.append(
                [f"tokens equal to stock's, batches of {batch}, {times} timestamps", f"{equal} of {len(features)}"]
            )
    return rows


def stock_states(stock, features: Tensor) -> Tensor:
    """What the vocabulary projection reads at every step but the first: `[steps, d_model]`."""
    states: list[Tensor] = []
    hook = stock.proj_out.register_forward_hook(lambda module, inputs, output: states.append(inputs[0][:, -1]))
    for part in features.split(8):
        stock.generate(part)
    hook.remove()
    return torch.cat(states)


def milliseconds(ways: dict) -> dict[str, float]:
    """Medians, the ways in turn, with other data between them as in a step."""
    other, times = torch.randn(16_000_000), {way: list[float]() for way in ways}
    for _ in range(REPEATS):
        for way, work in ways.items():
            other.add_(1)
            start = time.perf_counter()
            work()
            times[way].append((time.perf_counter() - start) * 1000)
    return {way: median(found) for way, found in times.items()}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a stock checkpoint")
    parser.add_argument("files", nargs="+", type=Path, help="audio, up to 30 s each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", default="greedy_projection", help="of the result files")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    processor = load_processor(arguments.model)
    with torch.inference_mode(False):
        stock = WhisperForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32).eval()
        ours = WhisperMLAForConditionalGeneration.from_whisper(stock)
        ours.expect_many_steps()
    audios = [read_audio(path) for path in arguments.files]
    features = processor(audios, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_features
    rows = equal_tokens(stock, ours, features)

    weight, end = stock.proj_out.weight.detach(), stock.generation_config.eos_token_id
    forbidden = torch.tensor([token for token in stock.generation_config.suppress_tokens if token < end])
    start = time.perf_counter()
    projection = RoundedProjection(weight)
    rows.append(["rounding the matrix, once, ms", f"{(time.perf_counter() - start) * 1000:.0f}"])
    states, again = stock_states(stock, features), list[int]()
    for state in states:
        rough = projection.rough_logits(state[None])[0][0, :end]
        found = greedy_logits(state[None], weight, forbidden, projection.number, end)[0, :end]
        again.append(int((found != rough).sum()))
    counts = torch.tensor(again).float()
    for name, quantile in (("median", 0.5), ("99 of 100 steps", 0.99), ("most", 1.0)):
        rows.append([f"text tokens computed again per step, {name}", f"{counts.quantile(quantile):.0f}"])
    raw = {"steps": len(states), "computed_again": again, "milliseconds": {}}
    for texts in TEXTS:
        some = states[:texts]
        ways = {
            "float32": lambda some=some: some @ weight.T,
            "8 bits": lambda some=some: greedy_logits(some, weight, forbidden, projection.number, end),
        }
        found = raw["milliseconds"][texts] = milliseconds(ways)
        ratio = found["float32"] / found["8 bits"]
        rows.append([f"{texts} text(s), ms", f"{found['float32']:.2f} to {found['8 bits']:.2f} ({ratio:.2f}×)"])
    note = (
        f"{Path(arguments.model).name}, {len(audios)} utterances, {len(states)} steps of the stock model. Milliseconds "
        f"of the projection alone, medians of {REPEATS} in turn: float32 to 8 bits with the largest in float32."
    )
    write_results(arguments.name, note, ["what", "result"], rows, raw)


if __name__ == "__main__":
    main()
