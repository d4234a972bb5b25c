"""A tiny stock Whisper with random weights that fits the processor of whisper-digits and says something."""

from pathlib import Path

from transformers import GenerationConfig, WhisperForConditionalGeneration

from tests.conftest import random_whisper


def tiny_whisper(digits_folder: Path) -> WhisperForConditionalGeneration:
    """A model of width 8 that decodes up to ten characters of plain text, none of it special tokens."""
    shape = {"d_model": 8, "encoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "max_target_positions": 12}
    shape |= {"vocab_size": 1864, "num_mel_bins": 80, "max_source_positions": 500}  # those of the processor
    shape |= {"pad_token_id": 256, "bos_token_id": 256, "eos_token_id": 256, "decoder_start_token_id": 257}
    model = random_whisper(**shape)
    generation = GenerationConfig.from_pretrained(digits_folder)
    generation.alignment_heads = [[0, 0]]
    generation.max_length = 10
    generation.suppress_tokens = [*range(32), *range(127, shape["vocab_size"])]
    model.generation_config = generation
    return model
