"""The whole way on the bundled checkpoint: transcribe, convert, save, load, transcribe again. No network."""

import csv
import tempfile
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import jiwer
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor, WhisperForConditionalGeneration
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from whisper_mla.configuration import cache_size
from whisper_mla.conversion import from_whisper
from whisper_mla.hub.checkpoint_folder import written_aside
from whisper_mla.transcription.audio import SAMPLING_RATE, read_audio

from .cache_table import megabytes

# What is converted: nothing lost, and the exact latents in four bits.
CONVERSIONS: dict[str, dict[str, Any]] = {"exact": {}, "latents in 4 bits": {"latent_dtype": "int4"}}


@dataclass(frozen=True)
class DemoRow:
    """One model of the demo: cache bytes per stream, word error rate, and whether its tokens are those of stock."""

    model: str
    self_attention: int
    cross_attention: int
    wer: float
    equal_tokens: bool

    @property
    def total(self) -> int:
        return self.self_attention + self.cross_attention


def run_demo(console: Console, limit: int | None = None) -> list[DemoRow]:
    """Run the demo and print its table.

    Args:
        console: where progress and the table go.
        limit: take only so many clips.

    Returns:
        list[DemoRow]: stock, exact, and latents in 4 bits.
    """
    with as_file(files("whisper_mla") / "assets") as assets, tempfile.TemporaryDirectory() as folder:
        source, clips = assets / "whisper-digits", assets / "clips"
        with open(clips / "metadata.csv", newline="", encoding="utf-8") as table:
            references = {row["file_name"]: row["text"] for row in csv.DictReader(table) if row["file_name"][0] == "c"}
        references = dict(list(references.items())[:limit])
        processor = AutoProcessor.from_pretrained(source)
        audio = [read_audio(clips / name) for name in references]
        features = processor(audio, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_features

        def transcribe(model) -> tuple[torch.Tensor, list[str]]:
            with torch.inference_mode():
                tokens = model.generate(features)
            return tokens, processor.batch_decode(tokens, skip_special_tokens=True)

        console.print(f"Transcribing {len(references)} clips of spoken digits with stock Whisper …")
        stock = WhisperForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
        expected, texts = transcribe(stock)
        rows = [_row("stock Whisper", stock, references, texts, True)]
        for name, options in CONVERSIONS.items():
            target = Path(folder) / name.replace(" ", "-")
            console.print(f"Converting ({name}), saving, loading through the Auto classes, transcribing …")
            with written_aside(target) as aside:
                # What is lost is measured on these clips: the model understands nothing else.
                heard: dict[str, Any] = {"calibration": list(audio)} if options else {}
                from_whisper(source, dtype=torch.float32, **options, **heard).save_pretrained(aside)
                processor.save_pretrained(aside)
            model = AutoModelForSpeechSeq2Seq.from_pretrained(target)
            tokens, texts = transcribe(model)
            rows.append(_row(f"Whisper-MLA, {name}", model, references, texts, torch.equal(tokens, expected)))
    console.print(_table(rows, len(references)))
    return rows


def _row(name: str, model, references: dict[str, str], texts: list[str], equal_tokens: bool) -> DemoRow:
    normalise = BasicTextNormalizer()
    wer = jiwer.wer([normalise(text) for text in references.values()], [normalise(text) for text in texts])
    size = cache_size(model.config, bytes_per_value=model.dtype.itemsize)
    return DemoRow(name, size.self_attention, size.cross_attention, wer, equal_tokens)


def _table(rows: list[DemoRow], clips: int) -> Table:
    table = Table(title="Cache per stream and transcripts", title_justify="left", caption_justify="left")
    table.add_column("model")
    for column in ("self", "cross", "total", "change", "WER", "tokens equal to stock"):
        table.add_column(column, justify="right")
    for row in rows:
        change = f"{row.total / rows[0].total - 1:+.1%}" if row is not rows[0] else ""
        sizes = (megabytes(size) for size in (row.self_attention, row.cross_attention, row.total))
        table.add_row(row.model, *sizes, change, f"{row.wer:.1%}", "yes" if row.equal_tokens else "no")
    table.caption = (
        "Cache computed for 448 text positions in float32; WER and tokens measured on the "
        f"{clips} bundled clips, which were selected to be easy."
    )
    return table
