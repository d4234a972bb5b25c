"""Generation configs that lack fields, as those of old or fine-tuned checkpoints do."""

import logging

import pytest
import torch
from transformers import GenerationConfig

from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.configuration.presets import whisper_config
from whisper_mla.conversion.source.generation_fields import alignment_heads, fill_generation_fields
from whisper_mla.transcription.transcriber import Transcriber

FIELDS = ["is_multilingual", "lang_to_id", "max_length", "no_timestamps_token_id", "prev_sot_token_id", "task_to_id"]


@pytest.fixture
def bare(digits, fresh, processor, tmp_path):
    """whisper-digits as saved by a script that knows no generation config."""
    model = fresh(digits)
    model.generation_config = GenerationConfig.from_model_config(model.config)
    model.save_pretrained(tmp_path / "bare")
    (tmp_path / "bare" / "generation_config.json").unlink()
    processor.save_pretrained(tmp_path / "bare")
    return tmp_path / "bare"


def test_conversion_fills_them_in_and_says_so(bare, digits, processor, clips, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("whisper_mla"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        model = WhisperMLAForConditionalGeneration.from_whisper(bare, dtype=torch.float32)
    expected = digits.generation_config
    for name in FIELDS:
        assert getattr(model.generation_config, name) == getattr(expected, name), name
    assert f"lacked {', '.join(FIELDS)}" in caplog.text
    (transcript,) = Transcriber(model, processor, language="en", timestamps="segment")([clips["clip04"]["samples"]])
    assert transcript.text == clips["clip04"]["text"]


def test_what_is_there_stays(digits, processor):
    filled, names = fill_generation_fields(digits.generation_config, digits.config, processor.tokenizer)
    assert names == [] and filled.to_dict() == digits.generation_config.to_dict()


def test_without_a_tokenizer_the_error_names_the_missing_field(fresh, digits, processor):
    model = fresh(digits)
    model.config._name_or_path = ""
    model.generation_config = GenerationConfig.from_model_config(model.config)
    converted = WhisperMLAForConditionalGeneration.from_whisper(model)
    with pytest.raises(ValueError, match="language='en': the model's generation config has no lang_to_id"):
        Transcriber(converted, processor, language="en")
    with pytest.raises(ValueError, match="has no no_timestamps_token_id"):
        Transcriber(converted, processor, timestamps="segment")


def test_a_transcript_is_not_cut_at_20_tokens(digits, processor, fresh, clips):
    """A stock checkpoint without a length, transcribed as it is."""
    model = fresh(digits)
    model.generation_config.max_length = None
    text = Transcriber(model, processor)([clips["clip04"]["samples"]])[0].text
    assert text == clips["clip04"]["text"] and len(processor.tokenizer(text).input_ids) > 20


@pytest.mark.parametrize(("size", "count"), [("tiny", 6), ("base", 8), ("small", 10), ("large-v3-turbo", 6)])
def test_alignment_heads_of_the_published_sizes(size, count):
    config = whisper_config(size)
    heads = alignment_heads(config)
    assert len(heads) == count
    assert all(0 <= i < config.decoder_layers and 0 <= j < config.decoder_attention_heads for i, j in heads)
    assert alignment_heads(whisper_config(size, d_model=64)) is None
