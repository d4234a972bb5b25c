"""Calibration audio: files, folders, arrays or a dataset, made into examples that a model can be run on."""

import copy
import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils import logging
from transformers.utils.logging import tqdm

from whisper_mla.evaluation.utterances import read_encoded_audio
from whisper_mla.transcription.audio import SAMPLING_RATE, AudioError, read_audio

from .calibration import Example
from .errors import ConversionError

logger = logging.get_logger(__name__)
_AUDIO_SUFFIXES = {".flac", ".wav", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".wma", ".webm", ".mp4", ".aiff", ".aif"}


@dataclass(frozen=True)
class Clip:
    """Audio for calibration.

    Attributes:
        name: for messages.
        samples: float32 `[samples]` at 16 kHz.
        text: its transcript; None to let the stock model transcribe.
    """

    name: str
    samples: np.ndarray
    text: str | None = None


def read_clips(calibration: Any) -> list[Clip]:
    """Read calibration audio.

    Args:
        calibration: a folder of audio (with the transcripts of its metadata.csv or metadata.jsonl, if there is one), a
            file, a list of files or of 16 kHz float arrays, or a `datasets` dataset with an "audio" column (and
            "text", "sentence" or "transcription").

    Returns:
        list[Clip]: in a fixed order. Files that cannot be read are named in a warning and left out.

    Raises:
        ConversionError: nothing to read, or nothing that can be read.
    """
    if isinstance(calibration, (str, os.PathLike, dict)) or getattr(calibration, "ndim", None) == 1:
        calibration = [calibration]
    if not isinstance(calibration, Iterable):
        raise ConversionError(f"calibration={calibration!r}: expected audio files, folders, arrays or a dataset.")
    calibration = _undecoded(calibration)
    clips: list[Clip] = []
    failures: list[str] = []
    for read in tqdm(list(_readers(calibration)), desc="Reading calibration audio", unit="clip"):
        try:
            clips.append(read())
        except AudioError as error:
            failures.append(str(error))
            logger.warning(f"Left out of the calibration: {error}")
    if not clips:
        reason = f": {failures[0].rstrip('.')}" if failures else ""
        raise ConversionError(f"calibration: no audio that can be read{reason}. Give audio files or a folder of them.")
    return clips


def _undecoded(calibration: Iterable) -> Iterable:
    """A dataset whose audio comes as it is stored, so that no further decoder has to be installed."""
    features = getattr(calibration, "features", None)
    if not features:
        return calibration
    import datasets  # slow to import, and rarely needed

    if isinstance(features.get("audio"), datasets.Audio):
        return calibration.cast_column("audio", datasets.Audio(decode=False))  # type: ignore[attr-defined]
    return calibration


def _readers(calibration: Iterable) -> Iterator:
    for number, item in enumerate(calibration):
        if isinstance(item, (str, os.PathLike)):
            path = Path(item)
            transcripts = _transcripts(path) if path.is_dir() else {}
            for file in _files(path):
                text = transcripts.get(file.relative_to(path).as_posix()) if path.is_dir() else None
                yield lambda file=file, text=text: Clip(str(file), read_audio(file), text)
        elif isinstance(item, dict):
            yield lambda item=item, number=number: _from_row(item, number)
        else:
            yield lambda item=item, number=number: _from_array(item, f"clip {number}")


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _AUDIO_SUFFIXES and file.is_file())
    if not files:
        raise ConversionError(f"{path}: no audio files in this folder ({', '.join(sorted(_AUDIO_SUFFIXES))}).")
    return files


