"""What a conversion says of itself where nothing but a rank or a dtype is given: the loss on the bundled speech.

    python benchmarks/default_conversion.py --model whisper-tiny.en --name default_conversion_tiny_en

Every row is `from_whisper(MODEL, ...)` as a new user would write it, in float32; a refusal is a result.
"""

import argparse
from pathlib import Path

import torch
import transformers
from result_files import write_results
from transformers import WhisperConfig

from whisper_mla.conversion import ConversionError, from_whisper


def measure(model: Path, arguments: dict) -> dict:
    """The quality in the report, kept or refused."""
    try:
        report = from_whisper(model, dtype=torch.float32, **arguments).conversion_report
    except ConversionError as error:
        return {"arguments": arguments, "refusal": str(error)}
    kept = {name: report[name] for name in ("method", "quality", "seconds")}
    return {"arguments": arguments, "refusal": None, **kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a stock checkpoint with its processor")
    parser.add_argument("--name", required=True, help="of the result files")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    width = WhisperConfig.from_pretrained(arguments.model).d_model
    cases = [{"kv_rank": width // 4}, {"latent_dtype": "int4"}, {"kv_rank": width // 2}]
    rows = [measure(arguments.model, case) for case in cases]

    def cells(row: dict) -> list[str]:
        given = ", ".join(f"{name}={value!r}" for name, value in row["arguments"].items())
        if row["refusal"]:
            return [given, "refused", row["refusal"]]
        words = row["quality"]["words"]
        return [
            given,
            f"kept ({row['method']})",
            f"word error rate {words['rate']:.1%} against stock's own {words['words']} words, {words['same_clips']} of "
            f"{words['clips']} transcripts equal; KL {row['quality']['kl_per_token']:.2g}",
        ]

    note = f"{arguments.model.name}, float32: what `from_whisper` measures on the bundled speech by default."
    write_results(arguments.name, note, ["given", "outcome", "measured"], [cells(row) for row in rows], rows)


if __name__ == "__main__":
    main()
