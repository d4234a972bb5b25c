"""What a small cache costs on a real Whisper: word errors, and how close the words stay to stock's own.

    python benchmarks/accuracy_real.py --model whisper-tiny.en --data SPEECH --name accuracy_tiny_en

MODEL is a stock checkpoint with its processor, SPEECH a folder with `calibration` and `dev`, folders of audio with
metadata.csv. Every row is one `from_whisper` in float32 without training, measured on `dev`, of other speakers than the
calibration. An interrupted run continues from `NAME.partial.jsonl`.
"""

import argparse
import json
import re
from pathlib import Path

import torch
import transformers
from matplotlib.figure import Figure
from result_files import RESULTS, write_results
from tqdm import tqdm
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from whisper_mla import WhisperMLAForConditionalGeneration, quantize_weights
from whisper_mla.configuration import cache_size
from whisper_mla.conversion import calibrate, save_statistics
from whisper_mla.conversion.calibration.clips import Clip, read_clips
from whisper_mla.conversion.calibration.make_examples import make_examples
from whisper_mla.conversion.ranks.quality import HeldOut
from whisper_mla.evaluation.intervals import bootstrap_interval, compare_paired
from whisper_mla.evaluation.normalizers import normalizer_for
from whisper_mla.evaluation.word_errors import count_word_errors

CALIBRATED = {"method": "fisher", "refit": False}
BY_WEIGHTS = {"method": "joint_svd"}  # named, so that the conversion does not measure itself as well
NEEDS_CALIBRATION = "fisher"
BENCHMARK_ONLY = ("weights", "minutes")
COLUMNS = [
    "conversion",
    "cache cut",
    "KL",
    "token agreement",
    "WER %",
    "change to stock (95 %, paired)",
    "words not stock's",
    "transcripts equal",
]


def jobs(width: int) -> dict[str, dict]:
    """Conversions: what the table calls them, to arguments of `from_whisper`; "weights" for what follows it,
    "minutes" of the calibration folder instead of the speech that comes with the package."""
    half, quarter = width // 2, width // 4
    return {
        "exact": {},
        "int8 weights": {"weights": "int8"},
        "int8 weights, int8 latents": {"weights": "int8", "latent_dtype": "int8", **BY_WEIGHTS},
        "int8": {"latent_dtype": "int8", **BY_WEIGHTS},
        "int4": {"latent_dtype": "int4", **BY_WEIGHTS},
        **{
            f"{dtype}, groups of {size}": {"latent_dtype": dtype, "latent_group_size": size, **BY_WEIGHTS}
            for dtype in ("int8", "int4")
            for size in (32, 64)
        },
        "int4 of the text only": {"latent_dtype": ["int4", None], **BY_WEIGHTS},
        "int4 of the audio only": {"latent_dtype": [None, "int4"], **BY_WEIGHTS},
        "int8 of the text, int4 of the audio": {"latent_dtype": ["int8", "int4"], **BY_WEIGHTS},
        "fisher, kv_rank d/2": {"kv_rank": half, **CALIBRATED},
        "fisher, kv_rank d/2, int8": {"kv_rank": half, "latent_dtype": "int8", **CALIBRATED},
        "fisher, kv_rank d/2, int4": {"kv_rank": half, "latent_dtype": "int4", **CALIBRATED},
        "fisher, kv_rank d/4": {"kv_rank": quarter, **CALIBRATED},
        "fisher, kv_rank d/4, int4": {"kv_rank": quarter, "latent_dtype": "int4", **CALIBRATED},
        "fisher, cross_kv_rank d/2": {"cross_kv_rank": half, **CALIBRATED},
        **{
            f"ranks and bits chosen for −{cut:.0%} of the cache": {"cache_cut": cut, "latent_dtype": "auto"}
            for cut in (0.95, 0.93, 0.97)
        },
        **{
            f"mixed bits for −{cut:.0%} of the cache": {"cache_cut": cut, "latent_dtype": "mixed"}
            for cut in (0.93, 0.95, 0.96, 0.97, 0.98)
        },
        **{
            f"mixed bits for −{cut:.0%} of the cache, {minutes} min": {
                "cache_cut": cut,
                "latent_dtype": "mixed",
                "minutes": minutes,
            }
            for cut in (0.96, 0.97)
            for minutes in (1, 2, 5, 14)
        },
        "joint_svd, kv_rank d/2": {"kv_rank": half, **BY_WEIGHTS},
        "joint_svd, kv_rank d/4": {"kv_rank": quarter, **BY_WEIGHTS},
        "the paper's initialisation, kv_rank d/4": {
            "kv_rank": quarter,
            "cross_cache": "key_value",
            "preserved_key_dims": 4,
            **BY_WEIGHTS,
        },
    }


