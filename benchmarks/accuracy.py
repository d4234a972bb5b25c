"""What conversion alone costs in accuracy: method × rank × placement on whisper-digits, no training.

    python benchmarks/accuracy.py --data DATA

DATA holds `calibration` and `dev`, folders of audio with metadata.csv. Every conversion is `from_whisper` of the
bundled whisper-digits in float32, measured on `dev`, which neither calibration nor the choice of ranks has seen: KL
divergence to stock and token agreement (teacher-forced on stock transcripts), and WER of greedy decoding with a
bootstrap interval. An interrupted run continues from `accuracy.partial.jsonl`.
"""

import argparse
import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import torch
import transformers
from matplotlib.figure import Figure
from result_files import RESULTS, write_results
from tqdm import tqdm
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.conversion import calibrate
from whisper_mla.conversion.calibration.clips import Clip, read_clips
from whisper_mla.conversion.calibration.make_examples import make_examples
from whisper_mla.conversion.ranks.quality import HeldOut
from whisper_mla.evaluation.intervals import bootstrap_interval
from whisper_mla.evaluation.normalizers import normalizer_for
from whisper_mla.evaluation.word_errors import count_word_errors

RANKS = (128, 96, 64, 48, 32, 24, 16)
TRANSCRIPTS_GIVEN = "fisher, ranks chosen, transcripts given"
PAPER = {"method": "joint_svd", "preserved_key_dims": 4}
REFIT = ", refit"  # what `from_whisper` does by itself with `fisher` and audio; slow, so not in every row


def self_attention_budget(config, rank: int) -> int:
    """Bytes of a float32 cache with exact cross-attention and this mean rank in self-attention."""
    text = config.decoder_layers * config.max_target_positions * rank
    return 4 * (config.max_source_positions * config.d_model + text)


def without_text(clips: list[Clip]) -> list[Clip]:
    """The same audio; the stock model's own transcripts are taken then."""
    return [replace(clip, text=None) for clip in clips]


def jobs(config) -> list[dict]:
    """Every conversion: a placement, the name of a method, the mean rank, and arguments of `from_whisper`."""
    found: list[dict] = []

    def add(placement: str, name: str, mean_rank: int, **arguments):
        if arguments["method"] == "fisher":
            arguments["refit"] = None if name.endswith(REFIT) else False
        found.append({"placement": placement, "method": name, "rank": mean_rank, "arguments": arguments})

    calibrated = ("covariance", "attention", "fisher")
    for rank in RANKS:
        for method in ("joint_svd", "layer_norm", *calibrated):
            add("self", method, rank, kv_rank=rank, method=method)
        for method in calibrated:
            budget = {"cache_bytes": self_attention_budget(config, rank), "cross_kv_rank": config.d_model}
            add("self", f"{method}, ranks chosen", rank, **budget, method=method)
        add("self", f"fisher, ranks chosen{REFIT}", rank, **budget, method="fisher")
        if rank > 16:
            add("self", "paper, uniform", rank, kv_rank=rank, **PAPER)
            add("self", "paper, 2-norm", rank, kv_rank=rank, preserved_key_selection="2-norm", **PAPER)
        for method in ("joint_svd", *calibrated):
            add("cross, shared", method, rank, cross_kv_rank=rank, method=method)
            add("encoder", method, rank, audio_kv_rank=rank, method=method)
        add("self and cross", "fisher", rank, kv_rank=rank, cross_kv_rank=rank, method="fisher")
        if rank in (128, 64, 32, 16):
            add("self and cross", f"fisher{REFIT}", rank, kv_rank=rank, cross_kv_rank=rank, method="fisher")
        everywhere = {"kv_rank": rank, "cross_kv_rank": rank, "audio_kv_rank": rank}
        add("everywhere", "fisher", rank, **everywhere, method="fisher")
    budget = {"cache_bytes": self_attention_budget(config, 32), "cross_kv_rank": config.d_model}
    chosen = {**budget, "method": "fisher"}
    add("self", TRANSCRIPTS_GIVEN, 32, **chosen)
    add("self", "fisher, ranks chosen, sequential", 32, **chosen, sequential=True)
    for method in ("covariance", "fisher"):
        add("self", f"{method}, sequential", 32, kv_rank=32, method=method, sequential=True)
    # The paper's ablation: 4 key dimensions kept per head and a latent of 12.5 % of d beside them, in each placement.
    rank = config.decoder_attention_heads * 4 + config.d_model // 8
    places = {
        "ablation: encoder": {"audio_kv_rank": rank},
        "ablation: decoder self": {"kv_rank": rank},
        "ablation: cross, per layer": {"cross_kv_rank": rank, "cross_kv_shared": False},
        "ablation: all": {"audio_kv_rank": rank, "kv_rank": rank, "cross_kv_rank": rank, "cross_kv_shared": False},
    }
    for placement, ranks in places.items():
        add(placement, "paper, uniform", rank, **ranks, **PAPER)
        add(placement, "paper, 2-norm", rank, **ranks, preserved_key_selection="2-norm", **PAPER)
        for method in ("joint_svd", "covariance", "fisher"):
            add(placement, method, rank, **ranks, method=method)
        if set(ranks) != {"audio_kv_rank"}:
            add(placement, f"fisher{REFIT}", rank, **ranks, method="fisher")
    for cut in (0.95, 0.96, 0.97):
        add("self and cross", f"fisher, cache cut {cut:.0%}{REFIT}", 0, cache_cut=cut, method="fisher")
    return found