def _transcripts(folder: Path) -> dict[str, str]:
    """File name, relative to the folder, to transcript, from an audio folder's metadata."""
    path = next((folder / name for name in ("metadata.csv", "metadata.jsonl") if (folder / name).is_file()), None)
    if path is None:
        return {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = csv.DictReader(file) if path.suffix == ".csv" else map(json.loads, filter(str.strip, file))
            texts = {str(row.get("file_name")): _text(row) for row in lines}
    except (OSError, ValueError, AttributeError, csv.Error) as error:
        raise ConversionError(f"{path}: cannot be read ({error}). Repair or remove it.") from error
    return {Path(name).as_posix(): text for name, text in texts.items() if text}


def _text(row: dict) -> str | None:
    return next((row[key] for key in ("text", "sentence", "transcription") if row.get(key)), None)


def _from_array(item: Any, name: str, text: str | None = None) -> Clip:
    samples = np.asarray(item)
    if samples.ndim != 1 or samples.size == 0 or samples.dtype.kind != "f" or not np.isfinite(samples).all():
        raise AudioError(
            f"{name}: expected a finite float array [samples] at 16 kHz, not {samples.dtype} {list(samples.shape)}."
        )
    return Clip(name, samples.astype(np.float32), text)


def _from_row(row: dict, number: int) -> Clip:
    audio, name, text = row.get("audio"), f"row {number}", _text(row)
    if isinstance(audio, dict) and audio.get("array") is not None:
        if audio.get("sampling_rate") != SAMPLING_RATE:
            raise AudioError(
                f"{name}: sampling rate {audio.get('sampling_rate')}, expected {SAMPLING_RATE}. Cast the column with "
                "dataset.cast_column('audio', Audio(sampling_rate=16000))."
            )
        return _from_array(audio["array"], name, text)
    if isinstance(audio, dict) and audio.get("bytes"):
        return Clip(name, read_encoded_audio(audio["bytes"], audio.get("path") or name), text)
    path = audio.get("path") if isinstance(audio, dict) else audio
    if isinstance(path, (str, os.PathLike)):
        return Clip(name, read_audio(Path(path)), text)
    raise AudioError(f"{name}: no audio. A dataset needs an 'audio' column of files or of arrays.")


def make_examples(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    clips: Sequence[Clip],
    *,
    language: str | None = None,
    task: str | None = None,
    batch_size: int = 8,
) -> list[Example]:
    """Features and decoder inputs of clips. Audio longer than the model's window is cut into windows.

    Args:
        model: the stock model, which transcribes (greedily) what has no transcript.
        processor: its processor.
        clips: of `read_clips`.
        language: of the audio; None: the model's default, or detected. Clips with a transcript need a language where
            the model has no default; None is English.
        task: "transcribe" or "translate"; None: the model's default.
        batch_size: clips at once.

    Raises:
        ConversionError: a language or task for an English-only model.
        ValueError: a language or task that Transformers does not know.
    """
    is_multilingual = getattr(model.generation_config, "is_multilingual", False)
    if not is_multilingual and (language or task):
        raise ConversionError(f"language={language!r}, task={task!r}: this model knows English transcription only.")
    window = processor.feature_extractor.n_samples
    pieces = []
    for clip in clips:
        whole = len(clip.samples) <= window
        for start in range(0, len(clip.samples), window):
            piece = clip.samples[start : start + window]
            if start == 0 or len(piece) >= SAMPLING_RATE:  # the last moment of a cut would be transcribed as nonsense
                pieces.append((piece, clip.text if whole else None))
    tokenizer = copy.deepcopy(processor.tokenizer)  # its language is about to be set
    special = set(tokenizer.all_special_ids)
    if is_multilingual and any(text is not None for _, text in pieces):
        generation = model.generation_config
        tokenizer.set_prefix_tokens(
            language=language or getattr(generation, "language", None) or "en",
            task=task or getattr(generation, "task", None) or "transcribe",
            predict_timestamps=False,
        )
    arguments = {name: value for name, value in {"language": language, "task": task}.items() if value is not None}
    examples = []
    description = "Transcribing calibration audio" if any(text is None for _, text in pieces) else "Extracting features"
    for start in tqdm(range(0, len(pieces), batch_size), desc=description, unit="batch"):
        chosen = pieces[start : start + batch_size]
        features = processor.feature_extractor(
            [samples for samples, _ in chosen], sampling_rate=SAMPLING_RATE, return_tensors="pt"
        ).input_features
        generated: Any = [None] * len(chosen)
        if any(text is None for _, text in chosen):
            with torch.inference_mode():
                generated = model.generate(  # type: ignore[operator]
                    features.to(model.device, model.dtype), force_unique_generate_call=True, num_beams=1, **arguments
                )
                generated = getattr(generated, "sequences", generated).cpu()
        for row, (_, text), tokens in zip(features, chosen, generated, strict=True):
            ids = tokens.tolist() if text is None else tokenizer(text).input_ids
            while len(ids) > 1 and ids[-1] in (tokenizer.eos_token_id, tokenizer.pad_token_id):
                ids.pop()
            prompt = next((i for i, token in enumerate(ids) if token not in special), len(ids))
            examples.append(Example(row, torch.tensor(ids[: model.config.max_target_positions]), max(prompt, 1)))
    return examples
