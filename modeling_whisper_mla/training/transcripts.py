"""Transcripts by greedy decoding: of a teacher, as labels for audio without any, and for word error rates."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, WhisperProcessor
from transformers.utils import logging
from transformers.utils.logging import tqdm

from whisper_mla.transcription.audio import SAMPLING_RATE
from whisper_mla.transcription.length import length_arguments

from .labels import LabelMaker
from .speech_data import decode_audio

logger = logging.get_logger(__name__)


def transcribe_examples(
    model: PreTrainedModel, processor: WhisperProcessor, examples: list[dict[str, Any]], label_maker: LabelMaker
) -> list[str]:
    """Greedy transcripts of one batch, as the model writes them but for the space around them.

    Args:
        model: stock or converted, in evaluation mode.
        processor: its processor.
        examples: `{"audio", "language"}`, each no longer than the model's window.
        label_maker: knows language codes and the task.

    Returns:
        list[str]: in the order of `examples`.
    """
    features = processor.feature_extractor(
        [decode_audio(example["audio"]) for example in examples], sampling_rate=SAMPLING_RATE, return_tensors="pt"
    )
    telling = {}
    if label_maker.is_multilingual:
        codes = [label_maker.language_code(example.get("language")) for example in examples]
        telling = {"language": codes, "task": label_maker.task}
    with torch.inference_mode():
        tokens = model.generate(  # type: ignore[operator]
            features.input_features.to(model.device, model.dtype), **telling, **length_arguments(model)
        )
    return [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]


def teacher_transcripts(
    teacher: PreTrainedModel,
    processor: WhisperProcessor,
    data: Any,
    label_maker: LabelMaker,
    cache: str | os.PathLike,
    batch_size: int = 16,
    rank: int = 0,
    world_size: int = 1,
) -> list[str]:
    """The teacher's transcripts of a whole corpus, made once and kept on disk.

    Each process transcribes its share and appends to a file of its own, batch by batch, so that a killed run goes on
    where it was. All processes must have returned before the transcripts are complete: call this, wait for the others,
    and call it again, which then reads only.

    Args:
        teacher: in evaluation mode, on its device.
        processor: its processor.
        data: examples `{"audio", "language"}` in an indexable data set.
        label_maker: knows language codes and the task.
        cache: a folder for this teacher and corpus alone.
        batch_size: utterances decoded at once.
        rank: of this process.
        world_size: number of processes.

    Returns:
        list[str]: one transcript per example; empty where it is another process's and not there yet.

    Raises:
        ValueError: `cache` was made with another teacher, task or number of examples.
    """
    folder = Path(cache)
    folder.mkdir(parents=True, exist_ok=True)
    about = {"teacher": _fingerprint(teacher), "task": label_maker.task, "examples": len(data)}
    _check_cache(folder / "about.json", about)
    done = _read(folder)
    missing = [index for index in range(rank, len(data), world_size) if index not in done]
    if missing:
        with open(folder / f"transcripts-{rank}.jsonl", "a", encoding="utf-8") as file:
            file.write("\n")  # ends a line that a kill has torn
            bar = tqdm(total=len(missing), desc="Teacher transcribes", unit="utterance")
            for start in range(0, len(missing), batch_size):
                indices = missing[start : start + batch_size]
                texts = transcribe_examples(teacher, processor, [data[index] for index in indices], label_maker)
                for index, text in zip(indices, texts, strict=True):
                    done[index] = text
                    file.write(json.dumps({"index": index, "text": text}, ensure_ascii=False) + "\n")
                file.flush()
                bar.update(len(indices))
            bar.close()
    return [done.get(index, "") for index in range(len(data))]


class TranscribedSpeech(torch.utils.data.Dataset):
    """A corpus with other transcripts; examples of which the transcript is empty are left out, with a notice.

    Args:
        data: examples with `audio`, in any indexable data set.
        transcripts: one per example.

    Raises:
        ValueError: all transcripts are empty.
    """

    def __init__(self, data: Any, transcripts: list[str]):
        self.data, self.transcripts = data, transcripts
        self.kept = [index for index, text in enumerate(transcripts) if text]
        if len(self.kept) < len(transcripts):
            count = len(transcripts) - len(self.kept)
            logger.warning(f"{count} of {len(transcripts)} examples left out: the teacher heard nothing in them.")
        if not self.kept:
            raise ValueError("label_source='teacher': the teacher heard nothing in any example of a training set.")

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.data[self.kept[index]], "text": self.transcripts[self.kept[index]]}


def _check_cache(path: Path, about: dict) -> None:
    if path.is_file():
        found = json.loads(path.read_text())
        if found != about:
            raise ValueError(
                f"{path.parent}: holds transcripts of another teacher, task or corpus ({found} instead of {about}). "
                "Remove it, or choose another output_dir."
            )
        return
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(about))
    aside.replace(path)


def _read(folder: Path) -> dict[int, str]:
    done = {}
    for path in sorted(folder.glob("transcripts-*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                done[int(row["index"])] = str(row["text"])
            except (ValueError, KeyError, TypeError):
                continue  # empty, or torn by a kill
    return done


def _fingerprint(teacher: PreTrainedModel) -> str:
    """Enough to tell teachers apart: their class, size and a checksum of the token embedding."""
    weight = teacher.get_decoder().embed_tokens.weight.detach().double()
    return f"{type(teacher).__name__}, {teacher.num_parameters()} parameters, {weight.square().sum().item():.6e}"