class Dev:
    """The dev set with the stock model's predictions and words.

    Args:
        stock: in float32.
        processor: its processor.
        folder: audio with transcripts.
        language: of the audio, for a multilingual model.
        every: take every so manyth clip.
    """

    def __init__(self, stock, processor, folder: Path, language: str, every: int):
        clips = read_clips(folder)[::every]
        clips.sort(key=lambda clip: len(clip.samples))  # batches of like lengths
        self.normalise = normalizer_for(language, "basic").words
        self.references = [self.normalise(clip.text) for clip in clips]
        self.lengths = [len(reference.split()) for reference in self.references]
        self.processor = processor
        unread = [type(clip)(clip.name, clip.samples) for clip in clips]
        # English-only models refuse the argument.
        spoken = {"language": language} if stock.generation_config.is_multilingual else {}
        self.held_out = HeldOut(stock, make_examples(stock, processor, unread, **spoken))
        self.stock_words = self._words(stock)
        self.stock_errors = self._errors(self.references, self.stock_words)

    def _words(self, model, same_encoder: bool = True) -> list[str]:
        tokens = self.held_out.decode(model, same_encoder=same_encoder)
        return [self.normalise(text) for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]

    def _errors(self, references: list[str], words: list[str]) -> list[int]:
        return [count.errors for count in count_word_errors(references, words)]

    def measure(self, model, same_encoder: bool) -> dict:
        """KL and agreement teacher-forced on stock's transcripts; errors of greedy decoding against the references and
        against stock's words, with 95 % bootstrap intervals over utterances, paired for the difference."""
        quality = self.held_out.measure(model, same_encoder=same_encoder)
        words = self._words(model, same_encoder)
        errors = self._errors(self.references, words)
        wer = bootstrap_interval(errors, self.lengths)
        paired = compare_paired(self.stock_errors, errors, self.lengths)
        changed = self._errors(self.stock_words, words)
        return {
            "kl": quality.kl,
            "token_agreement": quality.token_agreement,
            "wer": wer.estimate,
            "wer_interval": [wer.low, wer.high],
            "wer_change": paired.difference,
            "wer_change_interval": [paired.low, paired.high],
            "words_changed": sum(changed) / sum(len(text.split()) for text in self.stock_words),
            "same_transcripts": sum(a == b for a, b in zip(self.stock_words, words, strict=True)),
            "utterances": len(words),
            "errors": errors,
        }


def some_minutes(folder: Path, minutes: float) -> list[Clip]:
    """Clips without transcripts, evenly spread over the folder, of `minutes` together at most."""
    clips = [Clip(clip.name, clip.samples) for clip in read_clips(folder)]
    left, chosen = minutes * 60 * 16_000, []
    order = [i for start in range(7) for i in range(start, len(clips), 7)]
    for i in order:
        if len(clips[i].samples) <= left:
            left -= len(clips[i].samples)
            chosen.append(clips[i])
    return chosen