class Dev:
    """The dev set: KL divergence and WER of a model.

    Args:
        stock: the reference, in float32.
        processor: its processor.
        folder: audio with transcripts.
    """

    def __init__(self, stock, processor, folder: Path):
        clips = read_clips(folder)
        self.normalise = normalizer_for("en", "basic").words
        self.references = [self.normalise(clip.text) for clip in clips]
        self.lengths = [len(reference.split()) for reference in self.references]
        self.processor = processor
        examples = make_examples(stock, processor, without_text(clips), language="en")
        self.held_out = HeldOut(stock, examples)
        features = torch.stack([example.input_features for example in examples])
        self.features = features.split(50)

    def word_errors(self, model) -> list[int]:
        """Errors of every utterance in greedy decoding."""
        texts: list[str] = []
        for batch in self.features:
            tokens = model.generate(batch, language="en", task="transcribe")
            texts += self.processor.batch_decode(tokens, skip_special_tokens=True)
        hypotheses = [self.normalise(text) for text in texts]
        return [count.errors for count in count_word_errors(self.references, hypotheses)]

    def measure(self, model, same_encoder: bool) -> dict:
        quality = self.held_out.measure(model, same_encoder)
        errors = self.word_errors(model)
        wer = bootstrap_interval(errors, self.lengths)
        return {
            "kl": quality.kl,
            "token_agreement": quality.token_agreement,
            "wer": wer.estimate,
            "wer_low": wer.low,
            "wer_high": wer.high,
        }


