"""Words of compiled decoding beside the same models without it, and beside stock Whisper.

    python benchmarks/compiled_words.py MODEL FOLDER

FOLDER holds audio and metadata.csv (file_name, text). Greedy, without fallback; Whisper's basic normaliser.
"""

import argparse
from pathlib import Path

import jiwer
import torch
import transformers
from result_files import write_results
from transformers import AutoProcessor, WhisperForConditionalGeneration
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from whisper_mla import WhisperMLAForConditionalGeneration, quantize_weights
from whisper_mla.evaluation.audio_folders import read_audio_folder
from whisper_mla.transcription.compiled_decoding import compile_decoding
from whisper_mla.transcription.fallback import NO_FALLBACK
from whisper_mla.transcription.transcriber import Transcriber

MODELS = ("stock", "exact, compiled", "int8 weights", "int8 weights, compiled")


def make(source: str, name: str):
    if name == "stock":
        return WhisperForConditionalGeneration.from_pretrained(source, dtype=torch.float32).eval()
    model = WhisperMLAForConditionalGeneration.from_whisper(source, dtype=torch.float32)
    if name.startswith("int8"):
        quantize_weights(model)
    return compile_decoding(model) if name.endswith("compiled") else model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a stock checkpoint")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--name", default="compiled_words", help="of the result files")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    utterances = read_audio_folder(arguments.folder)
    audios, normalise = [one.load() for one in utterances], BasicTextNormalizer()
    references = [normalise(one.reference) for one in utterances]
    processor = AutoProcessor.from_pretrained(arguments.model)
    texts: dict[str, list[str]] = {}
    for name in MODELS:
        model = make(arguments.model, name)
        language = "en" if model.generation_config.is_multilingual else None
        run = Transcriber(model, processor, language, None, "none", 1, NO_FALLBACK)
        size = arguments.batch_size
        texts[name] = [t.text for i in range(0, len(audios), size) for t in run(audios[i : i + size])]
        print(name, flush=True)
    rows = []
    for name, found in texts.items():
        wer = 100 * jiwer.wer(references, [normalise(text) for text in found])
        same = [sum(a == b for a, b in zip(found, texts[other], strict=True)) for other in ("stock", "int8 weights")]
        rows.append([name, f"{wer:.2f}", *(f"{count} of {len(found)}" for count in same)])
    note = f"{Path(arguments.model).name}, float32 but for int8 weights, English, {len(audios)} utterances."
    columns = ["model", "WER %", "texts equal to stock's", "to those of int8 weights"]
    write_results(arguments.name, note, columns, rows, texts)


if __name__ == "__main__":
    main()
