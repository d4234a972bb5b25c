"""What makes the audio's latent smaller, and what each of it costs: KL to stock with the text's latents exact.

    python benchmarks/audio_latent_study.py --model whisper-tiny.en --data SPEECH --name audio_latent_study

MODEL is a stock checkpoint with its processor, SPEECH a folder with `calibration` and `dev`, folders of audio. It is
simulated: stock cross-attention reads frames that were rounded, projected or left out. An interrupted run goes on from
`NAME.partial.jsonl`.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from accuracy_real import some_minutes
from result_files import RESULTS, write_results
from torch import Tensor
from tqdm import tqdm
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.modeling_outputs import BaseModelOutput

from whisper_mla.configuration import WhisperMLAConfig
from whisper_mla.conversion import calibrate
from whisper_mla.conversion.calibration.bundled_speech import SPEECH, spoken
from whisper_mla.conversion.calibration.clips import Clip, read_clips
from whisper_mla.conversion.calibration.make_examples import make_examples
from whisper_mla.conversion.methods import METHODS
from whisper_mla.conversion.methods.mixed_factors import for_mixed_bits
from whisper_mla.conversion.mixed_choice import DAMPING
from whisper_mla.conversion.ranks.bit_allocation import allocate_bits
from whisper_mla.conversion.ranks.quality import HeldOut
from whisper_mla.conversion.source.latent_weights import latent_weights
from whisper_mla.conversion.source.latents import latents_of
from whisper_mla.latent_quantization import hadamard, round_latent

Change = Callable[[Tensor, int], Tensor]  # frames `[1, frames, d]` and samples of the clip, to frames
SHRINK = [1 - 0.05 * i for i in range(11)]


class Dev:
    """Clips whose encoder states can be changed before cross-attention reads them."""

    def __init__(self, stock, processor, clips: list[Clip]):
        self.stock, self.clips = stock, clips
        examples = make_examples(stock, processor, [Clip(clip.name, clip.samples) for clip in clips], **spoken(stock))
        self.encoder = stock.get_encoder()
        self.states: list[Tensor] = []
        stock.get_encoder = self._remember
        self.held_out = HeldOut(stock, examples, batch_size=1)
        self.change: Change = lambda states, samples: states
        stock.get_encoder = self._changed

    def _remember(self):
        def encode(features):
            self.states.append(self.encoder(features).last_hidden_state)
            return BaseModelOutput(last_hidden_state=self.states[-1])

        return encode

    def _changed(self):
        states, clip = next(self.order)
        return lambda _: BaseModelOutput(last_hidden_state=self.change(states, len(clip.samples)))

    def measure(self, change: Change):
        self.change, self.order = change, iter(zip(self.states, self.clips, strict=True))
        return self.held_out.measure(self.stock)


def rounded(bits: int, size: int, shrink: list[float]) -> Change:
    """Groups of `size`, rotated, between minimum and maximum, or within the shrunk range that has the least error."""
    rotation = hadamard(size)

    def change(states: Tensor, _: int) -> Tensor:
        groups = states.unflatten(-1, (-1, size)) @ rotation
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        best, least = groups, torch.full_like(low, torch.inf)
        for share in shrink:
            start = ((low + high) / 2 - share * (high - low) / 2).half().float()
            scale = (share * (high - low) / (2**bits - 1)).half().float().clamp(min=1e-7)
            found = ((groups - start) / scale).round().clamp(0, 2**bits - 1) * scale + start
            error = (found - groups).square().sum(-1, keepdim=True)
            best, least = torch.where(error < least, found, best), torch.minimum(error, least)
        return (best @ rotation).flatten(-2)

    return change


class Directions:
    """Principal directions of the audio's latent, from calibration.

    Args:
        stock: the model.
        statistics: of calibration.
        method, options: that order directions.
    """

    def __init__(self, stock, statistics, method: str, **options):
        self.latent = next(
            latent for latent in latents_of(WhisperMLAConfig.from_whisper_config(stock.config)) if latent.is_cross
        )
        weights = latent_weights(self.latent, stock.state_dict())
        factors = METHODS[method](weights, statistics.moments(self.latent), stock.config.d_model, **options)
        # In place of keys, the frames themselves.
        self.factors = replace(factors, key_up=torch.linalg.inv(factors.down)[None])

    def of_rank(self, rank: int) -> Change:
        mean, down, up = (part.float() for part in (self.factors.mean, self.factors.down, self.factors.key_up[0]))
        return lambda states, _: ((states - mean) @ down[:rank].T) @ up[:, :rank].T + mean

    def mixed(self, bits_per_value: float, size: int) -> tuple[Change, list[int]]:
        costs = self.factors.singular_values.square()
        budget = bits_per_value / 8 * len(costs) * self.latent.positions
        bits = allocate_bits({self.latent: costs}, budget, size)[self.latent]
        found = for_mixed_bits(self.factors.truncated(size * len(bits)), size)
        mean, down, up = (part.float() for part in (self.factors.mean, found.down, found.key_up[0]))
        return lambda states, _: round_latent((states - mean) @ down.T, bits, size) @ up.T + mean, bits


def without_padding(seconds: float) -> Change:
    """Frames up to `seconds` after the end of the clip."""
    return lambda states, samples: states[:, : min(int(samples / 320 + 50 * seconds), states.shape[1])]


def trials(stock, processor, data: Path) -> Iterator[tuple[str, str, Callable[[], tuple[Change, dict]]]]:
    """What is tried: its name, bits per value as text, and what makes the change and tells more of it."""
    width = stock.config.d_model

    def groups(bits, size, shrink):
        return lambda: (rounded(bits, size, shrink), {})

    for bits, size in ((4, 32), (4, 64), (4, 128), (3, 32), (3, 64), (3, 128), (2, 32), (2, 64)):
        yield f"{bits} bits in groups of {size}", f"{bits + 32 / size:g}", groups(bits, size, [1.0])
        yield f"{bits} bits in groups of {size}, scale searched", f"{bits + 32 / size:g}", groups(bits, size, SHRINK)
    for seconds in (0.0, 0.5, 2.0, 5.0):
        name = f"frames later than {seconds:g} s after the speech left out"
        yield name, "16", lambda seconds=seconds: (without_padding(seconds), {})

    known: dict[float, object] = {}

    def statistics(minutes: float):
        if minutes not in known:
            clips = some_minutes(SPEECH if minutes == 2.3 else data / "calibration", minutes)
            start = time.monotonic()
            found = calibrate(stock, clips, processor, encoder=False, held_out=0, **spoken(stock))
            known[minutes] = found, {"seconds": time.monotonic() - start, "clips": len(clips)}
        return known[minutes]

    def ranked(rank, method):
        return lambda: (Directions(stock, statistics(2.3)[0], method).of_rank(rank), {})

    def mixed(bits, size, minutes, method="fisher", damping=DAMPING):
        def make():
            found, told = statistics(minutes)
            change, row = Directions(stock, found, method, damping=damping).mixed(bits, size)
            return change, {**told, "bits": row}

        return make

    for rank in (width * 3 // 4, width // 2):
        yield f"fisher, rank {rank}, not rounded", f"{16 * rank / width:g}", ranked(rank, "fisher")
    for bits in (4, 3.5, 3, 2.5, 2, 1.5):
        yield "mixed bits, bundled speech", f"{bits:g}", mixed(bits, 32, 2.3)
    yield "mixed bits, groups of 8", "2.5", mixed(2.5, 8, 2.3)
    yield "mixed bits, groups of 64", "2.5", mixed(2.5, 64, 2.3)
    yield "mixed bits, directions of the covariance method", "2.5", mixed(2.5, 32, 2.3, "covariance")
    for damping in (0.01, 0.03, 0.3):
        yield f"mixed bits, damping {damping:g}", "2.5", mixed(2.5, 32, 2.3, damping=damping)
    for minutes in (1, 2, 5):
        yield f"mixed bits, {minutes} min of calibration", "2.5", mixed(2.5, 32, minutes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a stock checkpoint with its processor")
    parser.add_argument("--data", type=Path, required=True, help="folder with calibration/ and dev/")
    parser.add_argument("--name", required=True, help="of the result files")
    parser.add_argument("--every", type=int, default=3, help="of dev, take every so manyth clip (default: 3)")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    partial = RESULTS / f"{arguments.name}.partial.jsonl"
    done = {}
    if partial.exists():
        done = {(row["name"], row["size"]): row for row in map(json.loads, partial.read_text().splitlines())}
    stock = WhisperForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32).eval()
    processor = WhisperProcessor.from_pretrained(arguments.model)
    all_trials = list(trials(stock, processor, arguments.data))
    dev = Dev(stock, processor, read_clips(arguments.data / "dev")[:: arguments.every])
    encode = stock.get_encoder
    for name, size, make in tqdm(all_trials, unit="trial"):
        if (name, size) in done:
            continue
        stock.get_encoder = lambda: dev.encoder  # for calibration
        change, told = make()
        stock.get_encoder = encode
        with torch.no_grad():
            quality = dev.measure(change)
        row = {"name": name, "size": size, "kl": quality.kl, "token_agreement": quality.token_agreement, **told}
        done[name, size] = row
        with open(partial, "a") as file:
            file.write(json.dumps(row) + "\n")
    rows = [done[name, size] for name, size, _ in all_trials]
    note = (
        f"{arguments.model.name}, float32, {len(dev.clips)} dev utterances, teacher-forced on stock's transcripts; the "
        "text's latents are exact. Bits per value of d_model, shares of scales and minima included (of mixed bits all "
        "but the 16 of a frame's scale). KL in nats per token. Mixed bits: principal directions by Fisher information, "
        f"groups of 32 and damping {DAMPING:g} unless said. Seconds: of calibration, transcription included, on a "
        "machine that was not idle. Simulated."
    )
    columns = ["what", "bits per value", "KL", "token agreement", "calibration"]
    cells = [
        [
            row["name"],
            row["size"],
            f"{row['kl']:.2g}",
            f"{row['token_agreement']:.2%}",
            f"{row['clips']} clips, {row['seconds']:.0f} s" if "seconds" in row else "",
        ]
        for row in rows
    ]
    write_results(arguments.name, note, columns, cells, rows)


if __name__ == "__main__":
    main()