def run(model_folder: Path, data: Path, language: str, partial: Path, every: int, only: str) -> list[dict]:
    stock = WhisperForConditionalGeneration.from_pretrained(model_folder, dtype=torch.float32).eval()
    processor = WhisperProcessor.from_pretrained(model_folder)
    statistics = partial.with_name(partial.name.replace(".jsonl", ".safetensors"))
    spoken = {"language": language} if stock.generation_config.is_multilingual else {}
    done = {}
    if partial.exists():
        done = {row["name"]: row for row in map(json.loads, partial.read_text().splitlines())}
    dev = None
    stock_bytes = cache_size(stock.config).total
    for name, arguments in tqdm({"stock": None, **jobs(stock.config.d_model)}.items(), unit="conversion"):
        if name in done or not (re.fullmatch(only, name) or name == "stock"):
            continue
        dev = dev or Dev(stock, processor, data / "dev", language, every)
        if arguments is None:
            model = stock
        else:
            # Ranks and bits are chosen on the speech that comes with the package, for which a processor is needed.
            calibration = {}
            if "cache_cut" in arguments:  # of the cache in float16, as in the table
                calibration = {"processor": processor, "cache_cut": None, "force": True}
                calibration["cache_bytes"] = int((1 - arguments["cache_cut"]) * stock_bytes)
            if "minutes" in arguments:
                calibration["calibration"] = some_minutes(data / "calibration", arguments["minutes"])
                calibration |= spoken
            if arguments.get("method") == NEEDS_CALIBRATION:
                if not statistics.exists():
                    clips = data / "calibration"
                    save_statistics(calibrate(stock, clips, processor, encoder=False, **spoken), statistics)
                calibration = {"calibration": statistics, "force": True}
            given = {field: value for field, value in arguments.items() if field not in BENCHMARK_ONLY}
            model = WhisperMLAForConditionalGeneration.from_whisper(stock, **{**given, **calibration})
        is_rounded = arguments is not None and "weights" in arguments
        if is_rounded:
            quantize_weights(model)
        row = {
            "name": name,
            "arguments": arguments,
            "cache_cut": 1 - cache_size(model.config).total / stock_bytes,
            **dev.measure(model, same_encoder=not is_rounded),
        }
        done[name] = row
        with open(partial, "a") as file:
            file.write(json.dumps(row) + "\n")
    return [done[name] for name in ("stock", *jobs(stock.config.d_model)) if name in done]


def draw(rows: list[dict], path: Path) -> None:
    """Word error rate by cache cut; what is off the picture stands at its upper edge."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    stock = 100 * rows[0]["wer"]
    top = stock + 15
    for row, marker in zip(rows[1:], "osD^v<>pPX*h8dHs", strict=False):
        wer = 100 * row["wer"]
        label = row["name"] if wer < top else f"{row['name']} ({wer:.0f} %)"
        axes.plot(100 * row["cache_cut"], min(wer, top), marker, linestyle="none", alpha=0.8, label=label)
    axes.axhline(stock, color="black", linewidth=0.8, linestyle="--")
    low, high = axes.get_ylim()
    axes.set(xlabel="whole cache smaller by, %", ylabel="WER, % (dashed: stock)", ylim=(low - 0.5, high + 0.5))
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=110)


def cells(row: dict) -> list[str]:
    low, high = (100 * bound for bound in row["wer_change_interval"])
    return [
        row["name"],
        f"{row['cache_cut']:.1%}",
        f"{row['kl']:.2g}",
        f"{row['token_agreement']:.2%}",
        f"{100 * row['wer']:.2f}",
        f"{100 * row['wer_change']:+.2f} ({low:+.2f} to {high:+.2f})",
        f"{row['words_changed']:.2%}",
        f"{row['same_transcripts']} of {row['utterances']}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a stock checkpoint with its processor")
    parser.add_argument("--data", type=Path, required=True, help="folder with calibration/ and dev/")
    parser.add_argument("--name", required=True, help="of the result files")
    parser.add_argument("--language", default="en", help="of the audio (default: en)")
    parser.add_argument("--every", type=int, default=1, help="of dev, take every so manyth clip (default: 1)")
    parser.add_argument("--only", default=".*", help="rows whose whole name matches; the rest on a later run")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    partial = RESULTS / f"{arguments.name}.partial.jsonl"
    rows = run(arguments.model, arguments.data, arguments.language, partial, arguments.every, arguments.only)
    draw(rows, RESULTS / f"{arguments.name}.png")
    note = (
        f"{arguments.model.name}, float32, greedy, no training. Cache cut: one stream of 448 text positions in "
        f"float16, computed. KL in nats per token and token agreement teacher-forced on stock's transcripts; WER of "
        f"{rows[0]['utterances']} dev utterances with Whisper's basic normaliser; its interval is a bootstrap over "
        "utterances and ignores that some share a speaker. Words not stock's: word error rate against stock's own "
        f"transcripts. Picture: {arguments.name}.png."
    )
    write_results(arguments.name, note, COLUMNS, [cells(row) for row in rows], rows)


if __name__ == "__main__":
    main()
