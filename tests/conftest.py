"""Shared models, audio and helpers. whisper-digits is genuinely trained; the tiny models have random weights."""

import copy
import csv
import getpass
import os
import tempfile
import weakref
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
# Tables and messages as wide as they like, whatever terminal the tests run in.
os.environ["COLUMNS"] = "200"
# Kernels that PyTorch compiled for one instruction set are wrong under another, and its cache does not tell them apart.
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR",
    f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}_{os.environ.get('ATEN_CPU_CAPABILITY', 'native')}",
)

import pytest
import torch
import transformers
from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.encoder_and_decoder import WhisperMLAEncoder

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
# Workers side by side (pytest -n) get one thread each, unless told.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")))

ASSETS = Path(str(files("whisper_mla") / "assets"))

# Conversions whose exported stock model must compute the same: every kind of latent, with unequal ranks.
CONVERSIONS = {
    "exact": {},
    "key_value": {"cross_cache": "key_value", "kv_rank": [48, 256, 64, 32]},
    "shared": {"kv_rank": 64, "cross_kv_rank": 96},
    "per_layer": {"kv_rank": [64, 48, 128, 256], "cross_kv_rank": [64, 256, 32, 48], "cross_kv_shared": False},
    "everywhere": {"kv_rank": 32, "cross_kv_rank": 64, "audio_kv_rank": [128, 256, 96, 200]},
}


def random_whisper(seed: int = 0, **shape) -> WhisperForConditionalGeneration:
    """A tiny stock Whisper with random weights, noisy enough that greedy decoding gives many different tokens."""
    defaults = {
        "vocab_size": 128,
        "num_mel_bins": 8,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "max_source_positions": 30,
        "max_target_positions": 40,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 3,
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
    }
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(WhisperConfig(**{**defaults, **shape})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(2.0 * torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    return model


def random_features(model, batch: int = 2, seed: int = 1) -> torch.Tensor:
    """Audio features `[batch, mel bins, frames]` that fit `model`."""
    config, generator = model.config, torch.Generator().manual_seed(seed)
    shape = (batch, config.num_mel_bins, 2 * config.max_source_positions)
    return torch.randn(shape, generator=generator).to(model.dtype)


@pytest.fixture(scope="session")
def digits_folder() -> Path:
    return ASSETS / "whisper-digits"


@pytest.fixture(scope="session")
def digits(digits_folder) -> WhisperForConditionalGeneration:
    """Stock whisper-digits in float32. Tests do not modify it."""
    return WhisperForConditionalGeneration.from_pretrained(digits_folder, dtype=torch.float32)


@pytest.fixture(scope="session")
def processor(digits_folder) -> WhisperProcessor:
    return WhisperProcessor.from_pretrained(digits_folder)


@pytest.fixture(scope="session")
def clips() -> dict[str, dict]:
    """Bundled speech: name to path, text and 16 kHz samples. `long` is 33 s, the others 2 to 7 s."""
    import soundfile

    with open(ASSETS / "clips" / "metadata.csv", newline="") as table:
        rows = list(csv.DictReader(table))
    found = {}
    for row in rows:
        path = ASSETS / "clips" / row["file_name"]
        found[row["file_name"].split("_")[0]] = {
            "path": path,
            "text": row["text"],
            "samples": soundfile.read(path, dtype="float32")[0],
        }
    return found


@pytest.fixture(scope="session")
def speech(processor, clips) -> dict[str, torch.Tensor]:
    """Features of four clips of different lengths, ready for `generate`."""
    samples = [clips[f"clip0{i}"]["samples"] for i in (0, 3, 4, 7)]
    return dict(processor(samples, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True))


@pytest.fixture(scope="session")
def long_speech(processor, clips) -> dict[str, torch.Tensor]:
    """Features of 33 s and of 7 s together: decoded window by window."""
    samples = [clips["long"]["samples"], clips["clip07"]["samples"]]
    return dict(
        processor(
            samples,
            sampling_rate=16_000,
            return_tensors="pt",
            return_attention_mask=True,
            truncation=False,
            padding="longest",
        )
    )


@pytest.fixture(scope="session", params=CONVERSIONS)
def converted(request, digits) -> tuple:
    """A converted whisper-digits, and the stock model with the same outputs (for exact ones, the original)."""
    model = WhisperMLAForConditionalGeneration.from_whisper(digits, **CONVERSIONS[request.param])
    return model, (digits if request.param == "exact" else model.to_whisper())


@pytest.fixture(scope="session")
def exact(digits) -> WhisperMLAForConditionalGeneration:
    return WhisperMLAForConditionalGeneration.from_whisper(digits)


@pytest.fixture(scope="module")
def encode_once():
    """Encoders remember what they made of the same input: for tests of what comes after. Saves most of their time."""
    known = weakref.WeakKeyDictionary()

    def remembering(forward):
        def encode(encoder, input_features, *rest, **named):
            if rest or encoder.training or named.get("output_attentions") or named.get("output_hidden_states"):
                return forward(encoder, input_features, *rest, **named)
            weight, shape = encoder.conv1.weight, tuple(input_features.shape)
            content = input_features.contiguous().view(torch.uint8).numpy(force=True).tobytes()
            key = (weight.dtype, weight._version, shape, content)
            outputs = known.setdefault(encoder, {})
            if key not in outputs:
                outputs[key] = forward(encoder, input_features, **named)
            return copy.copy(outputs[key])

        return encode

    with pytest.MonkeyPatch.context() as patch:
        for encoder in (WhisperEncoder, WhisperMLAEncoder):
            patch.setattr(encoder, "forward", remembering(encoder.forward))
        yield


@pytest.fixture
def fresh() -> Callable:
    """Copy a model before a test changes it (word timestamps leave a Whisper on eager attention, for one)."""
    return copy.deepcopy
