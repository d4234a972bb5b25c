"""Two minutes of real English speech that come with the package, for conversions without audio of one's own."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils import logging

from .clips import Clip, read_clips
from .word_changes import count_word_changes

logger = logging.get_logger(__name__)

SPEECH = Path(str(files("whisper_mla") / "assets" / "speech"))
MEASURED_ON = "bundled LibriSpeech speech"
# Of the bundled clips, this share is held out to measure a calibrated conversion.
HELD_OUT = 1 / 3
# Above this word error rate on one clean clip a model is not one of English speech: the smallest Whisper makes 0.1.
_UNDERSTANDS = 0.5


def read_bundled_speech(stock: PreTrainedModel, processor: ProcessorMixin) -> list[Clip] | None:
    """Twelve utterances of LibriSpeech (CC BY 4.0, see the README of the assets), if they are of use for a model.

    Args:
        stock: a Whisper in evaluation mode.
        processor: of the model.

    Returns:
        The clips, without transcripts: the stock model's own are the measure. None, with a warning, if the model finds
        less than half the words of one clip (another language, another domain): nothing measured on such speech would
        say anything of it.
    """
    clips = read_clips(SPEECH)
    probe = min(clips, key=lambda clip: len(clip.samples))
    features = processor.feature_extractor(probe.samples, sampling_rate=16_000, return_tensors="pt").input_features
    features = features[..., : 2 * stock.config.max_source_positions].to(stock.device, stock.dtype)
    with torch.inference_mode():
        limit = min(48, stock.config.max_target_positions // 2)
        arguments = {"force_unique_generate_call": True, "num_beams": 1, "max_new_tokens": limit}
        tokens = stock.generate(features, **arguments, **spoken(stock))  # type: ignore[operator]
    tokens = getattr(tokens, "sequences", tokens)
    said = processor.tokenizer.decode(tokens[0], skip_special_tokens=True)
    rate = count_word_changes([probe.text or ""], [said]).rate or 0.0
    if rate > _UNDERSTANDS:
        logger.warning(
            f"Not calibrated and not measured: the bundled English speech is not what this model transcribes (word "
            f"error rate {rate:.0%} on one clip). Give audio of the kind that it will hear: calibration=…."
        )
        return None
    return [Clip(clip.name, clip.samples) for clip in clips]


def spoken(stock: PreTrainedModel) -> dict[str, Any]:
    """The language and task of the bundled speech, as arguments of `generate`; an English-only model refuses them."""
    is_multilingual = getattr(stock.generation_config, "is_multilingual", False)
    return {"language": "en", "task": "transcribe"} if is_multilingual else {}
