"""How much closer to stock a calibrated conversion is than plain `joint_svd`, and how sure that is: whisper-digits.

    python benchmarks/accuracy_ratios.py --data DATA

DATA holds `calibration` and `dev`, as for accuracy.py. Decoder self-attention at the same cache; the ratio of the KL
divergences to stock over all utterances of `dev`, with a 95 % interval from resampling utterances (paired).
"""

import argparse
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import transformers
from accuracy import self_attention_budget, without_text
from result_files import write_results
from tqdm import tqdm
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.conversion import calibrate
from whisper_mla.conversion.calibration.clips import read_clips
from whisper_mla.conversion.calibration.make_examples import make_examples
from whisper_mla.conversion.ranks.quality import HeldOut

METHODS = {
    "covariance": {"method": "covariance"},
    "attention": {"method": "attention"},
    "fisher": {"method": "fisher", "refit": False},
    "fisher, refit": {"method": "fisher"},  # the default
}
RESAMPLES = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with calibration/ and dev/")
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 32, 16], help="mean ranks, of 256")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder = str(files("whisper_mla") / "assets" / "whisper-digits")
    stock = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = WhisperProcessor.from_pretrained(folder)
    config = stock.config

    examples = make_examples(stock, processor, without_text(read_clips(args.data / "dev")), language="en")
    utterances = [HeldOut(stock, [example]) for example in tqdm(examples, desc="Stock", unit="utterance")]
    clips = without_text(read_clips(args.data / "calibration"))
    statistics = calibrate(stock, clips, processor, language="en", encoder=False)

    def divergences(**arguments) -> tuple[np.ndarray, int, str]:
        """KL to stock summed over the tokens of each utterance, the number of all tokens, and the ranks."""
        model = WhisperMLAForConditionalGeneration.from_whisper(stock, calibration=statistics, force=True, **arguments)
        found = [utterance.measure(model, same_encoder=True) for utterance in utterances]
        sums = np.array([quality.kl * quality.tokens for quality in found])
        return sums, sum(quality.tokens for quality in found), str(model.config.kv_rank)

    raw: list[dict] = []
    bar = tqdm(total=len(args.ranks) * (1 + len(METHODS)), unit="conversion")
    draws = np.random.default_rng(0).integers(0, len(utterances), (RESAMPLES, len(utterances)))
    for rank in args.ranks:
        plain, tokens, _ = divergences(kv_rank=rank, method="joint_svd")
        bar.update()
        budget = self_attention_budget(config, rank)
        for method, arguments in METHODS.items():
            found, _, ranks = divergences(**arguments, cache_bytes=budget, cross_kv_rank=config.d_model)
            low, high = np.quantile(plain[draws].sum(axis=1) / found[draws].sum(axis=1), [0.025, 0.975])
            facts = {
                "method": method,
                "rank": ranks,
                "self_cut": 1 - rank / (2 * config.d_model),
                "kl": found.sum() / tokens,
                "joint_svd_kl": plain.sum() / tokens,
                "ratio": plain.sum() / found.sum(),
                "low": low,
                "high": high,
                "share_of_10_utterances": np.sort(found)[-10:].sum() / found.sum(),
            }
            raw.append(facts)
            bar.update()
    bar.close()
    note = (
        "whisper-digits, float32, decoder self-attention, no training; ranks chosen on held-out calibration audio; "
        f"{len(utterances)} dev utterances. Times by which the KL to stock is lower than that of joint_svd at a "
        f"uniform rank of the same cache, with a 95 % interval from {RESAMPLES:,} paired resamples of utterances. The "
        "last column: the share of the KL that ten utterances have."
    )
    columns = ["method", "rank", "self-attention cut", "KL", "times lower", "95 %", "10 utterances"]
    rows = [
        [
            facts["method"],
            facts["rank"],
            f"{facts['self_cut']:.1%}",
            f"{facts['kl']:.2g}",
            f"{facts['ratio']:.1f}",
            f"{facts['low']:.1f} to {facts['high']:.1f}",
            f"{facts['share_of_10_utterances']:.0%}",
        ]
        for facts in raw
    ]
    write_results("accuracy_ratios", note, columns, rows, raw)


if __name__ == "__main__":
    main()
