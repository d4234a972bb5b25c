"""Beside a Transformers that was never tested: does a tiny model decode as it must? Asked before `generate`."""

import threading
from typing import Any

import torch
import transformers
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration
from transformers.utils import logging

from .transformers_releases import NEWEST_TESTED, OLDEST_TESTED, WORKING_RELEASES, installed_release

logger = logging.get_logger(__name__)

_lock = threading.RLock()
_state = "not checked"

_TINY: dict[str, Any] = {
    "vocab_size": 64,
    "num_mel_bins": 4,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_source_positions": 8,
    "max_target_positions": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
}
_DECODING: dict[str, Any] = {
    "max_length": 10,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
}

_WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam search": {"num_beams": 3},
    "a static cache": {"cache_implementation": "static"},
}


def check_release() -> None:
    """Once per process, if the installed Transformers is outside of the tested range: check that decoding works.

    Takes a few tenths of a second, and leaves the random number generators as they were.

    Raises:
        RuntimeError: a tiny random model does not decode the tokens of stock Whisper, or not the same with its cache as
            without. The message names the releases that work.
    """
    global _state
    if _state != "not checked" or OLDEST_TESTED <= installed_release() <= NEWEST_TESTED:
        return
    with _lock:
        if _state != "not checked":  # another thread was first, or this is the check's own generate()
            return
        _state = "in progress"
        fault: str | Exception | None
        try:
            fault = _find_fault()
        except Exception as error:
            fault = error
        if fault is not None:
            _state = "not checked"
            reason = f"{type(fault).__name__}: {fault}" if isinstance(fault, Exception) else fault
            raise RuntimeError(
                f"Whisper-MLA does not decode rightly with Transformers {transformers.__version__}, a release that it "
                f"was not made for ({reason}). Install one that works: pip install '{WORKING_RELEASES}'"
            ) from (fault if isinstance(fault, Exception) else None)
        _state = "passed"
        logger.warning(
            f"Whisper-MLA has not been tested with Transformers {transformers.__version__} (tested: "
            f"{WORKING_RELEASES}). A tiny model decodes rightly with it."
        )


@torch.no_grad()
def _find_fault() -> str | None:
    """How the tokens of a tiny random model differ from those of stock Whisper; None if they do not."""
    # Threads only get in each other's way on matrices of this size.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _compare_tokens()
    finally:
        torch.set_num_threads(threads)


def _compare_tokens() -> str | None:
    from .configuration.configuration_whisper_mla import WhisperMLAConfig
    from .modeling_whisper_mla import WhisperMLAForConditionalGeneration

    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        stock = WhisperForConditionalGeneration(WhisperConfig(**_TINY)).float().eval()
        ours = WhisperMLAForConditionalGeneration(WhisperMLAConfig(**_TINY)).float().eval()
        for parameter in stock.parameters():
            parameter.normal_(std=2.0 / parameter.shape[-1] ** 0.5, generator=generator)
        ours.load_state_dict(stock.state_dict())
        for model in (stock, ours):
            model.generation_config = GenerationConfig(**_DECODING)
        features = torch.randn(2, _TINY["num_mel_bins"], 2 * _TINY["max_source_positions"], generator=generator)

        def tokens(model, **way):
            return model.generate(features, **way).tolist()

        for name, way in _WAYS.items():
            expected = tokens(stock, **way)
            if tokens(ours, **way) != expected:
                return f"{name} gives other tokens than stock Whisper"
            if name == "greedy" and tokens(ours, use_cache=False) != expected:
                return "decoding without a cache gives other tokens than with it"
    return None
