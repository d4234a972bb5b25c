"""One checkpoint folder under several Transformers releases: saved under one, it must decode the same under another.

    python tests/other_release.py save FOLDER     # with the package: a folder, and the tokens of stock Whisper
    python tests/other_release.py check FOLDER    # elsewhere, without the package: the same tokens

Not a test module: the two commands run beside different releases of Transformers (see `.ci/run`).
"""

import sys
from pathlib import Path

import torch
import transformers

WAYS = {
    "greedy": {},
    "5 beams": {"num_beams": 5},
    "sampling with a seed": {"do_sample": True, "temperature": 1.0},
    "static cache": {"cache_implementation": "static"},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "long form": {"return_timestamps": True, "max_new_tokens": 60},
}


def all_tokens(model, batches: dict) -> dict[str, list]:
    """Tokens of `model` in every way of [`WAYS`]."""
    found = {}
    for name, way in WAYS.items():
        features = batches["long" if name == "long form" else "single" if "lookup" in name else "batch"]
        torch.manual_seed(0)
        found[name] = model.generate(**features, **way).tolist()
    return found


def save(folder: Path) -> None:
    from importlib.resources import files

    import soundfile
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    from whisper_mla import WhisperMLAForConditionalGeneration

    assets = Path(str(files("whisper_mla") / "assets"))
    stock = WhisperForConditionalGeneration.from_pretrained(assets / "whisper-digits", dtype=torch.float32)
    processor = WhisperProcessor.from_pretrained(assets / "whisper-digits")
    WhisperMLAForConditionalGeneration.from_whisper(stock).save_pretrained(folder)
    processor.save_pretrained(folder)

    def features(*names, **options):
        paths = [next((assets / "clips").glob(f"{name}_*.flac")) for name in names]
        samples = [soundfile.read(path, dtype="float32")[0] for path in paths]
        return dict(
            processor(samples, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True, **options)
        )

    batches = {
        "batch": features("clip00", "clip07"),
        "single": features("clip04"),
        "long": features("long", "clip07", truncation=False, padding="longest"),
    }
    expected = {"batches": batches, "tokens": all_tokens(stock, batches), "transformers": transformers.__version__}
    torch.save(expected, folder / "expected.pt")
    print(f"saved under Transformers {transformers.__version__}: {len(WAYS)} ways of decoding")


def check(folder: Path) -> int:
    sys.modules["whisper_mla"] = None  # the folder's own code
    from transformers import AutoModelForSpeechSeq2Seq

    expected = torch.load(folder / "expected.pt")
    model = AutoModelForSpeechSeq2Seq.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
    found = all_tokens(model, expected["batches"])
    wrong = [name for name in WAYS if found[name] != expected["tokens"][name]]
    for name in WAYS:
        print(f"{name}: {'OTHER TOKENS' if name in wrong else 'the same tokens'}")
    print(
        f"{len(WAYS) - len(wrong)} of {len(WAYS)} the same under Transformers {transformers.__version__} "
        f"as stock Whisper under {expected['transformers']}"
    )
    return len(wrong)


if __name__ == "__main__":
    command, folder = sys.argv[1], Path(sys.argv[2])
    sys.exit(save(folder) if command == "save" else check(folder))
