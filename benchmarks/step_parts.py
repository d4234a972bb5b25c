"""The parts of a decoding step one by one, each beside ways to do it that the package does not take.

    python benchmarks/step_parts.py

Random tensors of whisper-base's dimensions, 1,500 audio frames; every way is called in turn, and the table has medians.
What it answers: what could be won by 4-bit weights, by a vocabulary projection of fewer bits in front of an exact one,
by absorbed projections multiplied out beforehand, and by attention that reads rounded latents as integers or is
compiled from flex_attention; and what is won by two products in the attention of beams, and by quicker rules for
timestamps.
"""

import copy
import time
from collections.abc import Callable
from statistics import median

import torch
from result_files import write_results
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import WhisperTimeStampLogitsProcessor
from transformers.utils.logging import tqdm

from whisper_mla.configuration import whisper_config
from whisper_mla.int8_linear import Int8Linear
from whisper_mla.latent_quantization import dequantize, quantize
from whisper_mla.token_suppression import with_quicker_suppression

ROUNDS = 31
FRAMES = 1500
GROUP_SIZE = 32


def int4_linear(layer: nn.Linear, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """PyTorch's 4-bit weights for CPUs, in groups with a scale and a minimum."""
    weight = layer.weight.detach().unflatten(1, (-1, GROUP_SIZE))
    low, high = weight.amin(-1, keepdim=True), weight.amax(-1, keepdim=True)
    scale = ((high - low) / 15).clamp_min(1e-8)
    codes = ((weight - low) / scale).round().clamp(0, 15).flatten(1).to(torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    # The kernel computes (code - 8) · scale + zero.
    scales = torch.cat([scale, low + 8 * scale], dim=-1).transpose(0, 1).contiguous().to(dtype)
    product = torch.ops.aten._weight_int4pack_mm_for_cpu
    layer_error = (
        product(torch.eye(layer.in_features, dtype=dtype), packed, GROUP_SIZE, scales).T - layer.weight
    ).abs()
    assert layer_error.max() < 0.1 * layer.weight.abs().max(), "not the same product"
    return lambda rows: product(rows.to(dtype), packed, GROUP_SIZE, scales).float()


def linear_ways(inputs: int, outputs: int, rows: int) -> dict[str, Callable[[], object]]:
    outputs = -(-outputs // 64) * 64  # what the 4-bit kernel takes
    layer = nn.Linear(inputs, outputs, bias=False)
    half = copy.deepcopy(layer).bfloat16()
    ways = {
        "float32 (exact)": layer,
        "bfloat16": lambda rows: half(rows.bfloat16()).float(),
        "int8 (ours)": Int8Linear.from_linear(layer),
        "int4 in float32": int4_linear(layer, torch.float32),
        "int4 in bfloat16": int4_linear(layer, torch.bfloat16),
    }
    x = torch.randn(rows, inputs)
    return {name: lambda way=way: way(x) for name, way in ways.items()}


def query_ways(width: int, heads: int, rows: int) -> dict[str, Callable[[], object]]:
    """The query on the latent: projected, then absorbed per head; or by one matrix that holds both."""
    query = nn.Linear(width, width).requires_grad_(False)
    up = torch.randn(heads, width // heads, width)
    both = nn.Linear(width, heads * width).requires_grad_(False)
    x = torch.randn(rows, width)

    def absorbed():
        return torch.bmm(query(x).view(rows, heads, -1).transpose(0, 1), up)

    return {"projected, then absorbed (ours)": absorbed, "multiplied out beforehand": lambda: both(x)}


def attention_ways(width: int, heads: int, audios: int) -> dict[str, Callable[[], object]]:
    """Cross-attention of one layer on latents that are rounded to 8 bits, without what is done once for all layers."""
    latent = torch.randn(audios, 1, FRAMES, width)
    half = latent.bfloat16()
    query = torch.randn(audios, 1, heads, width) / width
    packed = quantize(latent, 8, GROUP_SIZE)
    scale = latent.abs().amax(-1, keepdim=True) / 127
    codes = (latent / scale).round().to(torch.int8)
    transposed = [audio[0].T for audio in codes]

    def attend(keys: Tensor) -> Tensor:
        return scaled_dot_product_attention(query.to(keys), keys, keys, scale=1.0)

    def integers() -> Tensor:
        """Scores and sums as products of 8-bit integers; the weights are rounded too, with a scale for each head."""
        largest = query.abs().amax(-1, keepdim=True) / 127
        rounded = (query / largest).round().to(torch.int8)
        scores = torch.stack([torch._int_mm(rows[0], keys) for rows, keys in zip(rounded, transposed, strict=True)])
        weights = (scores[:, None] * largest * scale.transpose(2, 3)).softmax(-1) * scale.transpose(2, 3)
        top = weights.amax(-1, keepdim=True) / 127
        rounded = (weights / top).round().to(torch.int8)
        sums = torch.stack([torch._int_mm(rows[0], keys[0]) for rows, keys in zip(rounded, codes, strict=True)])
        return sums[:, None] * top

    heads_apart = query.bfloat16().transpose(1, 2).contiguous()
    compiled = torch.compile(flex_attention)

    def flex() -> Tensor:
        return compiled(heads_apart, half, half, scale=1.0, enable_gqa=True)

    exact = attend(latent)
    assert (flex().transpose(1, 2) - exact).abs().max() < 0.1 * exact.abs().max(), "not the same attention"
    assert (integers() - exact).abs().max() < 0.1 * exact.abs().max(), "not the same attention"
    return {
        "float32 latents (ours, once unpacked)": lambda: attend(latent),
        "bfloat16 latents": lambda: attend(half),
        "bfloat16 latents, flex_attention compiled": flex,
        "8-bit integers": integers,
        "unpacking alone (ours: once for all layers)": lambda: dequantize(packed, width, 8, GROUP_SIZE, torch.float32),
    }


def beam_ways(width: int, heads: int, audios: int) -> dict[str, Callable[[], object]]:
    """Cross-attention of one layer with 5 beams: all heads of all beams are queries on an audio's one latent."""
    latent = torch.randn(audios, 1, FRAMES, width)
    query = torch.randn(audios, 1, 5 * heads, width) / width

    def products() -> Tensor:
        return torch.matmul(torch.matmul(query, latent.transpose(2, 3)).softmax(-1), latent)

    def fused() -> Tensor:
        return scaled_dot_product_attention(query, latent, latent, scale=1.0)

    assert (products() - fused()).abs().max() < 1e-4 * fused().abs().max(), "not the same attention"
    return {"two products (ours)": products, "PyTorch's fused kernel": fused}


def timestamp_ways(vocabulary: int, texts: int) -> dict[str, Callable[[], object]]:
    """The rules for timestamps, of texts of 60 tokens with a timestamp at the 20th and the 40th."""
    first = vocabulary - 1501
    config = GenerationConfig(eos_token_id=50257, no_timestamps_token_id=first - 1, max_initial_timestamp_index=50)
    stock = WhisperTimeStampLogitsProcessor(config, 4)
    tokens = torch.randint(0, 50000, (texts, 60))
    tokens[:, 20], tokens[:, 40] = first + 100, first + 300
    scores = torch.randn(texts, vocabulary)
    ours = with_quicker_suppression(LogitsProcessorList([stock]))[0]
    assert torch.equal(ours(tokens, scores), stock(tokens, scores)), "not the same rules"
    return {"ours": lambda: ours(tokens, scores), "Transformers'": lambda: stock(tokens, scores)}


def measure(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Medians in milliseconds, the ways in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 3):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn >= 3:
                seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * median(found) for name, found in seconds.items()}


@torch.inference_mode()
def main() -> None:
    config = whisper_config("base")
    width, heads = config.d_model, config.decoder_attention_heads
    torch.manual_seed(0)
    parts: dict[str, Callable[[int], dict]] = {
        "vocabulary projection": lambda rows: linear_ways(width, config.vocab_size, rows),
        "first feed-forward projection": lambda rows: linear_ways(width, config.decoder_ffn_dim, rows),
        "query of one attention": lambda rows: query_ways(width, heads, rows),
        "cross-attention of one layer": lambda rows: attention_ways(width, heads, rows),
        "the same with 5 beams": lambda rows: beam_ways(width, heads, rows),
        "rules for timestamps": lambda rows: timestamp_ways(config.vocab_size, rows),
        "the same rules with 5 beams": lambda rows: timestamp_ways(config.vocab_size, 5 * rows),
    }
    table, raw = [], []
    for (part, ways), rows in tqdm([(part, rows) for part in parts.items() for rows in (1, 8)]):
        found = measure(ways(rows))
        first = next(iter(found.values()))
        for way, milliseconds in found.items():
            table.append([part, str(rows), way, f"{milliseconds:.3f}", f"{milliseconds / first:.2f}×"])
            raw.append({"part": part, "rows": rows, "way": way, "milliseconds": milliseconds})
    note = (
        "Milliseconds, medians of 31 calls, the ways of a part in turn; the ratio is to the first way of a part. "
        "Random tensors of whisper-base's dimensions. Rows: texts of one step; in cross-attention audios, each with "
        "its own latent."
    )
    write_results("step_parts", note, ["part", "rows", "way", "ms", "to the first"], table, raw)


if __name__ == "__main__":
    main()
