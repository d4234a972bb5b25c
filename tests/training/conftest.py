"""A tiny Whisper with the tokenizer of whisper-digits and a window of two seconds, and speech to train it on."""

import csv
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import GenerationConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperProcessor

from tests.conftest import ASSETS, random_whisper
from whisper_mla.training import HealingArguments
from whisper_mla.training.collator import SpeechCollator
from whisper_mla.training.labels import LabelMaker

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
WORDS = ("one", "two", "three", "four")


def tiny_whisper(seed: int = 0, **shape) -> WhisperForConditionalGeneration:
    """Random weights, vocabulary and special tokens of whisper-digits, two seconds of audio."""
    defaults = {
        "vocab_size": 1864,
        "max_source_positions": 100,
        "max_target_positions": 96,
        "pad_token_id": 256,
        "bos_token_id": 256,
        "eos_token_id": 256,
        "decoder_start_token_id": 257,
    }
    model = random_whisper(seed, **{**defaults, **shape})
    model.generation_config = GenerationConfig.from_pretrained(ASSETS / "whisper-digits", max_length=24)
    model.generation_config.alignment_heads = None
    return model


def save_tiny(folder: Path, processor: WhisperProcessor) -> Path:
    tiny_whisper().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def datasets_library(tmp_path, monkeypatch):
    """The library's cache takes local folders of the same name and shape for the same data set."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "dataset_cache"))
    # It also sleeps whenever a stream of parquet files ends, and tiny ones end at once.
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


@pytest.fixture(scope="session")
def tiny_processor() -> WhisperProcessor:
    processor = WhisperProcessor.from_pretrained(ASSETS / "whisper-digits")
    processor.feature_extractor = WhisperFeatureExtractor(feature_size=8, chunk_length=2)
    return processor


@pytest.fixture(scope="session")
def label_maker(tiny_processor) -> LabelMaker:
    return LabelMaker(tiny_processor.tokenizer)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory, tiny_processor) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "checkpoint", tiny_processor)


def speech(count: int = 16, seconds: float = 0.5, language: str | None = "en", seed: int = 0) -> list[dict]:
    """Noise with transcripts of different lengths."""
    random = np.random.default_rng(seed)
    return [
        {
            "audio": {
                "array": (0.1 * random.standard_normal(int(seconds * 16_000))).astype(np.float32),
                "sampling_rate": 16_000,
            },
            "text": " ".join(random.choice(WORDS, size=1 + index % 3)),
            "language": language,
        }
        for index in range(count)
    ]


def write_audio_folder(folder: Path, count: int = 4, seconds: float = 0.5) -> Path:
    folder.mkdir(parents=True)
    with open(folder / "metadata.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "text", "speaker"])
        for index, example in enumerate(speech(count, seconds)):
            soundfile.write(folder / f"{index}.flac", example["audio"]["array"], 16_000)
            table.writerow([f"{index}.flac", example["text"].split()[0], f"speaker{index % 2}"])
    return folder


@pytest.fixture
def collator(tiny_processor, label_maker) -> SpeechCollator:
    return SpeechCollator(tiny_processor.feature_extractor, label_maker)


@pytest.fixture
def arguments(tmp_path):
    """Makes arguments of a short run on the CPU."""

    def make(**changes) -> HealingArguments:
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "seed": 1,
        }
        return HealingArguments(**{**defaults, **changes})

    return make


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def copy_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="session")
def finetune():
    """`examples/finetune.py` as a module."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        spec = importlib.util.spec_from_file_location("finetune", EXAMPLES / "finetune.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(EXAMPLES))
