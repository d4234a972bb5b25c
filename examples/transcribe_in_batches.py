"""Transcribe a folder in batches with a converted model, and show what the cache held.

What it costs: the memory that it prints, and the time of decoding. What comes out: one line per file.
Files longer than the model's window are for `whisper-mla transcribe`.

    python examples/transcribe_in_batches.py whisper-small-mla recordings/ --num-beams 5
"""

from pathlib import Path
from typing import Annotated

import typer
from transformers import AutoConfig

from whisper_mla import LatentCache, WhisperMLAConfig
from whisper_mla.transcription.audio import SAMPLING_RATE, read_audio
from whisper_mla.transcription.loading import load_for_transcription


def main(
    model: str,
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False)],
    num_beams: int = 1,
    batch_size: int = 8,
):
    if not isinstance(AutoConfig.from_pretrained(model), WhisperMLAConfig):
        raise typer.BadParameter(f"{model}: a stock Whisper has no latent cache to show. Convert it first.")
    whisper, processor = load_for_transcription(model)
    window = processor.feature_extractor.n_samples
    files = []
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".wav", ".flac", ".mp3", ".ogg")):
        if len(read_audio(path)) <= window:
            files.append(path)
        else:
            typer.echo(
                f"{path}: left out, longer than {window / SAMPLING_RATE:g} s; use whisper-mla transcribe", err=True
            )
    for start in range(0, len(files), batch_size):
        batch = files[start : start + batch_size]
        audio = [read_audio(path) for path in batch]
        features = processor(audio, sampling_rate=SAMPLING_RATE, return_tensors="pt").to(whisper.device, whisper.dtype)
        cache = LatentCache(whisper.config)  # generate() would make one; ours can be looked at afterwards
        tokens = whisper.generate(**features, num_beams=num_beams, past_key_values=cache)
        for path, text in zip(batch, processor.batch_decode(tokens, skip_special_tokens=True), strict=True):
            print(f"{path.name}: {text.strip()}")
        print(cache)


if __name__ == "__main__":
    typer.run(main)