def run(data: Path, partial: Path) -> tuple[dict, list[dict]]:
    folder = str(files("whisper_mla") / "assets" / "whisper-digits")
    stock = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = WhisperProcessor.from_pretrained(folder)
    dev = Dev(stock, processor, data / "dev")
    reference = dev.measure(stock, same_encoder=True)
    clips = read_clips(data / "calibration")
    statistics, with_text = (
        calibrate(stock, each, processor, language="en", encoder=True) for each in (without_text(clips), clips)
    )
    done = {}
    if partial.exists():
        done = {row["key"]: row for row in map(json.loads, partial.read_text().splitlines())}
    rows = []
    for job in tqdm(jobs(stock.config), unit="conversion"):
        key = json.dumps(job, sort_keys=True)
        if key not in done:
            model = WhisperMLAForConditionalGeneration.from_whisper(
                stock,
                calibration=with_text if job["method"] == TRANSCRIPTS_GIVEN else statistics,
                force=True,
                **job["arguments"],
            )
            measured = dev.measure(model, same_encoder="audio_kv_rank" not in job["arguments"])
            cache = model.conversion_report["cache"]
            self_cut = 1 - sum(model.config.kv_ranks) / (2 * model.config.d_model * model.config.decoder_layers)
            facts = {
                "key": key,
                "kv_rank": model.config.kv_rank,
                "cross_kv_rank": model.config.cross_kv_rank,
                "self_cut": self_cut,
                "cache_cut": 1 - cache["model_bytes"] / cache["stock_bytes"],
                "options": model.conversion_report["method_options"],
                "rank_choice": model.conversion_report["rank_choice"],
                "refit": model.conversion_report["refit"],
            }
            done[key] = {**job, **facts, **measured}
            with open(partial, "a") as file:
                file.write(json.dumps(done[key]) + "\n")
        rows.append({name: value for name, value in done[key].items() if name != "key"})
    return reference, rows


def draw(reference: dict, rows: list[dict], path: Path) -> None:
    """KL divergence by rank, one panel for each placement."""
    placements = ("self", "cross, shared", "encoder", "self and cross")
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    for axes, placement in zip(figure.subplots(1, len(placements), sharey=True), placements, strict=True):
        chosen = [row for row in rows if row["placement"] == placement and row["rank"]]
        for method in dict.fromkeys(row["method"] for row in chosen):
            points = sorted((row["rank"], row["kl"]) for row in chosen if row["method"] == method)
            axes.loglog(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1, label=method)
        axes.set(title=placement, xlabel="(mean) rank of 256")
        axes.set_xticks(RANKS, [str(rank) for rank in RANKS])
        axes.minorticks_off()
        axes.legend(fontsize=6)
    figure.axes[0].set_ylabel("KL to stock per token, nats (dev)")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with calibration/ and dev/")
    data = parser.parse_args().data
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    partial = RESULTS / "accuracy.partial.jsonl"
    reference, rows = run(data, partial)

    def cells(row: dict) -> list[str]:
        rank = row.get("kv_rank") if "chosen" in row["method"] or not row["rank"] else row["rank"]
        if "cut" in row["method"]:
            rank = f"{row['kv_rank']} + {row['cross_kv_rank']}"
        rejected = row["refit"] is not None and not row["refit"]["kept"]
        return [
            row["placement"],
            row["method"] + (" (tried, not kept)" if rejected else ""),
            str(rank),
            f"{row['self_cut']:.1%}",
            f"{row['cache_cut']:.1%}",
            f"{row['kl']:.2g}",
            f"{row['token_agreement']:.2%}",
            f"{100 * row['wer']:.2f} ({100 * row['wer_low']:.2f} to {100 * row['wer_high']:.2f})",
        ]

    draw(reference, rows, RESULTS / "accuracy.png")
    columns = [
        "placement",
        "method",
        "rank",
        "self-attention cut",
        "cache cut",
        "KL",
        "token agreement",
        "WER % (95 %)",
    ]
    stock = f"{100 * reference['wer']:.2f} ({100 * reference['wer_low']:.2f} to {100 * reference['wer_high']:.2f})"
    note = (
        "whisper-digits (English digit strings, d = 256, 4 + 4 layers; an easy task: judge by order, not by size), "
        f"float32, no training. 200 dev utterances; stock WER {stock} %. KL in nats per token, mean, teacher-forced on "
        "stock transcripts. Calibration on audio without its transcripts, unless said. Options of methods and ranks "
        "were chosen on held-out calibration audio. Refit: all up projections of the decoder together, in the same "
        "conversion, kept where it lowered the KL on held-out calibration audio. Picture: accuracy.png."
    )
    write_results("accuracy", note, columns, [cells(row) for row in rows], {"stock": reference, "conversions": rows})
    partial.unlink()


if __name__ == "__main__":
    main()
