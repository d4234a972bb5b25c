"""Word times of `whisper-mla transcribe` against those of Transformers' pipeline with the stock model.

    python benchmarks/word_times.py MODEL FILE…

All files are transcribed in one batch with the lossless conversion, without fallback, and one by one with the stock
model.
"""

import argparse
from pathlib import Path

import torch
from result_files import write_results
from transformers import WhisperForConditionalGeneration, pipeline
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.conversion.source.processor import load_processor
from whisper_mla.transcription.audio import SAMPLING_RATE, read_audio
from whisper_mla.transcription.fallback import NO_FALLBACK
from whisper_mla.transcription.transcriber import Transcriber


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a stock checkpoint")
    parser.add_argument("files", nargs="+", type=Path, help="audio")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    processor = load_processor(arguments.model)
    stock = WhisperForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32).eval()
    converted = WhisperMLAForConditionalGeneration.from_whisper(arguments.model, dtype=torch.float32)
    speech = pipeline(
        "automatic-speech-recognition",
        model=stock,
        tokenizer=processor.tokenizer,
        feature_extractor=processor.feature_extractor,
    )
    audios = [read_audio(path) for path in arguments.files]
    ours = Transcriber(converted, processor, timestamps="word", fallback=NO_FALLBACK)(audios)
    rows, raw = [], []
    for path, audio, transcript in zip(arguments.files, audios, ours, strict=True):
        processor.tokenizer.language = LANGUAGES.get(transcript.language or "en")  # so that it splits words as we do
        chunks = speech(audio.copy(), return_timestamps="word", generate_kwargs={"num_beams": 1})["chunks"]
        expected = [(chunk["text"].strip(), *chunk["timestamp"]) for chunk in chunks if chunk["text"].strip()]
        found = [(word.text, word.start, word.end) for word in transcript.words]
        same = [word for word, *_ in expected] == [word for word, *_ in found]
        apart = [abs(a - b) for x, y in zip(expected, found, strict=False) for a, b in zip(x[1:], y[1:], strict=True)]
        most = max(apart, default=0.0) if same else None
        rows.append(
            [
                path.name,
                f"{len(audio) / SAMPLING_RATE:.1f}",
                transcript.language or "en",
                str(len(found)),
                "yes" if same else "NO",
                "–" if most is None else f"{most:.2f}",
            ]
        )
        raw.append({"file": path.name, "words": len(found), "same words": same, "most seconds apart": most})
        print(rows[-1], flush=True)
    write_results(
        "word_times",
        "Word times of the converted model, all files in one batch, against Transformers' pipeline with the stock "
        "model, one file at a time: the largest difference of a beginning or an end.",
        ["file", "s", "language", "words", "same words", "s apart at most"],
        rows,
        raw,
    )


if __name__ == "__main__":
    main()
