"""A stock Whisper checkpoint as one file for whisper.cpp, with 8-bit weights (q8_0), for `peers.py`.

    python benchmarks/ggml_weights.py whisper-base base-q8_0.bin

The format is that of whisper.cpp's `models/convert-h5-to-ggml.py` (ggml-org, MIT), its rounding that of ggml's q8_0: 32
neighbours share a float16 scale.
"""

import argparse
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.convert_slow_tokenizer import bytes_to_unicode

MAGIC, Q8_0_FILE = 0x67676D6C, 2007  # version 2 of the rounding, files of type 7
FLOAT32, FLOAT16, Q8_0 = 0, 1, 8
TEXT_TOKENS = 50257
# The first that fits, in this order.
NAMES = (
    ("encoder_attn_layer_norm", "cross_attn_ln"),
    ("self_attn_layer_norm", "attn_ln"),
    ("final_layer_norm", "mlp_ln"),
    ("encoder_attn", "cross_attn"),
    ("self_attn", "attn"),
    ("q_proj", "query"),
    ("k_proj", "key"),
    ("v_proj", "value"),
    ("out_proj", "out"),
    ("fc1", "mlp.0"),
    ("fc2", "mlp.2"),
    ("layers", "blocks"),
    ("embed_positions.weight", "positional_embedding"),
    ("embed_tokens", "token_embedding"),
    ("encoder.layer_norm", "encoder.ln_post"),
    ("decoder.layer_norm", "decoder.ln"),
)


def rounded(values: np.ndarray) -> bytes:
    """q8_0: of each 32 values a float16 scale and as many signed bytes."""
    groups = values.astype(np.float32).reshape(-1, 32)
    scale = np.abs(groups).max(axis=1, keepdims=True) / 127
    codes = np.rint(groups / np.where(scale > 0, scale, 1)).astype(np.int8)
    blocks = np.empty(len(groups), dtype=[("scale", "<f2"), ("codes", "i1", 32)])
    blocks["scale"], blocks["codes"] = scale[:, 0], codes
    return blocks.tobytes()


def write_tensor(file: BinaryIO, name: str, tensor: torch.Tensor) -> None:
    values = tensor.float().numpy()
    if name.endswith(("conv1.bias", "conv2.bias")):
        values = values[:, None]
    if values.ndim == 1 or values.shape[-1] == 1 or "positional" in name:
        kind, data = FLOAT32, values.astype("<f4").tobytes()
    elif values.ndim == 3:
        kind, data = FLOAT16, values.astype("<f2").tobytes()
    else:
        kind, data = Q8_0, rounded(values)
    file.write(struct.pack("<iii", values.ndim, len(name), kind))
    file.write(struct.pack(f"<{values.ndim}i", *values.shape[::-1]))
    file.write(name.encode() + data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    given = parser.parse_args()
    model = WhisperForConditionalGeneration.from_pretrained(given.checkpoint, dtype=torch.float32)
    processor = WhisperProcessor.from_pretrained(given.checkpoint)
    config = model.config
    sizes = (config.vocab_size, config.max_source_positions, config.d_model, config.encoder_attention_heads)
    sizes += (config.encoder_layers, config.max_target_positions, config.d_model, config.decoder_attention_heads)
    sizes += (config.decoder_layers, config.num_mel_bins, Q8_0_FILE)
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    partial = given.output.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(struct.pack("<12i", MAGIC, *sizes))
        filters = np.ascontiguousarray(processor.feature_extractor.mel_filters.T, dtype="<f4")
        file.write(struct.pack("<2i", *filters.shape) + filters.tobytes())
        file.write(struct.pack("<i", TEXT_TOKENS))
        for token in processor.tokenizer.convert_ids_to_tokens(range(TEXT_TOKENS)):
            text = bytes(byte_of[character] for character in token) if set(token) <= set(byte_of) else token.encode()
            file.write(struct.pack("<I", len(text)) + text)
        for name, tensor in model.model.state_dict().items():
            for old, new in NAMES:
                name = name.replace(old, new)
            write_tensor(file, name, tensor)
    partial.rename(given.output)
    print(given.output)


if __name__ == "__main__":
    main()
